"""Text as words by which it is found: one key for the spellings of a word that people take for the
same. Pure.

A word has a key in each of the configured languages; two words are the same when they have a key in
common. Case, diacritics and apostrophes make no difference. In Uzbek and Karakalpak the two scripts
make none: Cyrillic is spelt as the Latin of that language. In Russian ё is е. What is written
without spaces (Chinese, Japanese, Korean, Thai, …) is cut into pairs of characters that overlap.

Laws:
- Keys hold only letters, digits and combining marks, at least one: no space, no quote, no
  punctuation.
- A language whose keys are those of another one for the whole text adds nothing.
- The same text has the same keys for ever, as long as `Folding.name` is the same.

    folding = Folding(("uz", "ru"))
    folding.lines("Ўзбек тили") == folding.lines("O‘zbek tili") == [["ozbek", "tili"]]
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final

from homeserver.config.search import Language

VERSION: Final = 1
"""Of the keys: one more whenever a text gets other keys than before, so that texts are read
anew."""
MAX_TEXT: Final = 16_384
"""Characters of a text that are looked at. With all their spellings they have to fit into a
`tsvector`: 1 MiB."""
MAX_WORDS: Final = 2_000
"""Keys of a text, in each language."""
MAX_KEY: Final = 64
"""Characters of a key."""

_TABLE_SIZE: Final = 20_000
"""Characters whose folding is remembered."""

# The apostrophes that people type for ʻ (o‘, g‘) and ʼ (tutuq belgisi), and characters that only
# steer the layout.
_DROPPED: Final = dict.fromkeys(map(ord, "'`´ʹʻʼʽʾʿˈˊˋ‘’‛′＇\u00ad\u200b\u200c\u200d\u2060\ufeff"))

_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""Runs of characters of scripts that put no spaces between words, and Korean, whose words have many
endings."""

# Marks over and under letters of these ranges are dropped; others (the vowels of Indian scripts)
# belong to the word.
_ACCENTS: Final = (
    (0x0300, 0x06FF),
    (0x1AB0, 0x1AFF),
    (0x1DC0, 0x1DFF),
    (0x20D0, 0x20FF),
    (0xFE20, 0xFE2F),
)

# Letters that Unicode does not take apart into a letter and a mark.
_LETTERS: Final = {
    "ı": "i",
    "ł": "l",
    "đ": "d",
    "ð": "d",
    "ø": "o",
    "æ": "ae",
    "œ": "oe",
    "þ": "th",
    "ħ": "h",
    "ŋ": "n",
}

_CYRILLIC: Final = {
    **dict(zip("абвгджзийклмнопрстуфхыэ", "abvgdjziyklmnoprstufxie", strict=True)),
    "е": "e",
    "ё": "yo",
    "ц": "ts",
    "ч": "ch",
    "ш": "sh",
    "щ": "sh",
    "ъ": "",
    "ь": "",
    "ю": "yu",
    "я": "ya",
    "ў": "o",
    "қ": "q",
    "ғ": "g",
    "ҳ": "h",
    "ә": "a",
    "ө": "o",
    "ү": "u",
    "ұ": "u",
    "ң": "n",
    "һ": "h",
    "і": "i",
    "ї": "i",
    "є": "e",
    "ґ": "g",
}
"""Cyrillic as the Latin of Uzbek has it; diacritics and apostrophes are left out, as they are of
Latin text."""

_UZBEK_YE: Final = re.compile("(?<![бвгджзйклмнпрстфхцчшщқғҳ])е")
_UZBEK_TS: Final = re.compile("(?<![аеёиоуэюяўы])ц")


class _Letters(dict[int, str | None]):
    """What each character becomes; for `str.translate`. Asked for a new one, it finds out."""

    def __init__(self, spelling: dict[str, str]) -> None:
        super().__init__(_DROPPED)
        self.update({ord(letter): spelt for letter, spelt in {**_LETTERS, **spelling}.items()})

    def __missing__(self, code: int) -> str | None:
        folded = _fold_letter(chr(code))
        if len(self) < _TABLE_SIZE:
            self[code] = folded
        return folded


