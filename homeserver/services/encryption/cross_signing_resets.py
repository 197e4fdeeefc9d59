"""Permissions to replace cross-signing keys. Users give permission on the account page. A
permission is valid for all clients of the account, for ten minutes or until one of them replaces
the keys.

A client that signed in by the OAuth 2.0 API cannot replace keys without a permission, because it
cannot ask for the user's password to confirm the replacement.

spec: client-server-api#oauth-authentication
"""

from collections.abc import Mapping
from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.login.credential_epoch import CredentialEpoch, check_epoch
from homeserver.services.login.uia import UIA, AuthData, UIAOperation
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.oauth.oauth import CrossSigningResetStore

ALLOWED_MS: Final = 10 * 60 * 1000
STAGES: Final = ("m.oauth", "org.matrix.cross_signing_reset")
"""The stable name of the UIA stage, and the unstable one that older clients know."""


class OAuthStage:
    """A UIA stage that tells clients which page to open. Users complete it on that page; a client
    cannot complete it by a request."""

    def __init__(self, *, name: str, url: str) -> None:
        self.name = name
        self._url = url

    def params(self) -> Mapping[str, object] | None:
        """Return the URL of the page where users allow the replacement."""
        return {"url": self._url}

    async def check(self, auth: AuthData, operation: UIAOperation) -> str:
        """Always raises `Forbidden`: the user has not allowed the replacement yet."""
        raise Forbidden("Allow this on the account page first")

    def reserve(self, txn: WriteTransaction, result: str) -> None:
        """Do nothing: this stage reserves nothing."""

    def release(self, txn: WriteTransaction, result: str) -> None:
        """Do nothing: this stage reserves nothing."""


class CrossSigningResets:
    """Stores and checks the permissions."""

    def __init__(
        self, *, clock: IReactorTime, database: Database, store: CrossSigningResetStore, uia: UIA
    ) -> None:
        self._clock = clock
        self._database = database
        self._store = store
        self._uia = uia

    async def do_allow(self, user_id: UserID, ip: str, epoch: CredentialEpoch) -> None:
        """Allow the replacement to every session of this account. `ip`: address of the browser;
        `epoch`: credential epoch of its sign-in. Raises what `check_epoch` raises."""

        def write(txn: WriteTransaction) -> None:
            check_epoch(txn, user_id, epoch)
            self._store.set_until(txn, user_id, self._now() + ALLOWED_MS)
            record_event(txn, user_id, AuditEvent.KEYS_RESET_ALLOWED, self._now(), ip=ip)

        await self._database.write("allow_reset", write)

    async def is_allowed(self, user_id: UserID) -> bool:
        """Return whether the user has a valid permission."""
        return await self._store.get_until(user_id) > self._now()

    async def require(
        self, caller: Requester, operation: str, auth: AuthData | None, address: str
    ) -> None:
        """Raise `AuthenticationRequired` with the URL of the account page."""
        flows = [[stage] for stage in STAGES]
        await self._uia.check(UIAOperation(operation, caller.user_id, address), flows, auth)

    def complete(self, txn: WriteTransaction, caller: Requester, ip: str) -> None:
        """Use up the permission and audit the replacement, in the write that replaces the keys.
        Also called when the user confirmed in another way."""
        self._store.remove_user(txn, caller.user_id)
        record_event(
            txn,
            caller.user_id,
            AuditEvent.KEYS_REPLACED,
            self._now(),
            ip=ip,
            device_id=caller.device_id,
        )

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)
