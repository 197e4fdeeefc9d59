"""What somebody has missed: the rooms in which something waits that would have been pushed, and
what that is.

Found anew each time, from what is counted as unread: so nothing is kept for it, what was read
meanwhile is not in it, and what was said besides, however much, hides nothing. What the rules of
today would not push is left out, and what they push for clients alone (MSC4028).
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.memberships import Memberships
from federation.rooms.relations import read_relation
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.push.unread_counts import READ_TYPES, UnreadCounts
from homeserver.services.rooms.aggregations import Aggregations
from homeserver.services.rooms.invited_rooms import InvitedRooms
from storage.engine.streams import Streams
from storage.events.relations import REPLACE
from storage.push.event_push_actions import MAIN
from storage.rooms.memberships import MembershipRow
from storage.rooms.receipts import ReceiptStore
from storage.rooms.rooms import RoomStore

MOST_ROOMS: Final = 20
"""That are told; of further ones their number is."""
MOST_EVENTS: Final = 5
"""Of a room, that are told."""
LOOKED_AT: Final = 40
"""Newest unread events of a room that are looked at: whether the rules of today push them, and
since when they wait."""


class MissedRoom(msgspec.Struct, frozen=True):
    """A room, and the newest events in it that the user has not seen, in their order."""

    membership: MembershipRow
    room_id: str
    events: Sequence[StoredEvent]
    further: int
    """How many more there are besides."""
    waits_since: int
    """When the oldest of those that were looked at was sent, in milliseconds since 1970."""
    edits: Mapping[int, StoredEvent] = {}
    """By the number of an event what its sender made of it since."""


class Missed(msgspec.Struct, frozen=True):
    """All that somebody has missed, up to a position."""

    upto: int
    rooms: Sequence[MissedRoom]
    further_rooms: int = 0
    """In so many more rooms something waits."""


class MissedEvents:
    """Finds it. For the reactor thread."""

    def __init__(
        self,
        streams: Streams,
        rooms: RoomStore,
        events: RoomEvents,
        memberships: Memberships,
        receipts: ReceiptStore,
        unread: UnreadCounts,
        ignored: IgnoredUsers,
        decisions: PushDecisions,
        invited: InvitedRooms,
        aggregations: Aggregations,
    ) -> None:
        self._streams = streams
        self._rooms = rooms
        self._events = events
        self._memberships = memberships
        self._receipts = receipts
        self._unread = unread
        self._ignored = ignored
        self._decisions = decisions
        self._invited = invited
        self._aggregations = aggregations

    async def get(self, user_id: UserID, after: int) -> Missed:
        """What the user has missed of what arrived after a position. Two statements or three for
        each room with something unread, in one read; the rest is bounded by `MOST_ROOMS`."""
        upto = self._streams.current()
        rows = await self._memberships.of_user(user_id)
        invites = [
            row for row in rows.values() if row.membership == "invite" and row.position > after
        ]
        joined = [row for row in rows.values() if row.membership == "join"]
        ignored = await self._ignored.of_user(user_id)
        counts = await self._unread.get_counts(user_id, joined, ignored)
        unread = {row.room_nid: row for row in joined if counts[row.room_nid].total.notifications}
        waiting = await self._unread.get_events(
            user_id, unread.values(), ignored, after=after, limit=LOOKED_AT
        )
        newest = sorted(
            (nid for nid, events in waiting.items() if events),
            key=lambda nid: waiting[nid][0].position,
            reverse=True,
        )
        told, told_invites = newest[:MOST_ROOMS], invites[:MOST_ROOMS]
        room_ids = await self._rooms.get_rooms_by_nid(
            [*told, *(row.room_nid for row in told_invites)]
        )
        found: list[MissedRoom] = []
        for row in told_invites:
            own = await self._invited.find_own(room_ids[row.room_nid], row)
            if own is not None and await self._decisions.find_mailed(row, [own]):
                found.append(
                    MissedRoom(
                        row, room_ids[row.room_nid].room_id, [own], 0, own.event.origin_server_ts
                    )
                )
        stored = await self._events.get_events(
            each.event_nid for nid in told for each in waiting[nid]
        )
        pushed: dict[int, Sequence[StoredEvent]] = {}
        for room_nid in told:
            arrived = [
                stored[each.event_nid] for each in waiting[room_nid] if each.event_nid in stored
            ]
            pushed[room_nid] = await self._decisions.find_mailed(unread[room_nid], arrived)
        quoted = {
            room_nid: events[MOST_EVENTS - 1 :: -1] for room_nid, events in pushed.items() if events
        }
        related = await self._aggregations.load(
            user_id, [event for events in quoted.values() for event in events]
        )
        edits = {nid: each.edit.event for nid, each in related.items() if each.edit is not None}
        for room_nid, events in quoted.items():
            further = max(0, counts[room_nid].total.notifications - len(events))
            since = min(event.event.origin_server_ts for event in pushed[room_nid])
            own_edits = {event.nid: edits[event.nid] for event in events if event.nid in edits}
            room_id = room_ids[room_nid].room_id
            found.append(MissedRoom(unread[room_nid], room_id, events, further, since, own_edits))
        return Missed(upto, found, len(newest) - len(told) + len(invites) - len(told_invites))

    async def are_missed(self, user_id: UserID, event_nids: Sequence[int]) -> bool:
        """Whether the user may be told of all of these events, and has read none of them. Three
        reads at most."""
        stored = await self._events.get_events(event_nids)
        rows = await self._memberships.of_user(user_id)
        if len(stored) < len(set(event_nids)) or any(
            event.room_nid not in rows for event in stored.values()
        ):
            return False
        own = {event.room_nid: rows[event.room_nid] for event in stored.values()}
        marks = await self._unread.read_marks(
            user_id, [row for row in own.values() if row.membership == "join"]
        )
        told = {event.event.event_id for event in stored.values()}
        for event in stored.values():
            relation = read_relation(event.event)
            if relation is not None and relation.rel_type == REPLACE and relation.target in told:
                # it is told with what it corrects, and goes with that; it notifies nobody, and is
                # in no thread
                continue
            mark = marks.get(event.room_nid)
            if mark is not None and (event.position or 0) <= mark.of(event.thread_root or MAIN):
                return False
            if not await self._decisions.concerns(event, own[event.room_nid]):
                return False
        return True

    async def was_in_room_since(self, user_id: UserID, room_nid: int, ts: int) -> bool:
        """Whether the user has read something in the room since then."""
        receipts = await self._receipts.get_receipts_of_user(user_id, [room_nid])
        return any(
            row.receipt_type in READ_TYPES and row.ts > ts for row in receipts.get(room_nid, ())
        )
