"""What a client needs to name a room: how many are in it, and who some of them are.

spec: client-server-api#get_matrixclientv3sync_response-200_roomsummary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from federation.protocol.events import StateKey
from federation.protocol.ids import UserID
from federation.rooms.engine import RoomEngine
from federation.rooms.snapshots import RoomSnapshot
from storage.memberships import MembershipRow, MembershipStore

HEROES: Final = 5
NAME: Final = StateKey("m.room.name", "")
ALIAS: Final = StateKey("m.room.canonical_alias", "")


@dataclass(frozen=True, slots=True)
class Summary:
    """The summary in its JSON form, and the heroes with their membership events."""

    json: dict[str, Any]
    heroes: Sequence[MembershipRow]


class RoomSummaries:
    """Makes summaries for readers of a room."""

    def __init__(self, engine: RoomEngine, memberships: MembershipStore) -> None:
        self._engine = engine
        self._memberships = memberships

    async def summarize(self, user_id: UserID, snapshot: RoomSnapshot) -> Summary:
        """The summary as the user is told it. Heroes only where the room has neither name nor alias."""
        json: dict[str, Any] = {
            "m.joined_member_count": snapshot.head.joined_count,
            "m.invited_member_count": snapshot.head.invited_count,
        }
        if await self._is_named(snapshot):
            return Summary(json, [])
        heroes = await self.find_heroes(user_id, snapshot.room.room_nid)
        json["m.heroes"] = [hero.user_id for hero in heroes]
        return Summary(json, heroes)

    async def find_heroes(self, user_id: UserID, room_nid: int) -> list[MembershipRow]:
        """The first few others who are in the room or invited; where there are none, of those who were."""
        heroes = await self._first(user_id, room_nid, "join", "invite")
        return heroes or await self._first(user_id, room_nid, "leave", "ban")

    async def _first(self, user_id: UserID, room_nid: int, *memberships: str) -> list[MembershipRow]:
        rows = [
            row
            for membership in memberships
            for row in await self._memberships.get_heroes(room_nid, membership, HEROES + 1)
            if row.user_id != user_id
        ]
        return sorted(rows, key=lambda row: row.event_nid)[:HEROES]

    async def _is_named(self, snapshot: RoomSnapshot) -> bool:
        state = await snapshot.state.load([NAME, ALIAS])
        name = state[NAME].event.content.get("name") if NAME in state else None
        alias = state[ALIAS].event.content.get("alias") if ALIAS in state else None
        return bool(name) or bool(alias)
