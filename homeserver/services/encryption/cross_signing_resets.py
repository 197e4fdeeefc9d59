"""Who has allowed, on the account page, that their keys of cross-signing are replaced: for ten
minutes, once.

An app that signed somebody in by the OAuth 2.0 API asks for no password, so it cannot confirm this
by itself.

spec: client-server-api#oauth-authentication
"""

from collections.abc import Mapping
from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from homeserver.services.audit.audit import Happened, note
from homeserver.services.login.credential_epoch import Era, check_era
from homeserver.services.login.uia import UIA, AuthData, Operation
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.oauth.oauth import CrossSigningResetStore

ALLOWED_MS: Final = 10 * 60 * 1000
STAGES: Final = ("m.oauth", "org.matrix.cross_signing_reset")
"""The name of the specification, and that of clients from before it."""


class OAuthStage:
    """Told to clients, with where to send people; it is completed there, and not by what a client
    sends."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._url = url

    def params(self) -> Mapping[str, object] | None:
        """Where people allow it."""
        return {"url": self._url}

    async def check(self, auth: AuthData, operation: Operation) -> str:
        """Raises `Forbidden`: it was not allowed yet."""
        raise Forbidden("This is to be allowed on the account page first")

    def add(self, txn: WriteTransaction, result: str) -> None:
        """Holds nothing."""

    def remove(self, txn: WriteTransaction, result: str) -> None:
        """Held nothing."""


class CrossSigningResets:
    """Remembers who has allowed it."""

    def __init__(
        self, clock: IReactorTime, database: Database, store: CrossSigningResetStore, uia: UIA
    ) -> None:
        self._clock = clock
        self._database = database
        self._store = store
        self._uia = uia

    async def do_allow(self, user_id: UserID, ip: str, era: Era) -> None:
        """Allow it, to whoever uses this account. `ip`: whence their browser asks; `era`: in which
        they are signed in there. Raises as `check_era`."""

        def write(txn: WriteTransaction) -> None:
            check_era(txn, user_id, era)
            self._store.set_until(txn, user_id, self._now() + ALLOWED_MS)
            note(txn, user_id, Happened.KEYS_RESET_ALLOWED, self._now(), ip=ip)

        await self._database.write("allow_reset", write)

    async def is_allowed(self, user_id: UserID) -> bool:
        """Whether it is allowed now."""
        return await self._store.get_until(user_id) > self._now()

    async def ask(
        self, caller: Requester, operation: str, auth: AuthData | None, address: str
    ) -> None:
        """Raises `AuthenticationRequired`, with where it is allowed."""
        flows = [[stage] for stage in STAGES]
        await self._uia.check(Operation(operation, caller.user_id, address), flows, auth)

    def end(self, txn: WriteTransaction, caller: Requester, ip: str) -> None:
        """In the write that replaces keys: it was done, whether it had to be allowed here or was
        confirmed otherwise."""
        self._store.remove_user(txn, caller.user_id)
        note(
            txn,
            caller.user_id,
            Happened.KEYS_REPLACED,
            self._now(),
            ip=ip,
            device_id=caller.device_id,
        )

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)