def _fold_letter(letter: str) -> str | None:
    code = ord(letter)
    if unicodedata.category(letter).startswith("M"):
        return None if any(first <= code <= last for first, last in _ACCENTS) else letter
    if not letter.isalnum():
        return " "
    if _UNSPACED.match(letter):
        return letter
    bare = "".join(
        each
        for each in unicodedata.normalize("NFD", letter)
        if unicodedata.category(each)[0] != "M"
    )
    return bare if bare.isalnum() else letter


class Folding:
    """The keys of text in some languages."""

    def __init__(self, languages: Sequence[Language]) -> None:
        self.name = f"{VERSION}:{','.join(languages)}"
        """Tells foldings apart: what was folded by one of another name has to be folded anew."""
        plain = _Letters({})
        spellers: dict[Language, Callable[[str], str]] = {
            "uz": _Uzbek(),
            "kaa": _Speller({**_CYRILLIC, "ў": "w", "ц": "c"}),
            "ru": _Speller({**_CYRILLIC, "ё": "e"}),
        }
        # a language that has its own Cyrillic has no need of the plain one
        own = [spellers[language] for language in languages if language in spellers]
        self._spellers = own or [lambda text: text.translate(plain)]
        self._plain = plain

    def lines(self, text: str) -> list[list[str]]:
        """The keys of the words in their order, once for each language in which they differ;
        nothing without words.

        A run of characters without spaces ends with its last character alone, so that a single one
        is found as the beginning of a key wherever it stands.
        """
        prepared = unicodedata.normalize("NFKC", text[:MAX_TEXT].replace("´", "")).casefold()[
            :MAX_TEXT
        ]
        if prepared.isascii():
            keys = _cut(prepared.translate(self._plain))
            return [keys] if keys else []
        # casefolding may leave letters and marks apart
        prepared = unicodedata.normalize("NFC", prepared)
        found: list[list[str]] = []
        for spell in self._spellers:
            keys = _cut(spell(prepared))
            if keys and keys not in found:
                found.append(keys)
        return found

    def keys(self, text: str) -> list[str]:
        """Every key of the text, once."""
        return list(dict.fromkeys(key for line in self.lines(text) for key in line))


class _Speller:
    """Spells text by a table."""

    def __init__(self, spelling: dict[str, str]) -> None:
        self._letters = _Letters(spelling)

    def __call__(self, text: str) -> str:
        return text.translate(self._letters)


class _Uzbek(_Speller):
    """е is ye where a word or a syllable begins with it, ц is s but after a vowel."""

    def __init__(self) -> None:
        super().__init__(_CYRILLIC)

    def __call__(self, text: str) -> str:
        return super().__call__(_UZBEK_TS.sub("s", _UZBEK_YE.sub("ye", text)))


def is_unspaced(key: str) -> bool:
    """Whether the key is of a script without spaces."""
    return _UNSPACED.match(key) is not None


def _cut(text: str) -> list[str]:
    """The words of folded text."""
    words = text.split(maxsplit=MAX_WORDS)[:MAX_WORDS]
    if text.isascii() or _UNSPACED.search(text) is None:
        return [word[:MAX_KEY] for word in words if not _is_bare_mark(word)]
    keys: list[str] = []
    for word in words:
        at = 0
        for run in _UNSPACED.finditer(word):
            keys.append(word[at : run.start()][:MAX_KEY])
            characters = run[0]
            keys.extend(characters[place : place + 2] for place in range(len(characters)))
            at = run.end()
        keys.append(word[at:][:MAX_KEY])
    return [key for key in keys if key and not _is_bare_mark(key)][:MAX_WORDS]


def _is_bare_mark(key: str) -> bool:
    return not key.isascii() and all(unicodedata.category(each)[0] == "M" for each in key)
