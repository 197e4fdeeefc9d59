"""Membership changes that need another server: those in rooms that this server is not in, joins
that only another server can authorise, and invites to remote users. Chooses the servers to ask, and
applies rate limits.

spec: client-server-api#room-membership
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from federation.peers.federation_policy import FederationPolicy
from federation.protocol.errors import Forbidden, GuestAccessForbidden, NotFound
from federation.protocol.ids import EventID, RoomAlias, RoomID, ServerName, UserID, domain_of
from federation.rooms.joins.invites import Invitations
from federation.rooms.joins.out_of_room import OutOfRoomMemberships
from federation.rooms.joins.remote_joins import RemoteJoins
from federation.rooms.joins.remote_leaves import RemoteLeaves
from federation.rooms.memberships import Memberships
from federation.rooms.room_servers import RoomServers, sort_by_join
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.directory.remote_directory import RemoteDirectory
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomRow, RoomStore

INVITE_PATH: Final = "/_matrix/federation/v2/invite/"
"""The path that is requested from a server when one of its users is invited."""
MAX_FORMER_SERVERS: Final = 10
"""The maximum number of servers that are used of those that were in the room when we left it."""


class RemoteRooms:
    """Makes membership changes that need another server."""

    def __init__(
        self,
        *,
        remote_memberships: RemoteJoins,
        leaving: RemoteLeaves,
        invitations: Invitations,
        directory: RemoteDirectory,
        policy: FederationPolicy,
        out_of_room: OutOfRoomMemberships,
        rooms: RoomStore,
        memberships: Memberships,
        servers: RoomServers,
        limiter: RateLimiter,
    ) -> None:
        self._remote_memberships = remote_memberships
        self._leaving = leaving
        self._invitations = invitations
        self._directory = directory
        self._policy = policy
        self._out_of_room = out_of_room
        self._rooms = rooms
        self._memberships = memberships
        self._servers = servers
        self._limiter = limiter

    async def resolve(self, alias: RoomAlias) -> tuple[RoomID, Sequence[ServerName]]:
        """Return the room of another server's alias, and servers in it. Raises NotFound, Forbidden,
        OtherServerFailed."""
        return await self._directory.get_alias(alias, refresh=True)

    async def do_join(
        self, caller: Requester, room_id: RoomID, content: Mapping[str, Any], servers: Sequence[str]
    ) -> bool:
        """Join the room; False if another user of this server did so meanwhile.

        Raises LimitExceeded, GuestAccessForbidden, NotFound, Forbidden, UnsupportedRoomVersion,
        OtherServerFailed.
        """
        if caller.is_guest:
            raise GuestAccessForbidden("Guests may only join rooms that this server is in")
        if caller.rate_limited:
            self._limiter.check(Limit.JOIN_REMOTE, caller.user_id)
        candidates = await self._candidates(caller.user_id, room_id, servers)
        return await self._remote_memberships.join(room_id, caller.user_id, content, candidates)

    async def do_join_authorised(
        self, caller: Requester, room_id: RoomID, content: Mapping[str, Any], servers: Sequence[str]
    ) -> None:
        """Join a room that this server is in but in which only another server can authorise the
        join."""
        candidates = await self._candidates(caller.user_id, room_id, servers)
        await self._remote_memberships.join_through(room_id, caller.user_id, content, candidates)

    async def do_knock(
        self, caller: Requester, room_id: RoomID, content: Mapping[str, Any], servers: Sequence[str]
    ) -> None:
        """Knock on the room. Raises NotFound, Forbidden, UnsupportedRoomVersion,
        OtherServerFailed."""
        candidates = await self._candidates(caller.user_id, room_id, servers)
        await self._remote_memberships.knock(room_id, caller.user_id, content, candidates)

    async def do_leave(self, user_id: UserID, room_id: RoomID, content: Mapping[str, Any]) -> None:
        """Reject an invite or retract a knock. Has no effect if the user has already left. Raises
        NotFound, Forbidden."""
        room, row = await self._find(user_id, room_id)
        if room is None:
            raise NotFound("This server does not know the room")
        if row is None:
            raise Forbidden("You are not in this room")
        if row.membership in ("leave", "ban"):
            return
        candidates = await self._candidates(user_id, room_id, ())
        await self._leaving.leave(room_id, user_id, content, candidates)

    def check_inviting(self, targets: Iterable[UserID]) -> None:
        """Check that the policy allows requests to the servers of these users, which have to sign
        the invites. Raises Forbidden."""
        for server in dict.fromkeys(domain_of(target) for target in targets):
            self._policy.check_destination(server, INVITE_PATH)

    async def do_invite(
        self, caller: Requester, room_id: RoomID, target: UserID, content: Mapping[str, Any]
    ) -> EventID:
        """Invite a user of another server. Raises NotFound, Forbidden, UnsupportedRoomVersion,
        OtherServerFailed."""
        return await self._invitations.do_invite(room_id, caller.user_id, target, content)

    async def _find(
        self, user_id: UserID, room_id: RoomID
    ) -> tuple[RoomRow | None, MembershipRow | None]:
        room = await self._rooms.get_room(room_id)
        if room is None:
            return None, None
        return room, (await self._memberships.of_user(user_id)).get(room.room_nid)

    async def _candidates(
        self, user_id: UserID, room_id: RoomID, requested: Iterable[str]
    ) -> list[str]:
        """Return the servers to try: of the inviter, those of the request, those that sent the
        invite or knock, former members, and the room's creator."""
        inviter: list[str] = []
        known: list[str] = []
        room, row = await self._find(user_id, room_id)
        if room is not None:
            if row is not None and row.membership == "invite":
                inviter.append(domain_of(row.sender))
            known += await self._out_of_room.find_servers(room.room_nid, user_id)
            known += sort_by_join(await self._servers.in_room(room.room_nid))[:MAX_FORMER_SERVERS]
        if ":" in room_id:
            known.append(domain_of(room_id))
        return [*inviter, *requested, *known]
