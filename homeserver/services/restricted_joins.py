"""Rooms that members of other rooms may join: who of this server vouches for somebody.

spec: client-server-api#restricted-rooms
"""

from collections.abc import Sequence
from typing import Final

from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID
from federation.protocol.join_rules import lets_members_in, read_allowed_rooms
from federation.protocol.power_levels import PowerLevels
from federation.rooms.memberships import Memberships
from federation.rooms.snapshots import POWER_LEVELS, RoomSnapshot
from storage.rooms import RoomStore

JOIN_RULES: Final = StateKey("m.room.join_rules", "")


class RestrictedJoins:
    """Finds out who may join by being in another room."""

    def __init__(self, memberships: Memberships, rooms: RoomStore) -> None:
        self._memberships = memberships
        self._rooms = rooms

    async def find_authoriser(self, snapshot: RoomSnapshot, user_id: UserID) -> UserID | None:
        """A member of the room, of this server, who could invite the user, if the rule lets the user in; else None."""
        rules = await snapshot.state.get(JOIN_RULES)
        if (
            rules is None
            or not lets_members_in(snapshot.version, rules.event.content.get("join_rule"))
            or not await self._is_in_one(read_allowed_rooms(rules.event.content), user_id)
        ):
            return None
        levels = await snapshot.state.get(POWER_LEVELS)
        create = await snapshot.create_event()
        power = PowerLevels.of(snapshot.version, None if levels is None else levels.event, create)
        for member in sorted(await self._memberships.local_members(snapshot.room.room_nid)):
            if power.user_level(UserID(member)) >= power.invite:
                return UserID(member)
        return None

    async def _is_in_one(self, room_ids: Sequence[RoomID], user_id: UserID) -> bool:
        rooms = await self._rooms.get_rooms(room_ids)
        own = await self._memberships.of_user(user_id)
        return any((row := own.get(room.room_nid)) is not None and row.membership == "join" for room in rooms.values())
