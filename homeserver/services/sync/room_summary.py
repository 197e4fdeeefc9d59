"""Room summaries: the heroes and member counts by which a client names a room.

The summary of a room with a name or an alias is the same for all its members. It is cached until
the room's state or members change. A summary that was read during such a change is not cached. The
summary of a room with partial state is not cached either, because its members become known without
a change on the stream.

spec: client-server-api#get_matrixclientv3sync_response-200_roomsummary
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.partial_rooms import PartialRooms
from storage.cache import StreamCache
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventRow, EventSummary
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.summaries import RoomNaming, RoomSummaryStore

HEROES: Final = 5


class RoomSummary(msgspec.Struct, frozen=True, gc=False):
    """The JSON of a summary, and the memberships of its heroes."""

    json: dict[str, Any]
    heroes: Sequence[MembershipRow]


class RoomSummaries:
    """Reads and caches summaries. Use this class only on the reactor thread."""

    def __init__(
        self, *, store: RoomSummaryStore, partial: PartialRooms, streams: Streams, capacity: int
    ) -> None:
        """`capacity`: the number of rooms whose summaries are cached."""
        self._store = store
        self._partial = partial
        self._named: StreamCache[int, RoomSummary] = StreamCache(
            streams,
            Topic.EVENT,
            Topic.MEMBERSHIP,
            Topic.PARTIAL_STATE,
            Topic.REDACTED,
            Topic.OUTLIER_PLACED,
            keys_of=_rooms_of,
            max_entries=capacity,
        )

    async def summarize(
        self, user_id: UserID, room_nids: Collection[int]
    ) -> Mapping[int, RoomSummary]:
        """Return the summaries for one user. Only a room without name and alias has heroes."""
        found = self._named.find_many(room_nids)
        if len(found) == len(room_nids):
            return found
        since = self._named.changes
        partial = await self._partial.get_all()
        missing = [room_nid for room_nid in room_nids if room_nid not in found]
        for room_nid, naming in (await self._store.get_namings(user_id, missing, HEROES)).items():
            summary = found[room_nid] = _summarize(naming)
            part = partial.get(room_nid)
            is_complete = part is None or part.completed_position is not None
            if is_complete and (naming.name or naming.canonical_alias):
                self._named.put(room_nid, summary, since=since)
        return found


def _rooms_of(change: Change) -> Sequence[int] | None:
    """Return the room whose summary may have changed; None for all rooms."""
    row = change.detail
    if isinstance(row, EventRow) and row.state_key is None and row.current_root is None:
        return ()  # a message, which changes no state
    if isinstance(row, EventRow | EventSummary | MembershipRow | PartialRoom):
        return (row.room_nid,)
    return None


def _summarize(naming: RoomNaming) -> RoomSummary:
    json: dict[str, Any] = {
        "m.joined_member_count": naming.joined_count,
        "m.invited_member_count": naming.invited_count,
    }
    if not naming.name and not naming.canonical_alias:
        json["m.heroes"] = [hero.user_id for hero in naming.heroes]
    return RoomSummary(json, naming.heroes)
