"""Common code for the validation of e-mail addresses and telephone numbers.

Below, an address is an e-mail address or a telephone number.

Laws:
- A validation counts only for the purpose for which it was requested, such as a password reset.
- A validation can be used once, within the lifetime that is configured for its medium (`EMAIL` or
  `MSISDN`).

spec: client-server-api#adding-account-administrative-contact-information
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from federation.protocol.errors import InvalidParam, ThreepidAuthFailed, ThreepidDenied
from homeserver.services.pages.external_links import parse_web_link
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_secret
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.threepids.threepids import ThreepidStore, ValidationRow

EMAIL: Final = "email"
MSISDN: Final = "msisdn"
"""A telephone number: the digits of E.164, without a plus sign. spec:
appendices#pstn-phone-numbers"""
REGISTER: Final = "register"
ADD: Final = "add"
PASSWORD_RESET: Final = "password"
MAX_NEXT_LINK_LENGTH: Final = 2000
_CLIENT_SECRET: Final = re.compile(r"[0-9a-zA-Z.=_-]{1,255}")


class ValidatedThreepid(msgspec.Struct, frozen=True):
    """A validated address, as stored in a session of user-interactive authentication."""

    sid: str
    address: str
    validated_ts: int
    medium: str = EMAIL


def check_client_secret(client_secret: str) -> None:
    """Raise `InvalidParam` for a malformed client secret."""
    if not _CLIENT_SECRET.fullmatch(client_secret):
        raise InvalidParam("client_secret must have 1 to 255 letters, digits and .=_-")


class ThreepidValidation:
    """Begins, checks and uses validations."""

    def __init__(
        self,
        *,
        now_ms: Callable[[], int],
        database: Database,
        store: ThreepidStore,
        secret_text: SecretGenerator,
        allowed: Mapping[str, Sequence[re.Pattern[str]]] | None,
        lifetimes_ms: Mapping[str, int],
        next_link_hosts: Collection[str] | None,
    ) -> None:
        """`allowed`: patterns by medium, one of which an address must match; None: no restriction.

        `lifetimes_ms`: of a validation, by medium. `next_link_hosts`: hosts allowed in `next_link`;
        None: all.
        """
        self._now_ms = now_ms
        self._database = database
        self._store = store
        self._secret_text = secret_text
        self._allowed = allowed
        self._lifetimes_ms = lifetimes_ms
        self._next_hosts = next_link_hosts

    def check_next_link(self, next_link: str | None) -> None:
        """Raise `InvalidParam` for a next link that is not allowed."""
        if next_link is not None and not self.allows_next_link(next_link):
            raise InvalidParam("next_link must be a web address on a host that this server allows")

    def allows_next_link(self, next_link: str) -> bool:
        """Return whether this next link is allowed."""
        parts = parse_web_link(next_link) if len(next_link) <= MAX_NEXT_LINK_LENGTH else None
        return parts is not None and (
            self._next_hosts is None or parts.hostname in self._next_hosts
        )

    def begin(
        self,
        txn: WriteTransaction,
        purpose: str,
        medium: str,
        address: str,
        client_secret: str,
        send_attempt: int,
        next_link: str | None,
    ) -> tuple[ValidationRow, bool]:
        """Return the new or existing validation of a client, and whether to send a message.

        The caller writes the row. A repeated request needs no message.
        """
        secret_hash = hash_secret(client_secret)
        known = self._store.get_client_validation(txn, purpose, medium, address, secret_hash)
        if known is not None and not self.is_expired(known):
            if send_attempt <= known.send_attempt:
                return known, False
            return replace(known, send_attempt=send_attempt, next_link=next_link), True
        if known is not None:
            self._store.remove_validation(txn, known.sid)
        sid, now = self._secret_text.session_id(), self._now_ms()
        row = ValidationRow(
            sid, purpose, medium, address, secret_hash, None, send_attempt, next_link, now
        )
        return row, True

    async def find(self, purpose: str, medium: str, address: str, client_secret: str) -> str | None:
        """Return the ID of a client's validation; None if there is none.

        `address`: in its canonical form.
        """

        def read(txn: Transaction) -> str | None:
            row = self._store.get_client_validation(
                txn, purpose, medium, address, hash_secret(client_secret)
            )
            return None if row is None else row.sid

        return await self._database.read("find_validation", read)

    async def check_validated(
        self, purpose: str, creds: object, medium: str | None = None
    ) -> ValidatedThreepid:
        """Return the address that a client has validated for a purpose.

        `medium`: the required medium; None: any. Raises `ThreepidAuthFailed`, `ThreepidDenied`,
        `InvalidParam`.
        """
        if not isinstance(creds, Mapping):
            raise InvalidParam("threepid_creds must be an object")
        sid, client_secret = creds.get("sid"), creds.get("client_secret")
        if not isinstance(sid, str) or not isinstance(client_secret, str):
            raise InvalidParam("threepid_creds needs sid and client_secret")
        row = await self._store.get_validation(sid) if "\0" not in sid else None
        if (
            row is None
            or row.client_secret_hash != hash_secret(client_secret)
            or row.purpose != purpose
            or medium not in (None, row.medium)
            or self.is_expired(row)
        ):
            raise ThreepidAuthFailed("The validation is unknown or expired; request a new message")
        if row.validated_ts is None:
            raise ThreepidAuthFailed(
                "The address has not been validated yet: open the link in the e-mail"
                if row.medium == EMAIL
                else "The number has not been validated yet: enter the code"
            )
        if purpose != PASSWORD_RESET:
            # the current rules apply, not those at the time of the message
            self.check_allowed(row.medium, row.address)
        return ValidatedThreepid(row.sid, row.address, row.validated_ts, row.medium)

    def use(self, txn: WriteTransaction, proof: ValidatedThreepid) -> None:
        """Consume a validation. Raises `ThreepidAuthFailed` if another request has used it."""
        if not self._store.remove_validation(txn, proof.sid):
            raise ThreepidAuthFailed("The validation has already been used")

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` expired validations; return the number."""
        return await self._store.remove_old_validations(
            self._now_ms() - 2 * max(self._lifetimes_ms.values()), limit
        )

    def check_allowed(self, medium: str, address: str) -> None:
        """Raise `ThreepidDenied` for an address that the operator does not allow."""
        if self._allowed is not None and not any(
            pattern.fullmatch(address) for pattern in self._allowed.get(medium, ())
        ):
            raise ThreepidDenied

    def expired_before(self, medium: str) -> int:
        """Return the time up to which validations of a medium have expired."""
        return self._now_ms() - self._lifetimes_ms[medium]

    def is_expired(self, row: ValidationRow) -> bool:
        """Return whether a validation has expired."""
        return row.created_ts <= self.expired_before(row.medium)
