"""Generates the random strings that this server issues: tokens, application passwords, codes, IDs,
and local parts for users who chose none.

Three kinds of strings have a prefix and a checksum (6 characters of CRC-32):
- access token: `mha_`, 33 random characters, the checksum;
- refresh token: `mhr_`, or `mho_` for the OAuth 2.0 API; a family of 24 characters, shared by all
  refresh tokens of a session; 24 random characters; the checksum;
- application password: `mhp_`, an ID of 12 characters, 24 secret characters, the checksum.
Scanners for leaked secrets recognise these strings by prefix and checksum. If a checksum is wrong,
the server refuses the string without a database query.
"""

import hashlib
import zlib
from collections.abc import Callable
from string import ascii_letters, ascii_lowercase, ascii_uppercase, digits
from typing import Final

RandomBytes = Callable[[int], bytes]
"""A cryptographic source of random bytes: `secrets.token_bytes`, or a seeded one in tests."""

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


class SecretGenerator:
    """Generates secrets and IDs from one source of randomness."""

    def __init__(self, random: RandomBytes) -> None:
        self._random = random

    def access_token(self) -> str:
        """Return a token with 196 random bits."""
        body = ACCESS_PREFIX + self._text(_ALPHABET, _RANDOM_LENGTH)
        return body + _checksum(body)

    def family(self) -> str:
        """Return a family for the refresh tokens of a session, with 142 random bits."""
        return self._text(_ALPHABET, _FAMILY_LENGTH)

    def refresh_token(self, family: str) -> str:
        """Return a token of the family, with 142 random bits of its own."""
        return self._refresh_token(REFRESH_PREFIX, family)

    def oauth_refresh_token(self, family: str) -> str:
        """Return a token of the family, with 142 random bits of its own."""
        return self._refresh_token(OAUTH_REFRESH_PREFIX, family)

    def application_password(self) -> str:
        """Return a password with an ID of 71 bits and 142 secret bits."""
        body = APPLICATION_PASSWORD_PREFIX + self._text(
            _ALPHABET, _PASSWORD_ID_LENGTH + _FAMILY_LENGTH
        )
        return body + _checksum(body)

    def oauth_code(self) -> str:
        """Return 32 alphanumeric characters, 190 bits, valid for the client it is bound to."""
        return self._text(_ALPHABET, 32)

    def user_code(self) -> str:
        """Return eight capital letters for people to type, 34 bits."""
        return self._text(_USER_CODE_LETTERS, 8)

    def device_id(self) -> str:
        """Return ten capital letters."""
        return self._text(ascii_uppercase, 10)

    def localpart(self) -> str:
        """Return twelve lower-case letters, for a user who did not choose a name."""
        return self._text(ascii_lowercase, 12)

    def registration_token(self, length: int = 16) -> str:
        """Return a registration token of lower-case letters, short enough to dictate."""
        return self._text(ascii_lowercase, length)

    def phone_code(self) -> str:
        """Return six digits for people to type, 20 bits; limit the attempts."""
        return self._text(digits, 6)

    def session_id(self) -> str:
        """Return 24 characters, 136 bits; its holder may continue the session."""
        return self._text(ascii_letters, 24)

    def media_id(self) -> str:
        """Return 24 characters, 136 bits; its holder may download it where no token is needed."""
        return self._text(ascii_letters, 24)

    def login_token(self) -> str:
        """Return 32 alphanumeric characters, 190 bits; its holder signs in."""
        return self._text(_ALPHABET, 32)

    def browser_token(self) -> str:
        """Return the value of a browser cookie: 32 alphanumeric characters, 190 bits."""
        return self._text(_ALPHABET, 32)

    def rendezvous_id(self) -> str:
        """Return 24 characters, 136 bits; its holder may read and replace the payload."""
        return self._text(ascii_letters, 24)

    def openid_token(self) -> str:
        """Return 24 characters, 136 bits; proves the owner's identity to other services."""
        return self._text(ascii_letters, 24)

    def room_localpart(self) -> str:
        """Return the localpart of a room ID, for versions without hashed IDs: 24 characters."""
        return self._text(ascii_letters, 24)

    def delay_id(self) -> str:
        """Return 24 characters, 136 bits; its holder may manage the delayed event."""
        return self._text(ascii_letters, 24)

    def purge_id(self) -> str:
        """Return the ID of a purge: 24 characters."""
        return self._text(ascii_letters, 24)

    def nonce(self) -> str:
        """Return 128 hexadecimal digits."""
        return self._random(64).hex()

    def _refresh_token(self, prefix: str, family: str) -> str:
        body = prefix + family + self._text(_ALPHABET, _FAMILY_LENGTH)
        return body + _checksum(body)

    def _text(self, alphabet: str, length: int) -> str:
        # 24 bits a character, far more than needed, make the bias of the remainder negligible.
        number = int.from_bytes(self._random(length * 3), "big")
        letters = []
        for _ in range(length):
            number, rest = divmod(number, len(alphabet))
            letters.append(alphabet[rest])
        return "".join(letters)


def hash_token(token: str) -> bytes:
    """Return the SHA-256 of a token: the form in which it is stored and looked up."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def hash_secret(text: str) -> str:
    """Return `hash_token` in hexadecimal digits: the stored form of other secrets."""
    return hash_token(text).hex()


def is_damaged(token: str) -> bool:
    """Return whether a text has a prefix of our tokens and a wrong checksum.

    Tokens of imported sessions have other prefixes and pass.
    """
    if not token.startswith(
        (ACCESS_PREFIX, REFRESH_PREFIX, OAUTH_REFRESH_PREFIX, APPLICATION_PASSWORD_PREFIX)
    ):
        return False
    return _checksum(token[:-_CHECK_LENGTH]) != token[-_CHECK_LENGTH:]


def parse_family(token: str, prefix: str = REFRESH_PREFIX) -> str | None:
    """Return the family of a refresh token with this prefix.

    None for other tokens, those of imported sessions, and older tokens without a family.
    """
    start = len(prefix)
    token_length = start + 2 * _FAMILY_LENGTH + _CHECK_LENGTH
    if not token.startswith(prefix) or len(token) != token_length or is_damaged(token):
        return None
    return token[start : start + _FAMILY_LENGTH]


def parse_oauth_family(token: str) -> str | None:
    """Return the family of a refresh token of the OAuth 2.0 API; see `parse_family`."""
    return parse_family(token, OAUTH_REFRESH_PREFIX)


def parse_application_password_id(password: str) -> str | None:
    """Return the ID in an application password; None for other passwords."""
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
