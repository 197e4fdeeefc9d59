"""The end of an account.

Laws:
- The account is closed and its sessions are ended in one write; it leaves its rooms after that, and
  what it could not leave later, also where the server stopped in between. So it is with its
  addresses at identity servers.
- Where another server was just letting it into a room, it comes in after that, and leaves once
  more.
- The user id stays taken.

spec: client-server-api#account-deactivation
"""

from collections.abc import Sequence
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import NotFound
from federation.protocol.ids import UserID
from homeserver.services.audit.audit import Happened, note
from homeserver.services.login.credential_epoch import Era, check_era
from homeserver.services.login.sessions import Sessions
from homeserver.services.threepids.identity_bindings import SUCCESS, IdentityBindings
from storage.account_data.account_data import AccountDataStore
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.profiles.profiles import ProfileStore
from storage.threepids.threepids import ThreepidStore

LATE_JOINS_MS: Final = 3 * 3600_000
"""For so long it is looked whether a closed account has come into a room: of a room, twenty servers
are asked for five minutes each."""


class RoomsOfUser(Protocol):
    """The rooms that a user is in."""

    async def leave_all(self, user_id: UserID) -> bool:
        """Leave them all, reject invites, take back knocks, and forget them. False: some could not
        be left for now. May be called again for the same user, until it returns True."""
        ...


class Forgets(Protocol):
    """Something that is kept of users while they have an account."""

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove all that is kept of a user."""
        ...


class Deactivation:
    """Closes accounts."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        accounts: AccountStore,
        account_data: AccountDataStore,
        profiles: ProfileStore,
        sessions: Sessions,
        threepids: ThreepidStore,
        rooms: RoomsOfUser,
        kept_by_user: Sequence[Forgets] = (),
        bindings: IdentityBindings | None = None,
    ) -> None:
        """`kept_by_user`: what an account that ends has no more; `bindings`: by which its owner was
        found at an identity server."""
        self._clock = clock
        self._database = database
        self._accounts = accounts
        self._account_data = account_data
        self._profiles = profiles
        self._sessions = sessions
        self._threepids = threepids
        self._rooms = rooms
        self._kept_by_user = tuple(kept_by_user)
        self._bindings = bindings

    async def do_deactivate(
        self,
        user_id: UserID,
        *,
        erase: bool,
        by: UserID | None = None,
        ip: str | None = None,
        era: Era | None = None,
    ) -> str:
        """End an account for good, then leave its rooms; what became of its addresses at identity
        servers (`IdentityBindings.try_unbind`); `erase`: take away its profile and account data
        too, and mark it so that who comes later sees no content of its events; `by`: the
        administrator who does; `ip`: whence its owner does, and `era`: in which of the account they
        have proved to be. Raises `NotFound`, and as `check_era`."""
        if not await self._accounts.get_accounts([user_id]):
            raise NotFound("There is no such user here")
        now = int(self._clock.seconds() * 1000)

        def write(txn: WriteTransaction) -> None:
            if era is not None:
                check_era(txn, user_id, era)
            self._accounts.set_deactivated(txn, user_id, now, erase=erase)
            note(txn, user_id, Happened.DEACTIVATED, now, ip=ip, by=by)
            self._sessions.remove_sessions(txn, user_id, None, ip)
            self._threepids.remove_threepids(txn, user_id)
            for store in self._kept_by_user:
                store.remove_user(txn, user_id)
            if self._bindings is not None:
                self._bindings.note_closed(txn, user_id)
            if erase:
                self._account_data.remove_account_data(txn, user_id)
                self._profiles.remove_profile(txn, user_id)

        await self._database.write("deactivate", write)
        await self._rooms.leave_all(user_id)
        return SUCCESS if self._bindings is None else await self._bindings.try_unbind(user_id)

    async def do_resume_departures(self, _limit: int) -> int:
        """Let deactivated accounts leave the rooms that they have not left yet; nothing is waited
        for, so none is left for now."""
        departing = await self._accounts.get_departing_accounts()
        closed_before = int(self._clock.seconds() * 1000) - LATE_JOINS_MS
        for user_id, account in (await self._accounts.get_accounts(departing)).items():
            try:
                has_left = await self._rooms.leave_all(UserID(user_id))
            except Exception:
                self._log.failure(
                    "the closed account {user_id} leaves its rooms later", user_id=user_id
                )
                continue  # which keeps no other account in its rooms
            if has_left and (account.deactivated_ts or 0) <= closed_before:
                await self._database.write(
                    "remove_departing_account", self._accounts.remove_departing_account, user_id
                )
        return 0
