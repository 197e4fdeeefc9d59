"""Decides which invites this server's users may send and receive, by the state of accounts, the
users' invite permissions and rate limits.

spec: client-server-api#invite-permission
"""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from federation.peers.fair_semaphore import FairSemaphore
from federation.protocol.errors import (
    Forbidden,
    InviteBlocked,
    LimitExceeded,
    NotFound,
    UserAwaitingApproval,
    UserDeactivated,
    UserLocked,
    UserSuspended,
)
from federation.protocol.ids import RoomID, UserID
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.services.account_data.invite_permissions import InviteDecision, InvitePermissions
from homeserver.services.login.account_validity import AccountValidity
from storage.accounts.accounts import AccountRow, AccountStore

MAX_CONCURRENT_CLAIMS: Final = 10
"""Per address. For each, another server may have to be queried, which takes time."""
RETRY_CLAIM_MS: Final = 1_000


class InvitePolicy:
    """Checks invites of this server's users: from each other and, as `InviteeChecks`, from other
    servers."""

    def __init__(
        self,
        *,
        accounts: AccountStore,
        permissions: InvitePermissions,
        limiter: RateLimiter,
        validity: AccountValidity,
        only_admins_invite: bool,
    ) -> None:
        self._accounts = accounts
        self._permissions = permissions
        self._limiter = limiter
        self._validity = validity
        self._only_admins_invite = only_admins_invite
        self._claims: FairSemaphore[str] = FairSemaphore(
            permits=sys.maxsize,
            permits_per_key=MAX_CONCURRENT_CLAIMS,
            refusal=lambda _address: LimitExceeded(retry_after_ms=RETRY_CLAIM_MS),
        )
        """Claims in progress, by the address they came from."""

    def check_may_invite(self, caller: Requester) -> None:
        """Raises Forbidden if only administrators may invite."""
        if self._only_admins_invite and not caller.is_admin:
            raise Forbidden("Only administrators of this server may invite")

    async def check_may_still_invite(self, inviter: UserID) -> None:
        """Implement `InviterChecks.check_may_still_invite`."""
        account = (await self._accounts.get_accounts([inviter])).get(inviter)
        if account is None or account.deactivated_ts is not None:
            raise UserDeactivated
        if account.locked:
            raise UserLocked
        if account.suspended:
            raise UserSuspended
        if account.approval_pending_ts is not None:
            raise UserAwaitingApproval
        self._validity.check(account)
        if account.shadow_banned or (self._only_admins_invite and not account.is_admin):
            raise Forbidden("The inviter may not invite")

    async def check_local_invites(self, inviter: UserID, targets: Collection[UserID]) -> None:
        """Check that a user of this server may invite these users of this server. Raises NotFound,
        InviteBlocked."""
        accounts = await self._accounts.get_accounts(targets)
        for target in targets:
            _check_exists(target, accounts.get(target))
            await self._permissions.check_may_invite(inviter, target)

    async def check_may_be_invited(self, target: UserID, inviter: UserID, room_id: RoomID) -> None:
        """Check that a user of another server may invite our user. Raises Forbidden, InviteBlocked,
        NotFound, LimitExceeded."""
        _check_exists(target, (await self._accounts.get_accounts([target])).get(target))
        if self._only_admins_invite:
            raise Forbidden("Users of this server cannot be invited from other servers")
        verdict = await self._permissions.decide(target, inviter)
        if verdict is InviteDecision.BLOCK:
            raise InviteBlocked(f"{target} does not want to be invited")
        if verdict is InviteDecision.IGNORE:
            raise Forbidden("This user does not want to be invited by you")
        self._limiter.check(Limit.INVITE_ROOM, room_id)
        self._limiter.check(Limit.INVITE_USER, target)

    @contextmanager
    def count_claim(self, ip: str) -> Iterator[None]:
        """Implement `InviteeChecks.count_claim`."""
        key = address_key(ip)
        with (
            self._claims.hold_now(key),
            self._limiter.count_unless_succeeded(Limit.FALSE_INVITE_CLAIM, key),
        ):
            yield


def _check_exists(user_id: UserID, account: AccountRow | None) -> None:
    if account is None or account.deactivated_ts is not None:
        raise NotFound(f"There is no user {user_id} here")
