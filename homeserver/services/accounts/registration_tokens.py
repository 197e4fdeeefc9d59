"""Registration tokens: administrators create, list, change and delete them.

The audit log of the administrator's own account records each change, without the token, which is a
secret.
"""

import re
from collections.abc import Sequence
from typing import Final

from msgspec import UNSET, UnsetType
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import UserID
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.tokens.secret_tokens import SecretGenerator
from storage.accounts.registration_tokens import RegistrationTokenRow, RegistrationTokenStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction

MAX_TOKEN_LENGTH: Final = 64
MAX_LISTED: Final = 10_000
"""Maximum number of tokens in a list."""
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_MAX_INTEGER: Final = 2**53
_ATTEMPTS: Final = 5


class RegistrationTokens:
    """Lists, creates, changes and deletes registration tokens."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        secret_text: SecretGenerator,
        database: Database,
        store: RegistrationTokenStore,
    ) -> None:
        self._clock = clock
        self._secret_text = secret_text
        self._database = database
        self._store = store

    async def get_all(self, *, valid: bool | None = None) -> Sequence[RegistrationTokenRow]:
        """Return the tokens in their own order. `valid`: only those that are (not) valid now."""
        rows = await self._store.get_registration_tokens(MAX_LISTED)
        return [row for row in rows if valid is None or self._is_valid(row) is valid]

    async def get(self, token: str) -> RegistrationTokenRow:
        """Return a token. Raises `NotFound`."""
        row = await self._store.get_registration_token(token) if _TOKEN.fullmatch(token) else None
        if row is None:
            raise NotFound("There is no such registration token")
        return row

    async def do_create(
        self,
        token: str | None,
        length: int,
        uses_allowed: int | None,
        expires_ts: int | None,
        by: UserID,
    ) -> RegistrationTokenRow:
        """Create a token. `token`: its text; None: generate one of `length` characters.

        `uses_allowed`, `expires_ts`: its limits; None: unlimited. `by`: the administrator. Raises
        `InvalidParam`.
        """
        if token is not None and not _TOKEN.fullmatch(token):
            raise InvalidParam(
                f"A token has 1 to {MAX_TOKEN_LENGTH} of the characters A-Z a-z 0-9 . _ ~ -"
            )
        if not 1 <= length <= MAX_TOKEN_LENGTH:
            raise InvalidParam(f"length must be between 1 and {MAX_TOKEN_LENGTH}")
        self._check(uses_allowed, expires_ts)
        for _ in range(1 if token is not None else _ATTEMPTS):
            text = token or self._secret_text.registration_token(length)
            row = RegistrationTokenRow(text, uses_allowed=uses_allowed, expires_ts=expires_ts)
            if await self._database.write("add_registration_token", self._add, row, by):
                return row
        raise InvalidParam("The token already exists")

    async def do_change(
        self,
        token: str,
        uses_allowed: int | UnsetType | None,
        expires_ts: int | UnsetType | None,
        by: UserID,
    ) -> RegistrationTokenRow:
        """Change the limits of a token; UNSET leaves one unchanged.

        Raises `NotFound`, `InvalidParam`.
        """
        await self.get(token)
        self._check(
            None if uses_allowed is UNSET else uses_allowed,
            None if expires_ts is UNSET else expires_ts,
        )

        def write(txn: WriteTransaction) -> RegistrationTokenRow | None:
            row = self._store.get_registration_token_in(txn, token)
            if row is not None:
                uses = row.uses_allowed if uses_allowed is UNSET else uses_allowed
                until = row.expires_ts if expires_ts is UNSET else expires_ts
                self._store.set_limits(txn, token, uses, until)
                record_event(txn, by, AuditEvent.REGISTRATION_TOKEN_CHANGED, self._now(), by=by)
            return self._store.get_registration_token_in(txn, token)

        changed = await self._database.write("set_registration_token", write)
        return await self.get(token) if changed is None else changed

    async def do_remove(self, token: str, by: UserID) -> None:
        """Delete a token. Raises `NotFound`."""
        await self.get(token)

        def write(txn: WriteTransaction) -> None:
            if self._store.remove_registration_token(txn, token):
                record_event(txn, by, AuditEvent.REGISTRATION_TOKEN_ENDED, self._now(), by=by)

        await self._database.write("remove_registration_token", write)

    def _add(self, txn: WriteTransaction, row: RegistrationTokenRow, by: UserID) -> bool:
        is_new = self._store.add_registration_token(txn, row)
        if is_new:
            record_event(txn, by, AuditEvent.REGISTRATION_TOKEN_MADE, self._now(), by=by)
        return is_new

    def _check(self, uses_allowed: int | None, expires_ts: int | None) -> None:
        if uses_allowed is not None and not 0 <= uses_allowed < _MAX_INTEGER:
            raise InvalidParam("uses_allowed must be null or not negative")
        if expires_ts is not None and not self._now() < expires_ts < _MAX_INTEGER:
            raise InvalidParam("expiry_time must be null or in the future, in ms since 1970")

    def _is_valid(self, row: RegistrationTokenRow) -> bool:
        has_uses_left = row.uses_allowed is None or row.pending + row.completed < row.uses_allowed
        return has_uses_left and (row.expires_ts is None or row.expires_ts > self._now())

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)
