"""Translations of pages and e-mails. English texts are in the code, each other language in a file.

A new language is a new file `translations/CODE.po`; missing messages appear in English. The
`Accept-Language` header of the browser or client selects the language.
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from babel import Locale, UnknownLocaleError, negotiate_locale
from babel.messages.pofile import read_po

ENGLISH: Final = "en"
MAX_LANGUAGES: Final = 20
"""Maximum number of languages that are read from one `Accept-Language` header."""
ALIASES: Final = {
    "uz_UZ": "uz",
    "uz_Latn": "uz",
    "uz_Latn_UZ": "uz",
    "uz_Cyrl_UZ": "uz_Cyrl",
    "kaa_UZ": "kaa",
}
"""Longer codes that clients send for our languages."""


def mark_for_translation(text: str) -> str:
    """Return the text itself; imported as `_`, it marks a text that is translated later."""
    return text


class Language:
    """A language: its code and its translations of the English texts."""

    def __init__(self, *, code: str, messages: Mapping[str, str]) -> None:
        self.code = code
        self._messages = messages

    @property
    def tag(self) -> str:
        """The code for HTML's `lang`: `uz-Cyrl`."""
        return self.code.replace("_", "-")

    @property
    def texts(self) -> frozenset[str]:
        """The English texts that it translates."""
        return frozenset(self._messages)

    def gettext(self, text: str) -> str:
        """Return the translation of an English text, or the text itself."""
        return self._messages.get(text) or text


class Languages:
    """All languages. A file is read when its language is first requested."""

    def __init__(self) -> None:
        self._files = {
            entry.name.removesuffix(".po"): entry
            for entry in files("homeserver.services.pages").joinpath("translations").iterdir()
            if entry.name.endswith(".po")
        }
        self._read = {ENGLISH: Language(code=ENGLISH, messages={})}

    @property
    def codes(self) -> list[str]:
        """The codes of all languages, English among them."""
        return sorted({ENGLISH, *self._files})

    def get(self, code: str) -> Language:
        """Return a language. Raises `KeyError` for an unknown code, OSError, and
        `babel.messages.pofile.PoFileError` for a damaged file."""
        if code not in self._read:
            with self._files[code].open("rb") as file:
                catalog = read_po(file, locale=_known_locale(code), abort_invalid=True)
            messages = {
                str(each.id): str(each.string) for each in catalog if each.id and each.string
            }
            self._read[code] = Language(code=code, messages=messages)
        return self._read[code]

    def choose(self, accept_language: str) -> Language:
        """Return the best language for an `Accept-Language` header; English if none matches."""
        wanted = [ALIASES.get(code, code) for code in _parse_header(accept_language)]
        return self.get(negotiate_locale(wanted, self.codes) or ENGLISH)


def _known_locale(code: str) -> str | None:
    """Return the code if the library has the plural rules of the language."""
    try:
        return str(Locale.parse(code))
    except (UnknownLocaleError, ValueError):
        return None


def _parse_header(header: str) -> list[str]:
    """Return the languages of a header, best first. spec: RFC 9110 section 12.5.4"""
    found = []
    for index, part in enumerate(header.split(",")[:MAX_LANGUAGES]):
        tag, _, parameters = part.strip().partition(";")
        quality = 1.0
        name, _, value = parameters.strip().partition("=")
        if name == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
        if quality > 0 and tag.replace("-", "").isalnum() and tag.isascii():
            parts = tag.split("-")
            parts[1:] = [part.title() if len(part) == 4 else part.upper() for part in parts[1:]]
            found.append((-quality, index, "_".join([parts[0].lower(), *parts[1:]])))
    return [code for _, _, code in sorted(found)]
