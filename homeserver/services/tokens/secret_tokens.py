"""Secrets that this server gives out: access and refresh tokens, device and session ids, generated
names.

A token says what it is and carries a checksum: `mha_` (access), 33 random characters, 6 of CRC-32.
Refresh tokens, those of the OAuth 2.0 API (`mho_`) and others (`mhr_`), have 24 characters that all
those of a session begin with, their family, and 24 of their own; passwords for programs (`mhp_`) 12
by which they are found, and 24 that are secret. So a scanner of leaked secrets finds it, and a
request with a token that was cut short or made up costs no query.
"""

import hashlib
import zlib
from collections.abc import Callable
from string import ascii_letters, ascii_lowercase, ascii_uppercase, digits
from typing import Final

RandomBytes = Callable[[int], bytes]
"""A source of random bytes that nobody can foresee: `secrets.token_bytes`, or a seeded one in
tests."""

ACCESS_PREFIX: Final = "mha_"
REFRESH_PREFIX: Final = "mhr_"
OAUTH_REFRESH_PREFIX: Final = "mho_"
APPLICATION_PASSWORD_PREFIX: Final = "mhp_"

_ALPHABET: Final = digits + ascii_letters
_RANDOM_LENGTH: Final = 33
_CHECK_LENGTH: Final = 6
_FAMILY_LENGTH: Final = 24
_PASSWORD_ID_LENGTH: Final = 12
_USER_CODE_LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"
"""No vowels, so no words. spec: RFC 8628 section 6.1"""


class SecretText:
    """Makes them, from one source of randomness."""

    def __init__(self, random: RandomBytes) -> None:
        self._random = random

    def access_token(self) -> str:
        """196 bits."""
        body = ACCESS_PREFIX + self._text(_ALPHABET, _RANDOM_LENGTH)
        return body + _checksum(body)

    def family(self) -> str:
        """142 bits: what all refresh tokens of one session begin with."""
        return self._text(_ALPHABET, _FAMILY_LENGTH)

    def refresh_token(self, family: str) -> str:
        """142 bits besides those of the family."""
        return self._refresh_token(REFRESH_PREFIX, family)

    def oauth_refresh_token(self, family: str) -> str:
        """142 bits besides those of the family."""
        return self._refresh_token(OAUTH_REFRESH_PREFIX, family)

    def application_password(self) -> str:
        """71 bits by which it is found, and 142 that nobody else knows."""
        body = APPLICATION_PASSWORD_PREFIX + self._text(
            _ALPHABET, _PASSWORD_ID_LENGTH + _FAMILY_LENGTH
        )
        return body + _checksum(body)

    def oauth_code(self) -> str:
        """32 letters and digits, 190 bits: who holds it, and what it is bound to, signs in."""
        return self._text(_ALPHABET, 32)

    def user_code(self) -> str:
        """Eight letters that people type, 34 bits."""
        return self._text(_USER_CODE_LETTERS, 8)

    def device_id(self) -> str:
        """Ten capital letters."""
        return self._text(ascii_uppercase, 10)

    def localpart(self) -> str:
        """Twelve small letters: a name for somebody who did not choose one."""
        return self._text(ascii_lowercase, 12)

    def registration_token(self, length: int = 16) -> str:
        """What lets its holder register; short enough to be passed on by word of mouth."""
        return self._text(ascii_lowercase, length)

    def phone_code(self) -> str:
        """Six digits that people type, 20 bits: for few tries."""
        return self._text(digits, 6)

    def session_id(self) -> str:
        """24 letters, 136 bits: who knows it may go on with what it stands for."""
        return self._text(ascii_letters, 24)

    def media_id(self) -> str:
        """24 letters, 136 bits: who knows it may see the file where no token is asked for."""
        return self._text(ascii_letters, 24)

    def login_token(self) -> str:
        """32 letters and digits, 190 bits: who holds it signs in."""
        return self._text(_ALPHABET, 32)

    def browser_token(self) -> str:
        """32 letters and digits, 190 bits: the cookie of a browser."""
        return self._text(_ALPHABET, 32)

    def rendezvous_id(self) -> str:
        """24 letters, 136 bits: who knows it may read and replace what two devices tell each
        other."""
        return self._text(ascii_letters, 24)

    def openid_token(self) -> str:
        """24 letters, 136 bits: who knows it can prove to others to be its owner, for an hour."""
        return self._text(ascii_letters, 24)

    def room(self) -> str:
        """24 letters, 136 bits: what a room is called that is not named by its create event."""
        return self._text(ascii_letters, 24)

    def delay_id(self) -> str:
        """24 letters, 136 bits: who knows it may manage a delayed event."""
        return self._text(ascii_letters, 24)

    def purge_id(self) -> str:
        """24 letters: the name of a purge."""
        return self._text(ascii_letters, 24)

    def nonce(self) -> str:
        """128 hexadecimal digits."""
        return self._random(64).hex()

    def _refresh_token(self, prefix: str, family: str) -> str:
        body = prefix + family + self._text(_ALPHABET, _FAMILY_LENGTH)
        return body + _checksum(body)

    def _text(self, alphabet: str, length: int) -> str:
        # 16 bits more than needed a letter make the bias of the remainder unmeasurable.
        number = int.from_bytes(self._random(length * 3), "big")
        letters = []
        for _ in range(length):
            number, rest = divmod(number, len(alphabet))
            letters.append(alphabet[rest])
        return "".join(letters)


def hash_token(token: str) -> bytes:
    """What a token is kept and found by: the SHA-256 of its text."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def hash_secret(text: str) -> str:
    """What other secrets are kept and found by that somebody shows again: as `hash_token`, in
    hexadecimal digits."""
    return hash_token(text).hex()


def is_damaged(token: str) -> bool:
    """Whether it claims to be one of our tokens and cannot be. Tokens of imported sessions look
    otherwise, and pass."""
    if not token.startswith(
        (ACCESS_PREFIX, REFRESH_PREFIX, OAUTH_REFRESH_PREFIX, APPLICATION_PASSWORD_PREFIX)
    ):
        return False
    return _checksum(token[:-_CHECK_LENGTH]) != token[-_CHECK_LENGTH:]


def family_of(token: str, prefix: str = REFRESH_PREFIX) -> str | None:
    """What a refresh token of this kind has in common with the others of its session; None for
    other tokens, for those of imported sessions, and for those of before there were families."""
    start = len(prefix)
    whole = start + 2 * _FAMILY_LENGTH + _CHECK_LENGTH
    if not token.startswith(prefix) or len(token) != whole or is_damaged(token):
        return None
    return token[start : start + _FAMILY_LENGTH]


def oauth_family_of(token: str) -> str | None:
    """As `family_of`, of a refresh token of the OAuth 2.0 API."""
    return family_of(token, OAUTH_REFRESH_PREFIX)


def application_password_id(password: str) -> str | None:
    """By what a password for a program is found; None for other passwords."""
    start = len(APPLICATION_PASSWORD_PREFIX)
    rest = password[start:]
    if not password.startswith(APPLICATION_PASSWORD_PREFIX) or not (
        rest.isascii() and rest.isalnum()
    ):
        return None
    return None if is_damaged(password) else rest[:_PASSWORD_ID_LENGTH]


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    letters = []
    for _ in range(_CHECK_LENGTH):
        number, rest = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[rest])
    return "".join(letters)
