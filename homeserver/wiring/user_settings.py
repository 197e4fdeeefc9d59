"""Wires the settings by which users restrict what others may do: ignored users, invite
permissions."""

from homeserver.observe.caches import CountedCache
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.rooms.invite_policy import InvitePolicy
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.foundation import Foundation
from storage.account_data.account_data import AccountDataStore


class UserSettingParts:
    """Ignored users, and who may invite whom."""

    def __init__(self, *, base: Foundation, accounts: AccountParts) -> None:
        streams, capacity = base.database.streams, base.sizes.users
        store = AccountDataStore(base.database)
        self.ignored = IgnoredUsers(account_data=store, streams=streams, capacity=capacity)
        self.permissions = InvitePermissions(
            account_data=store, ignored=self.ignored, streams=streams, capacity=capacity
        )
        self.invite_policy = InvitePolicy(
            accounts=accounts.stores.accounts,
            permissions=self.permissions,
            limiter=base.limiter,
            validity=accounts.validity,
            only_admins_invite=base.config.rooms.block_non_admin_invites,
        )

    @property
    def caches(self) -> dict[str, CountedCache]:
        """Return the caches that have metrics."""
        return {"ignored_users": self.ignored.cache}
