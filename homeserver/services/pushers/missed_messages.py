"""Finds what a user has missed, by room: invites and unread messages that push rules notify about.

Nothing is stored for this: each call starts from the unread counts, so it leaves out what was read.
Events that do not count as unread are not examined, however many there are. Events that the current
push rules do not notify about are left out. So are encrypted events that are pushed only because a
client wants to decrypt all of them (MSC4028).
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

MAX_ROOMS: Final = 20
"""Rooms that are returned; further ones are only counted."""
MAX_EVENTS: Final = 5
"""Events of one room that are returned."""
EVENTS_EXAMINED: Final = 40
"""Newest unread events of a room that are read, to evaluate today's push rules and to find how long
they have waited.
"""


class MissedRoom(msgspec.Struct, frozen=True):
    """A room and its newest events that the user has not seen, oldest first."""

    membership: MembershipRow
    room_id: str
    events: Sequence[StoredEvent]
    further: int
    """The number of further missed events."""
    waits_since: int
    """When the oldest of the events that were read was sent, in milliseconds since 1970."""
    edits: Mapping[int, StoredEvent] = {}
    """The latest edit of each event, by event nid."""


class MissedMessages(msgspec.Struct, frozen=True):
    """All that a user has missed up to a position."""

    upto: int
    rooms: Sequence[MissedRoom]
    further_rooms: int = 0
    """The number of further rooms with missed events."""


class MissedEvents:
    """Finds missed messages. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
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

    async def get(self, user_id: UserID, after: int) -> MissedMessages:
        """Return what the user has missed after a position. Two or three statements for each room
        with unread events, in one read; the rest is bounded by `MAX_ROOMS`."""
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
            user_id, unread.values(), ignored, after=after, limit=EVENTS_EXAMINED
        )
        newest = sorted(
            (nid for nid, events in waiting.items() if events),
            key=lambda nid: waiting[nid][0].position,
            reverse=True,
        )
        shown, shown_invites = newest[:MAX_ROOMS], invites[:MAX_ROOMS]
        room_ids = await self._rooms.get_rooms_by_nid(
            [*shown, *(row.room_nid for row in shown_invites)]
        )
        found: list[MissedRoom] = []
        for row in shown_invites:
            own = await self._invited.find_membership_event(room_ids[row.room_nid], row)
            if own is not None and await self._decisions.find_mailed(row, [own]):
                found.append(
                    MissedRoom(
                        row, room_ids[row.room_nid].room_id, [own], 0, own.event.origin_server_ts
                    )
                )
        stored = await self._events.get_events(
            each.event_nid for nid in shown for each in waiting[nid]
        )
        pushed: dict[int, Sequence[StoredEvent]] = {}
        for room_nid in shown:
            arrived = [
                stored[each.event_nid] for each in waiting[room_nid] if each.event_nid in stored
            ]
            pushed[room_nid] = await self._decisions.find_mailed(unread[room_nid], arrived)
        quoted = {
            room_nid: events[MAX_EVENTS - 1 :: -1] for room_nid, events in pushed.items() if events
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
        return MissedMessages(
            upto, found, len(newest) - len(shown) + len(invites) - len(shown_invites)
        )

    async def are_missed(self, user_id: UserID, event_nids: Sequence[int]) -> bool:
        """Return whether the user may see all of these events and has read none of them. At most
        three reads."""
        stored = await self._events.get_events(event_nids)
        rows = await self._memberships.of_user(user_id)
        if len(stored) < len(set(event_nids)) or any(
            event.room_nid not in rows for event in stored.values()
        ):
            return False
        own = {event.room_nid: rows[event.room_nid] for event in stored.values()}
        read_positions = await self._unread.get_read_positions(
            user_id, [row for row in own.values() if row.membership == "join"]
        )
        shown = {event.event.event_id for event in stored.values()}
        for event in stored.values():
            relation = read_relation(event.event)
            if relation is not None and relation.rel_type == REPLACE and relation.target in shown:
                # an edit is sent with the event it replaces; it notifies nobody and is in no thread
                continue
            read = read_positions.get(event.room_nid)
            if read is not None and (event.position or 0) <= read.of(event.thread_root or MAIN):
                return False
            if not await self._decisions.may_notify(event, own[event.room_nid]):
                return False
        return True

    async def was_in_room_since(self, user_id: UserID, room_nid: int, ts: int) -> bool:
        """Return whether the user has read something in the room since a time."""
        receipts = await self._receipts.get_receipts_of_user(user_id, [room_nid])
        return any(
            row.receipt_type in READ_TYPES and row.ts > ts for row in receipts.get(room_nid, ())
        )
