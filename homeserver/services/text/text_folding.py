"""Folds text into search keys: equivalent spellings of a word have the same key.

A word has a key in each of the configured languages; two words match if they have a common key.
Case, diacritics and apostrophes are ignored. In Uzbek and Karakalpak, Cyrillic text gets the keys
of its Latin spelling. In Russian ё becomes е. Scripts without spaces (Chinese, Japanese, Korean,
Thai, …) are split into overlapping pairs of characters.

Laws:
- A key consists of at least one alphanumeric character, and possibly combining marks. It contains
  no space, quote or punctuation.
- `TextFolding.lines` returns a list of keys for each language. If two languages have the same keys
  for the complete text, it returns their list only once.
- The same text always has the same keys while `TextFolding.name` is the same.

    folding = TextFolding(("uz", "ru"))
    folding.lines("Ўзбек тили") == folding.lines("O‘zbek tili") == [["ozbek", "tili"]]
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final

from homeserver.config.search import Language

VERSION: Final = 1
"""The version of the keys. Increase it when a text gets other keys than before, so that all texts
are indexed again."""
MAX_TEXT: Final = 16_384
"""Characters of a text that are indexed. All their spellings have to fit into a `tsvector`:
1 MiB."""
MAX_WORDS: Final = 2_000
"""Keys of a text, in each language."""
MAX_KEY: Final = 64
"""Characters of a key."""

_TABLE_SIZE: Final = 20_000
"""Characters whose folding is cached."""

# The apostrophes that people type for ʻ (o‘, g‘) and ʼ (tutuq belgisi), and layout characters.
_DROPPED: Final = dict.fromkeys(map(ord, "'`´ʹʻʼʽʾʿˈˊˋ‘’‛′＇\u00ad\u200b\u200c\u200d\u2060\ufeff"))

_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""Matches runs of characters of scripts without spaces between words, and Korean, whose words have
many endings."""

# Combining marks in these ranges are dropped; others (vowels of Indian scripts) belong to the word.
_ACCENTS: Final = (
    (0x0300, 0x06FF),
    (0x1AB0, 0x1AFF),
    (0x1DC0, 0x1DFF),
    (0x20D0, 0x20FF),
    (0xFE20, 0xFE2F),
)

# Characters that Unicode does not decompose into a base character and a mark.
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
"""Cyrillic letters in the Latin spelling of Uzbek, without diacritics and apostrophes, which Latin
text loses too."""

_UZBEK_YE: Final = re.compile("(?<![бвгджзйклмнпрстфхцчшщқғҳ])е")
_UZBEK_TS: Final = re.compile("(?<![аеёиоуэюяўы])ц")


class _FoldingTable(dict[int, str | None]):
    """A table for `str.translate` that computes missing characters."""

    def __init__(self, spelling: dict[str, str]) -> None:
        super().__init__(_DROPPED)
        self.update({ord(letter): latin for letter, latin in {**_LETTERS, **spelling}.items()})

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


class TextFolding:
    """Computes the keys of texts in some languages."""

    def __init__(self, languages: Sequence[Language]) -> None:
        self.name = f"{VERSION}:{','.join(languages)}"
        """Identifies the folding: texts with another name have to be folded again."""
        plain = _FoldingTable({})
        transliterators: dict[Language, Callable[[str], str]] = {
            "uz": _Uzbek(),
            "kaa": _Transliterator({**_CYRILLIC, "ў": "w", "ц": "c"}),
            "ru": _Transliterator({**_CYRILLIC, "ё": "e"}),
        }
        # a language with its own Cyrillic table does not need the plain one
        own = [transliterators[language] for language in languages if language in transliterators]
        self._transliterators = own or [lambda text: text.translate(plain)]
        self._plain = plain

    def lines(self, text: str) -> list[list[str]]:
        """Return the keys of the words in order, one list for each language in which they differ;
        no list for a text without words.

        A run of characters without spaces ends with its last character as a key, so that every
        single character is found as the prefix of a key.
        """
        prepared = unicodedata.normalize("NFKC", text[:MAX_TEXT].replace("´", "")).casefold()[
            :MAX_TEXT
        ]
        if prepared.isascii():
            keys = _split_keys(prepared.translate(self._plain))
            return [keys] if keys else []
        # casefolding may separate characters and their marks
        prepared = unicodedata.normalize("NFC", prepared)
        found: list[list[str]] = []
        for transliterate in self._transliterators:
            keys = _split_keys(transliterate(prepared))
            if keys and keys not in found:
                found.append(keys)
        return found

    def keys(self, text: str) -> list[str]:
        """Return the distinct keys of the text."""
        return list(dict.fromkeys(key for line in self.lines(text) for key in line))


class _Transliterator:
    """Spells text with a table."""

    def __init__(self, spelling: dict[str, str]) -> None:
        self._table = _FoldingTable(spelling)

    def __call__(self, text: str) -> str:
        return text.translate(self._table)


class _Uzbek(_Transliterator):
    """Spells Uzbek: е becomes ye at the start of a word or syllable, ц becomes s except after a
    vowel."""

    def __init__(self) -> None:
        super().__init__(_CYRILLIC)

    def __call__(self, text: str) -> str:
        return super().__call__(_UZBEK_TS.sub("s", _UZBEK_YE.sub("ye", text)))


def is_unspaced(key: str) -> bool:
    """Return whether the key is of a script without spaces."""
    return _UNSPACED.match(key) is not None


def _split_keys(text: str) -> list[str]:
    """Split folded text into keys."""
    words = text.split(maxsplit=MAX_WORDS)[:MAX_WORDS]
    if text.isascii() or _UNSPACED.search(text) is None:
        return [word[:MAX_KEY] for word in words if not _is_bare_mark(word)]
    keys: list[str] = []
    for word in words:
        at = 0
        for run in _UNSPACED.finditer(word):
            keys.append(word[at : run.start()][:MAX_KEY])
            characters = run[0]
            keys.extend(characters[start : start + 2] for start in range(len(characters)))
            at = run.end()
        keys.append(word[at:][:MAX_KEY])
    return [key for key in keys if key and not _is_bare_mark(key)][:MAX_WORDS]


def _is_bare_mark(key: str) -> bool:
    return not key.isascii() and all(unicodedata.category(each)[0] == "M" for each in key)
