"""Decides which invites a local user receives, by the user's account data and list of ignored
users.

A blocked invite is refused when it is sent. An ignored invite is sent, but its target does not see
it. If a user blocks a sender later, earlier invites from that sender are hidden too.

spec: client-server-api#invite-permission; MSC4155 adds lists of people and servers.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import msgspec

from federation.protocol.errors import InviteBlocked
from federation.protocol.globs import Globs
from federation.protocol.ids import UserID, domain_of, host_of
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.parsed_account_data import ParsedAccountDataCache
from storage.account_data.account_data import AccountDataStore
from storage.engine.streams import Streams
from storage.rooms.memberships import MembershipRow

CONFIG_TYPES: Final = (
    "m.invite_permission_config",
    "org.matrix.msc4380.invite_permission_config",
    "org.matrix.msc4155.invite_permission_config",
)
MAX_GLOBS: Final = 1000
"""Entries of each list that count."""


class InviteDecision(Enum):
    """The decision about an invite."""

    ALLOW = "allow"
    IGNORE = "ignore"
    BLOCK = "block"


_LISTS: Final = (
    ("allowed_users", InviteDecision.ALLOW),
    ("ignored_users", InviteDecision.IGNORE),
    ("blocked_users", InviteDecision.BLOCK),
    ("allowed_servers", InviteDecision.ALLOW),
    ("ignored_servers", InviteDecision.IGNORE),
    ("blocked_servers", InviteDecision.BLOCK),
)
"""The lists in order of priority."""


class _Config(msgspec.Struct, frozen=True):
    """A parsed entry of account data."""

    blocks_all: bool
    lists: tuple[tuple[bool, Globs, InviteDecision], ...]
    """For each list: whether it has servers (not users), its globs, and the decision."""

    def judge(self, inviter: UserID) -> InviteDecision:
        user, host = inviter.lower(), host_of(domain_of(inviter)).lower()
        for is_of_servers, globs, verdict in self.lists:
            if globs.match(host if is_of_servers else user):
                return verdict
        return InviteDecision.BLOCK if self.blocks_all else InviteDecision.ALLOW


class InvitePermissions:
    """Decides about invites to local users. Used only on the reactor thread."""

    def __init__(
        self,
        *,
        account_data: AccountDataStore,
        ignored: IgnoredUsers,
        streams: Streams,
        capacity: int,
    ) -> None:
        """`capacity`: users whose settings are cached."""
        self._ignored = ignored
        self._configs = ParsedAccountDataCache(
            account_data=account_data,
            streams=streams,
            types=CONFIG_TYPES,
            parse=_parse,
            capacity=capacity,
        )

    async def decide(self, user_id: UserID, inviter: UserID) -> InviteDecision:
        """Decide about an invite to the user."""
        if inviter in await self._ignored.of_user(user_id):
            return InviteDecision.IGNORE
        verdicts = {config.judge(inviter) for config in await self._configs.of_user(user_id)}
        return (
            InviteDecision.BLOCK
            if InviteDecision.BLOCK in verdicts
            else InviteDecision.IGNORE
            if verdicts - {InviteDecision.ALLOW}
            else InviteDecision.ALLOW
        )

    async def check_may_invite(self, inviter: UserID, user_id: UserID) -> None:
        """Raise InviteBlocked if the user blocks the invite."""
        if await self.decide(user_id, inviter) is InviteDecision.BLOCK:
            raise InviteBlocked(f"{user_id} does not accept invites from you")

    async def hides(self, row: MembershipRow) -> bool:
        """Return whether the membership is an invite that is hidden from the user."""
        return (
            row.membership == "invite"
            and await self.decide(UserID(row.user_id), UserID(row.sender))
            is not InviteDecision.ALLOW
        )


def _parse(contents: Mapping[str, bytes], _user_id: UserID) -> tuple[_Config, ...]:
    return tuple(
        config
        for content in contents.values()
        if (config := _parse_one(msgspec.json.decode(content))) is not None
    )


def _parse_one(content: Mapping[str, Any]) -> _Config | None:
    """Parse a setting. Return None if it is malformed or has no effect."""
    blocks_all = content.get("default_action") == "block"
    lists: list[tuple[bool, Globs, InviteDecision]] = []
    if content.get("enabled", True) is not False:
        for name, verdict in _LISTS:
            named = content.get(name, [])
            if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
                lists = []
                break
            if named:
                lists.append((name.endswith("_servers"), Globs(named[:MAX_GLOBS]), verdict))
    return _Config(blocks_all, tuple(lists)) if blocks_all or lists else None
