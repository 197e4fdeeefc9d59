"""Moderation of accounts by administrators: lock and suspend accounts, and list the last use of
each device (time and IP address). Users may list their own devices.

spec: client-server-api#server-administration, client-server-api#account-locking,
client-server-api#account-suspension
"""

from collections.abc import Sequence

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import Forbidden, InvalidParam, NotFound
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.login.last_seen import LastSeen
from storage.accounts.accounts import AccountRow
from storage.devices.devices import DeviceRow, DeviceStore


class AccountModeration:
    """Moderates accounts. The endpoints that use it admit only administrators, except for the one
    that calls `get_last_seen_devices`."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        devices: DeviceStore,
        last_seen: LastSeen,
        identity: ServerIdentity,
    ) -> None:
        self._accounts = accounts
        self._devices = devices
        self._last_seen = last_seen
        self._identity = identity

    async def get_account(self, user_id: UserID) -> AccountRow:
        """Return an account that may be moderated.

        Raises `InvalidParam`, `NotFound`, and `Forbidden` for the account of an administrator.
        """
        self._check_local(user_id)
        account = await self._accounts.get_account(user_id)
        if account.deactivated_ts is not None:
            raise NotFound("There is no such user on this server")
        if account.is_admin:
            raise Forbidden("The account belongs to an administrator")
        return account

    async def do_moderate(
        self,
        caller: Requester,
        user_id: UserID,
        *,
        locked: bool | None = None,
        suspended: bool | None = None,
    ) -> None:
        """Lock or suspend an account, or lift that; None leaves a flag unchanged.

        Raises what `get_account` raises, and `Forbidden` for the caller's own account.
        """
        if user_id == caller.user_id:
            raise Forbidden("Administrators cannot lock or suspend themselves")
        await self.get_account(user_id)
        await self._accounts.do_set_flags(
            user_id, locked=locked, suspended=suspended, by=caller.user_id
        )

    async def get_last_seen_devices(
        self, caller: Requester, user_id: UserID
    ) -> Sequence[DeviceRow]:
        """Return the devices of a user, with the time and IP address of their last use.

        Raises `Forbidden` unless the caller is the user or an administrator, `InvalidParam`,
        `NotFound`.
        """
        if user_id != caller.user_id and not caller.is_admin:
            raise Forbidden("Only administrators may list the sessions of other users")
        self._check_local(user_id)
        await self._accounts.get_account(user_id)
        await self._last_seen.flush()
        return (await self._devices.get_devices([user_id])).get(user_id, [])

    def _check_local(self, user_id: UserID) -> None:
        if not self._identity.is_local(user_id):
            raise InvalidParam("The user does not belong to this server")
