"""Rooms that this server is not in, for our users: by whom one gets in, and what that may cost.

spec: client-server-api#room-membership
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from federation.protocol.errors import Forbidden, GuestAccessForbidden, NotFound
from federation.protocol.ids import EventID, RoomAlias, RoomID, ServerName, UserID, domain_of
from federation.rooms.memberships import Memberships
from federation.rooms.room_servers import RoomServers, longest_in
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.directory.remote_servers import Elsewhere
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomRow, RoomStore

INVITES: Final = "/_matrix/federation/v2/invite/"
"""What another server is asked when one of its users is invited."""
MAX_FORMER: Final = 10
"""How many of the servers are asked that were in a room when we left it."""


class RoomsElsewhere:
    """Changes memberships that need another server."""

    def __init__(
        self,
        elsewhere: Elsewhere,
        rooms: RoomStore,
        memberships: Memberships,
        servers: RoomServers,
        limiter: RateLimiter,
    ) -> None:
        self._elsewhere = elsewhere
        self._rooms = rooms
        self._memberships = memberships
        self._servers = servers
        self._limiter = limiter

    async def resolve(self, alias: RoomAlias) -> tuple[RoomID, Sequence[ServerName]]:
        """The room of another server's alias, and servers in it. Raises NotFound, Forbidden,
        OtherServerFailed."""
        return await self._elsewhere.directory.get_alias(alias, anew=True)

    async def do_join(
        self, caller: Requester, room_id: RoomID, content: Mapping[str, Any], servers: Sequence[str]
    ) -> bool:
        """Enter the room; False when others of this server did so meanwhile.

        Raises LimitExceeded, GuestAccessForbidden, NotFound, Forbidden, UnsupportedRoomVersion,
        OtherServerFailed.
        """
        if caller.is_guest:
            raise GuestAccessForbidden("Guests may only join rooms that this server is in")
        if caller.rate_limited:
            self._limiter.check(Limit.JOIN_REMOTE, caller.user_id)
        candidates = await self._candidates(caller.user_id, room_id, servers)
        return await self._elsewhere.memberships.join(room_id, caller.user_id, content, candidates)

    async def do_join_vouched_for(
        self, caller: Requester, room_id: RoomID, content: Mapping[str, Any], servers: Sequence[str]
    ) -> None:
        """Join a room that this server is in, where only somebody elsewhere may let the user in."""
        candidates = await self._candidates(caller.user_id, room_id, servers)
        await self._elsewhere.memberships.join_vouched_for(
            room_id, caller.user_id, content, candidates
        )

    async def do_knock(
        self, caller: Requester, room_id: RoomID, content: Mapping[str, Any], servers: Sequence[str]
    ) -> None:
        """Ask to be let in. Raises NotFound, Forbidden, UnsupportedRoomVersion,
        OtherServerFailed."""
        candidates = await self._candidates(caller.user_id, room_id, servers)
        await self._elsewhere.memberships.knock(room_id, caller.user_id, content, candidates)

    async def do_leave(self, user_id: UserID, room_id: RoomID, content: Mapping[str, Any]) -> None:
        """Decline an invite, or take a knock back. Nothing happens to who has left already. Raises
        NotFound, Forbidden."""
        room, row = await self._find(user_id, room_id)
        if room is None:
            raise NotFound("This server does not know the room")
        if row is None:
            raise Forbidden("You are not in this room")
        if row.membership in ("leave", "ban"):
            return
        candidates = await self._candidates(user_id, room_id, ())
        await self._elsewhere.leaving.leave(room_id, user_id, content, candidates)

    def check_inviting(self, targets: Iterable[UserID]) -> None:
        """Whether users of other servers may be invited: those servers have to sign it. Raises
        Forbidden (the policy)."""
        for server in dict.fromkeys(domain_of(target) for target in targets):
            self._elsewhere.policy.check_destination(server, INVITES)

    async def do_invite(
        self, caller: Requester, room_id: RoomID, target: UserID, content: Mapping[str, Any]
    ) -> EventID:
        """Invite a user of another server. Raises NotFound, Forbidden, UnsupportedRoomVersion,
        OtherServerFailed."""
        return await self._elsewhere.invitations.do_invite(room_id, caller.user_id, target, content)

    async def _find(
        self, user_id: UserID, room_id: RoomID
    ) -> tuple[RoomRow | None, MembershipRow | None]:
        room = await self._rooms.get_room(room_id)
        if room is None:
            return None, None
        return room, (await self._memberships.of_user(user_id)).get(room.room_nid)

    async def _candidates(
        self, user_id: UserID, room_id: RoomID, named: Iterable[str]
    ) -> list[str]:
        """Whom to ask: who invited, who was named, who told of the room, who was in it, whose room
        it was."""
        inviter: list[str] = []
        known: list[str] = []
        room, row = await self._find(user_id, room_id)
        if room is not None:
            if row is not None and row.membership == "invite":
                inviter.append(domain_of(row.sender))
            known += await self._elsewhere.outside.find_servers(room.room_nid, user_id)
            known += longest_in(await self._servers.in_room(room.room_nid))[:MAX_FORMER]
        if ":" in room_id:
            known.append(domain_of(room_id))
        return [*inviter, *named, *known]
