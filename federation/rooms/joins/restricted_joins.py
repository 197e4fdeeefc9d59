"""Rooms that members of other rooms may join: who of this server vouches for somebody.

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
    """Finds out who may join by being in another room."""

    def __init__(self, memberships: Memberships, rooms: RoomStore) -> None:
        self._memberships = memberships
        self._rooms = rooms

    async def find_authoriser(self, snapshot: RoomSnapshot, user_id: UserID) -> UserID | None:
        """A member of the room, of this server, who could invite the user, if the rule lets the
        user in; else None."""
        allowed = await self._allowed_rooms(snapshot)
        if not allowed or not await self._is_in_one(allowed, user_id):
            return None
        return await self._find_inviter(snapshot)

    async def lets_in(self, snapshot: RoomSnapshot, user_id: UserID) -> bool:
        """Whether the rule lets the user in, whoever may vouch for it."""
        allowed = await self._allowed_rooms(snapshot)
        return bool(allowed) and await self._is_in_one(allowed, user_id)

    async def get_authoriser(self, snapshot: RoomSnapshot, user_id: UserID) -> UserID | None:
        """As `find_authoriser`, for a user of another server; None where the room is not
        restricted.

        Raises UnableToAuthoriseJoin where another server may know better whether the user may join,
        UnableToGrantJoin where nobody of this server may invite, Forbidden.
        """
        if not await self._is_restricted(snapshot):
            return None
        allowed = await self._allowed_rooms(snapshot)
        if not await self._is_in_one(allowed, user_id):
            if await self._knows_all(allowed):
                raise Forbidden(
                    "Only members of certain other rooms may join this room, or who is invited"
                )
            raise UnableToAuthoriseJoin(
                "This server is not in all the rooms whose members may join"
            )
        inviter = await self._find_inviter(snapshot)
        if inviter is None:
            raise UnableToGrantJoin("Nobody of this server may invite into this room")
        return inviter

    async def _is_restricted(self, snapshot: RoomSnapshot) -> bool:
        rules = await snapshot.state.get(JOIN_RULES)
        return rules is not None and lets_members_in(
            snapshot.version, rules.event.content.get("join_rule")
        )

    async def _allowed_rooms(self, snapshot: RoomSnapshot) -> list[RoomID]:
        rules = await snapshot.state.get(JOIN_RULES)
        if rules is None or not await self._is_restricted(snapshot):
            return []
        return read_allowed_rooms(rules.event.content)

    async def _is_in_one(self, allowed: list[RoomID], user_id: UserID) -> bool:
        rooms = await self._rooms.get_rooms(allowed)
        own = await self._memberships.of_user(user_id)
        for room in rooms.values():
            row = own.get(room.room_nid)
            # of a room that we have left we do not know who is in it
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
