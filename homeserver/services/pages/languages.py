"""The languages that the server's pages and letters speak: English in the code, each other one in a
file beside.

A new language is a new file `translations/CODE.po`; what it lacks is said in English. Which one
somebody gets is what their browser or client asks for (`Accept-Language`).
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from babel import Locale, UnknownLocaleError, negotiate_locale
from babel.messages.pofile import read_po

ENGLISH: Final = "en"
MOST_ASKED: Final = 20
"""Languages of one `Accept-Language` that are looked at."""
RELATED: Final = {
    "uz_UZ": "uz",
    "uz_Latn": "uz",
    "uz_Latn_UZ": "uz",
    "uz_Cyrl_UZ": "uz_Cyrl",
    "kaa_UZ": "kaa",
}
"""Names under which clients ask for a language that we know by a shorter one."""


class Language:
    """One language: its code, as HTML wants it, and what it says for an English text."""

    def __init__(self, code: str, messages: Mapping[str, str]) -> None:
        self.code = code
        self._messages = messages

    @property
    def tag(self) -> str:
        """As in HTML's `lang`: `uz-Cyrl`."""
        return self.code.replace("_", "-")

    @property
    def texts(self) -> frozenset[str]:
        """The English texts that it has words for."""
        return frozenset(self._messages)

    def gettext(self, text: str) -> str:
        """The text in this language."""
        return self._messages.get(text) or text


class Languages:
    """All of them. A language is read when somebody first asks for it."""

    def __init__(self) -> None:
        self._files = {
            entry.name.removesuffix(".po"): entry
            for entry in files("homeserver.services.pages").joinpath("translations").iterdir()
            if entry.name.endswith(".po")
        }
        self._read = {ENGLISH: Language(ENGLISH, {})}

    @property
    def codes(self) -> list[str]:
        """The codes of all languages, English among them."""
        return sorted({ENGLISH, *self._files})

    def get(self, code: str) -> Language:
        """Raises `KeyError` for an unknown code, OSError, and `babel.messages.pofile.PoFileError`
        for a damaged file."""
        if code not in self._read:
            with self._files[code].open("rb") as file:
                catalog = read_po(file, locale=_known_locale(code), abort_invalid=True)
            messages = {
                str(each.id): str(each.string) for each in catalog if each.id and each.string
            }
            self._read[code] = Language(code, messages)
        return self._read[code]

    def choose(self, accept_language: str) -> Language:
        """The language that suits a header `Accept-Language` best; English where none does."""
        wanted = [RELATED.get(code, code) for code in _asked(accept_language)]
        return self.get(negotiate_locale(wanted, self.codes) or ENGLISH)


def _known_locale(code: str) -> str | None:
    """The code, if the library knows rules for the language."""
    try:
        return str(Locale.parse(code))
    except (UnknownLocaleError, ValueError):
        return None


def _asked(header: str) -> list[str]:
    """The languages of a header, best first. spec: RFC 9110 section 12.5.4"""
    asked = []
    for place, part in enumerate(header.split(",")[:MOST_ASKED]):
        tag, _, parameters = part.strip().partition(";")
        quality = 1.0
        name, _, value = parameters.strip().partition("=")
        if name == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
        if quality > 0 and tag.replace("-", "").isalnum() and tag.isascii():
            words = tag.split("-")
            words[1:] = [word.title() if len(word) == 4 else word.upper() for word in words[1:]]
            asked.append((-quality, place, "_".join([words[0].lower(), *words[1:]])))
    return [code for _, _, code in sorted(asked)]
