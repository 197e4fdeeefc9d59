"""Which invites of our users by others elsewhere are taken: what people have said of invites, and how many they get.

spec: client-server-api#invite-permission
"""

from federation.protocol.endpoint import Limit
from federation.protocol.errors import Forbidden, InviteBlocked, NotFound
from federation.protocol.ids import RoomID, UserID
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.invite_permissions import InvitePermissions, Verdict
from storage.accounts import AccountStore


class InvitePolicy:
    """Checks invites of this server's users: the `InviteGate` of invites from other servers."""

    def __init__(
        self,
        accounts: AccountStore,
        permissions: InvitePermissions,
        limiter: RateLimiter,
        *,
        only_admins_invite: bool,
    ) -> None:
        self._accounts = accounts
        self._permissions = permissions
        self._limiter = limiter
        self._only_admins_invite = only_admins_invite

    async def check_may_be_invited(self, target: UserID, inviter: UserID, room_id: RoomID) -> None:
        """Whether a user of another server may invite ours. Raises Forbidden, InviteBlocked, NotFound, LimitExceeded."""
        account = (await self._accounts.get_accounts([target])).get(target)
        if account is None or account.deactivated_ts is not None:
            raise NotFound(f"There is no user {target} here")
        if self._only_admins_invite:
            raise Forbidden("People of this server cannot be invited from elsewhere")
        verdict = await self._permissions.judge(target, inviter)
        if verdict is Verdict.BLOCK:
            raise InviteBlocked(f"{target} does not want to be invited")
        if verdict is Verdict.IGNORE:
            raise Forbidden("This user does not want to be invited by you")
        self._limiter.check(Limit.INVITE_ROOM, room_id)
        self._limiter.check(Limit.INVITE_USER, target)
