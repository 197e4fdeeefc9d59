"""Deactivates accounts: ends their sessions, leaves their rooms, and removes their e-mail addresses
and telephone numbers.

Laws:
- One write deactivates the account, ends its sessions, and removes its addresses and numbers.
  Afterwards the account leaves its rooms, and its addresses and numbers are unbound at identity
  servers. If leaving or unbinding fails, it is retried, also after a restart.
- A join in progress at another server may complete after the deactivation; the account then leaves
  that room too.
- The user ID cannot be registered again.

spec: client-server-api#account-deactivation
"""

from collections.abc import Sequence
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import NotFound
from federation.protocol.ids import UserID
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.login.credential_epoch import CredentialEpoch, check_epoch
from homeserver.services.login.sessions import Sessions
from homeserver.services.threepids.identity_bindings import SUCCESS, IdentityBindings
from storage.account_data.account_data import AccountDataStore
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.profiles.profiles import ProfileStore
from storage.threepids.threepids import ThreepidStore

LATE_JOIN_MS: Final = 3 * 3600_000
"""The time in which a late join of a deactivated account is possible: a join asks twenty servers,
for five minutes each."""


class UserRooms(Protocol):
    """The rooms of a user."""

    async def leave_all_rooms(self, user_id: UserID) -> bool:
        """Leave all rooms, reject invites, retract knocks, and forget them all.

        Return False if some rooms could not be left yet. May be called again for the same user
        until it returns True.
        """
        ...


class PerUserStore(Protocol):
    """A store with data that is deleted with the account."""

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Delete the user's rows."""
        ...


class Deactivation:
    """Deactivates accounts."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        accounts: AccountStore,
        account_data: AccountDataStore,
        profiles: ProfileStore,
        sessions: Sessions,
        threepids: ThreepidStore,
        rooms: UserRooms,
        user_stores: Sequence[PerUserStore] = (),
        bindings: IdentityBindings | None = None,
    ) -> None:
        """`user_stores`: stores with data to delete with the account. `bindings`: of its addresses
        at identity servers."""
        self._clock = clock
        self._database = database
        self._accounts = accounts
        self._account_data = account_data
        self._profiles = profiles
        self._sessions = sessions
        self._threepids = threepids
        self._rooms = rooms
        self._user_stores = tuple(user_stores)
        self._bindings = bindings

    async def do_deactivate(
        self,
        user_id: UserID,
        *,
        erase: bool,
        by: UserID | None = None,
        ip: str | None = None,
        epoch: CredentialEpoch | None = None,
    ) -> str:
        """Deactivate an account permanently, then leave its rooms and unbind its addresses.

        `erase`: also delete its profile and account data, and hide the content of its events from
        users who join later. `by`: the administrator who deactivates it. `ip`, `epoch`: the IP
        address and credential epoch of the owner who does. Return the result of
        `IdentityBindings.do_unbind_now`. Raises `NotFound`, and what `check_epoch` raises.
        """
        if not await self._accounts.get_accounts([user_id]):
            raise NotFound("There is no such user on this server")
        now = int(self._clock.seconds() * 1000)

        def write(txn: WriteTransaction) -> None:
            if epoch is not None:
                check_epoch(txn, user_id, epoch)
            self._accounts.set_deactivated(txn, user_id, now, erase=erase)
            record_event(txn, user_id, AuditEvent.DEACTIVATED, now, ip=ip, by=by)
            self._sessions.remove_sessions(txn, user_id, None, ip)
            self._threepids.remove_threepids(txn, user_id)
            for store in self._user_stores:
                store.remove_user(txn, user_id)
            if self._bindings is not None:
                self._bindings.schedule_unbind_all(txn, user_id)
            if erase:
                self._account_data.remove_account_data(txn, user_id)
                self._profiles.remove_profile(txn, user_id)

        await self._database.write("deactivate", write)
        await self._rooms.leave_all_rooms(user_id)
        return SUCCESS if self._bindings is None else await self._bindings.do_unbind_now(user_id)

    async def do_leave_rooms(self, _limit: int) -> int:
        """Retry to leave the remaining rooms of deactivated accounts.

        Return 0: the job has no backlog to continue with at once.
        """
        leaving = await self._accounts.get_leaving_accounts()
        closed_before = int(self._clock.seconds() * 1000) - LATE_JOIN_MS
        for user_id, account in (await self._accounts.get_accounts(leaving)).items():
            try:
                has_left = await self._rooms.leave_all_rooms(UserID(user_id))
            except Exception:
                self._log.failure(
                    "the deactivated account {user_id} leaves its rooms later", user_id=user_id
                )
                continue  # a failure of one account must not stop the others
            if has_left and (account.deactivated_ts or 0) <= closed_before:
                await self._database.write(
                    "remove_leaving_account", self._accounts.remove_leaving_account, user_id
                )
        return 0
