"""What a client needs to name a room: how many are in it, and who some of them are.

Of a room with a name or an alias it is the same for everyone: so it is kept until the stream tells
of a change of the room's state or members. What was read while such a change came in is not kept,
nor is what is said of a room of whose state a part is lacking: its members become known without the
stream.

spec: client-server-api#get_matrixclientv3sync_response-200_roomsummary
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.partial_rooms import PartialRooms
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventRow
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.summaries import RoomSummaryStore, Roster

HEROES: Final = 5
FORGETS_ALL: Final = frozenset(
    {Topic.EVENT, Topic.MEMBERSHIP, Topic.COMPLETENESS, Topic.REDACTED, Topic.PLACED}
)
"""What may be about any room, where the change does not say about which."""


class Summary(msgspec.Struct, frozen=True, gc=False):
    """The summary in its JSON form, and the heroes with their membership events."""

    json: dict[str, Any]
    heroes: Sequence[MembershipRow]


class RoomSummaries:
    """Makes summaries for readers of rooms. For the reactor thread."""

    def __init__(
        self, store: RoomSummaryStore, partial: PartialRooms, streams: Streams, *, capacity: int
    ) -> None:
        """`capacity`: of how many rooms they are kept."""
        self._store = store
        self._partial = partial
        self._capacity = capacity
        self._named: dict[int, Summary] = {}
        self._changes_heard = 0
        streams.subscribe(
            self._hear,
            Topic.EVENT,
            Topic.MEMBERSHIP,
            Topic.COMPLETENESS,
            Topic.REDACTED,
            Topic.PLACED,
        )
        streams.watch(self._heed_others)

    async def summarize(self, user_id: UserID, room_nids: Collection[int]) -> Mapping[int, Summary]:
        """The summaries as the user is told them. Heroes only where a room has neither name nor
        alias."""
        found = {
            room_nid: self._named[room_nid] for room_nid in room_nids if room_nid in self._named
        }
        if len(found) == len(room_nids):
            return found
        heard = self._changes_heard
        partial = await self._partial.get_all()
        missing = [room_nid for room_nid in room_nids if room_nid not in found]
        for room_nid, roster in (await self._store.get_rosters(user_id, missing, HEROES)).items():
            summary = found[room_nid] = _summarize(roster)
            part = partial.get(room_nid)
            is_whole = part is None or part.completed is not None
            if (
                is_whole
                and (roster.name or roster.canonical_alias)
                and heard == self._changes_heard
            ):
                self._keep(room_nid, summary)
        return found

    def find_named(self, room_nid: int) -> Summary | None:
        """The summary of a room that has a name or an alias, which is the same for everyone, if it
        is in memory."""
        return self._named.get(room_nid)

    def _keep(self, room_nid: int, summary: Summary) -> None:
        if len(self._named) >= self._capacity:
            self._named.clear()
        self._named[room_nid] = summary

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow):
                if row.state_key is None and row.current_root is None:
                    continue  # a message, which changes no state
                self._forget(row.room_nid)
            elif isinstance(row, MembershipRow | PartialRoom):
                self._forget(row.room_nid)
            elif change.topic in FORGETS_ALL:
                self._heed_others(change.position, change.position)

    def _heed_others(self, _after: int, _upto: int) -> None:
        """What changed, in which room, is not known here."""
        self._changes_heard += 1
        self._named.clear()

    def _forget(self, room_nid: int) -> None:
        self._changes_heard += 1
        self._named.pop(room_nid, None)


def _summarize(roster: Roster) -> Summary:
    json: dict[str, Any] = {
        "m.joined_member_count": roster.joined_count,
        "m.invited_member_count": roster.invited_count,
    }
    if not roster.name and not roster.canonical_alias:
        json["m.heroes"] = [hero.user_id for hero in roster.heroes]
    return Summary(json, roster.heroes)
