"""Shared-secret registration: creates accounts even if registration is closed, and without the
UIA stages of `/register`.

A script requests a nonce. Then it sends the registration with an HMAC over the nonce and the
account's fields, made with the shared secret. The nonce is stored in the database, so that every
node accepts it. It is valid for a minute and for one request, even if that request fails. The error
texts "HMAC incorrect" and "User ID already taken" never change, because scripts that use this API
search for them.
"""

import hmac
from hashlib import sha1
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, InvalidParam, MatrixError, MissingParam
from homeserver.services.accounts.registration import NewAccount, Registration, RegistrationRequest
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_secret
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.uia import UIASessionRow, UIAStore

_OPERATION: Final = "POST shared-secret registration"
_NONCE_LIFETIME: Final = 60.0
_MAX_LENGTH: Final = 512
_USER_TYPES: Final = frozenset({"bot", "support"})


class SharedSecretDisabled(MatrixError):
    default_text = "Shared secret registration is not enabled"


class SignedRegistrationRequest(msgspec.Struct, frozen=True):
    """A registration with the MAC of the shared secret. `request.username` is as it was sent."""

    nonce: str | None
    mac: str | None
    request: RegistrationRequest


class SharedSecretRegistration:
    """Issues nonces and creates accounts. `secret`: None disables it."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        secret_text: SecretGenerator,
        database: Database,
        nonces: UIAStore,
        registration: Registration,
        secret: str | None,
    ) -> None:
        self._clock = clock
        self._secret_text = secret_text
        self._database = database
        self._nonces = nonces
        self._registration = registration
        self._secret = secret

    async def do_create_nonce(self) -> str:
        """Create a nonce for one request. Raises `SharedSecretDisabled`."""
        if self._secret is None:
            raise SharedSecretDisabled
        nonce = self._secret_text.nonce()
        row = UIASessionRow(
            hash_secret(nonce), int(self._clock.seconds() * 1000), _OPERATION, None, "{}"
        )
        await self._database.write("add_nonce", self._nonces.add_session, row)
        return nonce

    async def do_register(self, signed: SignedRegistrationRequest) -> NewAccount:
        """Create the account.

        Raises `SharedSecretDisabled`, `MissingParam`, `InvalidParam`, `Forbidden`, and what
        `Registration.do_register_privileged` raises.
        """
        if self._secret is None:
            raise SharedSecretDisabled
        if signed.nonce is None:
            raise MissingParam("nonce must be specified")
        if not await self._database.write("use_nonce", self._use_nonce, signed.nonce):
            raise InvalidParam("unrecognised nonce")
        request = signed.request
        _check_text("username", request.username)
        _check_text("password", request.password)
        if request.user_type is not None and request.user_type not in _USER_TYPES:
            raise InvalidParam("user_type must be bot or support")
        if signed.mac is None:
            raise MissingParam("mac must be specified")
        expected = compute_mac(self._secret, signed.nonce, request)
        if not hmac.compare_digest(expected.encode(), signed.mac.encode("utf-8", "replace")):
            raise Forbidden("HMAC incorrect")
        return await self._registration.do_register_privileged(request)

    def _use_nonce(self, txn: WriteTransaction, nonce: str) -> bool:
        nonce_hash = hash_secret(nonce)
        row = self._nonces.get_session_in(
            txn, nonce_hash, int((self._clock.seconds() - _NONCE_LIFETIME) * 1000)
        )
        return (
            row is not None
            and row.operation == _OPERATION
            and self._nonces.remove_session(txn, nonce_hash)
        )


def compute_mac(secret: str, nonce: str, request: RegistrationRequest) -> str:
    """Return the HMAC-SHA1 over nonce, name, password, `admin` or `notadmin`, and the user type if
    there is one, separated by NUL."""
    parts = [
        nonce,
        request.username or "",
        request.password or "",
        "admin" if request.is_admin else "notadmin",
    ]
    if request.user_type:
        parts.append(request.user_type)
    return hmac.new(secret.encode(), "\0".join(parts).encode("utf-8", "replace"), sha1).hexdigest()


def _check_text(name: str, text: str | None) -> None:
    if not text:
        raise MissingParam(f"{name} must be specified")
    if len(text) > _MAX_LENGTH or "\0" in text:
        raise InvalidParam(f"Invalid {name}")
