"""Decides who may join a restricted room, and finds a local member who can authorise the join.

A user may join without an invite if they are in one of the rooms that the join rule lists under
`allow`. A member can authorise the join if their power level lets them invite.

spec: client-server-api#restricted-rooms, server-server-api#restricted-rooms
"""

from typing import Final

from federation.protocol.errors import Forbidden, UnableToAuthoriseJoin, UnableToGrantJoin
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID
from federation.protocol.join_rules import lets_members_in, read_allowed_rooms
from federation.protocol.power_levels import PowerLevels
from federation.rooms.memberships import Memberships
from federation.rooms.snapshot import POWER_LEVELS, RoomSnapshot
from storage.rooms.rooms import RoomStore

JOIN_RULES: Final = StateKey("m.room.join_rules", "")


class RestrictedJoins:
    """Decides who may join a restricted room."""

    def __init__(self, *, memberships: Memberships, rooms: RoomStore) -> None:
        self._memberships = memberships
        self._rooms = rooms

    async def find_authoriser(self, snapshot: RoomSnapshot, user_id: UserID) -> UserID | None:
        """Return a local member of the room with the power to invite, if the user may join; else
        None."""
        allowed = await self._get_allowed_rooms(snapshot)
        if not allowed or not await self._is_in_any(allowed, user_id):
            return None
        return await self._find_inviter(snapshot)

    async def allows_join(self, snapshot: RoomSnapshot, user_id: UserID) -> bool:
        """Return whether the join rule allows the user, whether or not we can authorise it."""
        allowed = await self._get_allowed_rooms(snapshot)
        return bool(allowed) and await self._is_in_any(allowed, user_id)

    async def get_authoriser(self, snapshot: RoomSnapshot, user_id: UserID) -> UserID | None:
        """Find an authorising user for a remote user; return None if the room is not restricted.

        Raises UnableToAuthoriseJoin if another server may know better whether the user may join,
        UnableToGrantJoin if no local user may invite, Forbidden.
        """
        if not await self._is_restricted(snapshot):
            return None
        allowed = await self._get_allowed_rooms(snapshot)
        if not await self._is_in_any(allowed, user_id):
            if await self._knows_all(allowed):
                raise Forbidden(
                    "Only invited users and members of certain other rooms may join this room"
                )
            raise UnableToAuthoriseJoin(
                "This server is not in all the rooms whose members may join"
            )
        inviter = await self._find_inviter(snapshot)
        if inviter is None:
            raise UnableToGrantJoin("No user of this server may invite into this room")
        return inviter

    async def _is_restricted(self, snapshot: RoomSnapshot) -> bool:
        rules = await snapshot.state.get(JOIN_RULES)
        return rules is not None and lets_members_in(
            snapshot.version, rules.event.content.get("join_rule")
        )

    async def _get_allowed_rooms(self, snapshot: RoomSnapshot) -> list[RoomID]:
        rules = await snapshot.state.get(JOIN_RULES)
        if rules is None or not await self._is_restricted(snapshot):
            return []
        return read_allowed_rooms(rules.event.content)

    async def _is_in_any(self, allowed: list[RoomID], user_id: UserID) -> bool:
        rooms = await self._rooms.get_rooms(allowed)
        memberships = await self._memberships.of_user(user_id)
        for room in rooms.values():
            row = memberships.get(room.room_nid)
            # once we have left a room, we do not know its members
            if (
                row is not None
                and row.membership == "join"
                and await self._memberships.local_members(room.room_nid)
            ):
                return True
        return False

    async def _knows_all(self, allowed: list[RoomID]) -> bool:
        rooms = await self._rooms.get_rooms(allowed)
        if len(rooms) < len(set(allowed)):
            return False
        return all(
            [bool(await self._memberships.local_members(room.room_nid)) for room in rooms.values()]
        )

    async def _find_inviter(self, snapshot: RoomSnapshot) -> UserID | None:
        levels = await snapshot.state.get(POWER_LEVELS)
        create = await snapshot.create_event()
        power = PowerLevels.of(snapshot.version, None if levels is None else levels.event, create)
        for member in sorted(await self._memberships.local_members(snapshot.room.room_nid)):
            if power.user_level(UserID(member)) >= power.invite:
                return UserID(member)
        return None
