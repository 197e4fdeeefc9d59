"""What somebody has missed: the rooms in which something waits that would have been pushed, and what that is.

Found anew each time, from counts, receipts and rules: so nothing is kept for it, and what was read meanwhile is not in it.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from federation.rooms.room_events import RoomEvents, StoredEvent
from homeserver.services.ignored_users import IgnoredUsers
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.sync.invited import InvitedRooms
from homeserver.services.unread import READ_TYPES, UnreadCounts
from storage.events import EventFlag
from storage.memberships import MembershipRow
from storage.push_outcomes import MAIN
from storage.receipts import UNTHREADED, ReceiptRow, ReceiptStore
from storage.rooms import RoomStore
from storage.streams import Streams
from storage.timelines import TimelineStore

MOST_ROOMS: Final = 20
MOST_EVENTS: Final = 5
"""Of a room, that are told."""
LOOKED_AT: Final = 40
"""Newest events of a room among which those are looked for."""


class MissedRoom(msgspec.Struct, frozen=True):
    """A room, and the newest events in it that the user has not seen, in their order."""

    membership: MembershipRow
    room_id: str
    events: Sequence[StoredEvent]
    further: int
    """How many more there are besides."""


class Missed(msgspec.Struct, frozen=True):
    """All that somebody has missed, up to a position."""

    upto: int
    rooms: Sequence[MissedRoom]


class MissedEvents:
    """Finds it. For the reactor thread."""

    def __init__(
        self,
        streams: Streams,
        rooms: RoomStore,
        events: RoomEvents,
        memberships: Memberships,
        timelines: TimelineStore,
        receipts: ReceiptStore,
        unread: UnreadCounts,
        ignored: IgnoredUsers,
        decisions: PushDecisions,
        invited: InvitedRooms,
    ) -> None:
        self._streams = streams
        self._rooms = rooms
        self._events = events
        self._memberships = memberships
        self._timelines = timelines
        self._receipts = receipts
        self._unread = unread
        self._ignored = ignored
        self._decisions = decisions
        self._invited = invited

    async def get(self, user_id: UserID, after: int) -> Missed:
        """What the user has missed of what arrived after a position. The queries are bounded by `MOST_ROOMS`."""
        upto = self._streams.current()
        rows = await self._memberships.of_user(user_id)
        invites = [row for row in rows.values() if row.membership == "invite" and row.position > after]
        joined = [row for row in rows.values() if row.membership == "join"]
        counts = await self._unread.get_counts(user_id, joined, await self._ignored.of_user(user_id))
        unread = {row.room_nid: row for row in joined if counts[row.room_nid].total.notifications}
        latest = await self._timelines.get_latest(dict.fromkeys(unread, (after, upto)), LOOKED_AT)
        newest = sorted((nid for nid in unread if latest[nid]), key=lambda nid: -latest[nid][0].position)[:MOST_ROOMS]
        room_ids = await self._rooms.get_rooms_by_nid([*newest, *(row.room_nid for row in invites[:MOST_ROOMS])])
        receipts = await self._receipts.get_receipts_of_user(user_id, newest)
        found: list[MissedRoom] = []
        for row in invites[:MOST_ROOMS]:
            own = await self._invited.find_own(room_ids[row.room_nid], row)
            if own is not None and await self._decisions.find_notifying(row, [own]):
                found.append(MissedRoom(row, room_ids[row.room_nid].room_id, [own], 0))
        stored = await self._events.get_events(arrival.event_nid for nid in newest for arrival in latest[nid])
        for room_nid in newest:
            waiting: list[StoredEvent] = []
            answered: set[str] = set()
            """Threads in which the user has written since: who answers has read."""
            for arrival in latest[room_nid]:
                event = stored.get(arrival.event_nid)
                if event is None:
                    continue
                if event.event.sender == user_id and event.flags & EventFlag.NOTIFIES:
                    answered.add(event.thread_root or MAIN)
                if (event.thread_root or MAIN) not in answered and not _is_read(event, receipts.get(room_nid, ())):
                    waiting.append(event)
            events = (await self._decisions.find_notifying(unread[room_nid], waiting))[:MOST_EVENTS]
            if events:
                further = max(0, counts[room_nid].total.notifications - len(events))
                found.append(MissedRoom(unread[room_nid], room_ids[room_nid].room_id, events[::-1], further))
        return Missed(upto, found)

    async def was_in_room_since(self, user_id: UserID, room_nid: int, ts: int) -> bool:
        """Whether the user has read something in the room since then."""
        receipts = await self._receipts.get_receipts_of_user(user_id, [room_nid])
        return any(row.receipt_type in READ_TYPES and row.ts > ts for row in receipts.get(room_nid, ()))


def _is_read(event: StoredEvent, receipts: Iterable[ReceiptRow]) -> bool:
    position, thread = event.position or 0, event.thread_root or MAIN
    return any(
        row.receipt_type in READ_TYPES
        and row.event_position is not None
        and row.event_position >= position
        and row.thread_id in (UNTHREADED, thread)
        for row in receipts
    )
