"""What a client needs to name a room: how many are in it, and who some of them are.

spec: client-server-api#get_matrixclientv3sync_response-200_roomsummary
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.ids import UserID
from storage.memberships import MembershipRow
from storage.room_summaries import RoomSummaryStore, Roster

HEROES: Final = 5


class Summary(msgspec.Struct, frozen=True, gc=False):
    """The summary in its JSON form, and the heroes with their membership events."""

    json: dict[str, Any]
    heroes: Sequence[MembershipRow]


class RoomSummaries:
    """Makes summaries for readers of rooms."""

    def __init__(self, store: RoomSummaryStore) -> None:
        self._store = store

    async def summarize(self, user_id: UserID, room_nids: Collection[int]) -> Mapping[int, Summary]:
        """The summaries as the user is told them. Heroes only where a room has neither name nor alias."""
        if not room_nids:
            return {}
        rosters = await self._store.get_rosters(user_id, room_nids, HEROES)
        return {room_nid: _summarize(roster) for room_nid, roster in rosters.items()}


def _summarize(roster: Roster) -> Summary:
    json: dict[str, Any] = {
        "m.joined_member_count": roster.joined_count,
        "m.invited_member_count": roster.invited_count,
    }
    if not roster.name and not roster.canonical_alias:
        json["m.heroes"] = [hero.user_id for hero in roster.heroes]
    return Summary(json, roster.heroes)
