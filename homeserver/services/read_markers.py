"""How far users have read: receipts, public and private, of rooms and of threads, and the marker that only they see.

spec: client-server-api#receipts, client-server-api#fully-read-markers
"""

from collections.abc import Callable
from typing import Final

import msgspec

from federation.protocol.endpoint import Requester
from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import EventID, RoomID, is_event_id
from federation.rooms.room_events import RoomEvents, StoredEvent
from federation.rooms.snapshots import RoomSnapshot
from homeserver.services.event_threads import find_standings
from homeserver.services.room_reading import RoomReading
from storage.account_data import AccountDataStore
from storage.database import Database
from storage.receipts import MAIN_THREAD, UNTHREADED, ReceiptStore, stands_in
from storage.transaction import WriteTransaction

FULLY_READ: Final = "m.fully_read"
RECEIPT_TYPES: Final = frozenset({"m.read", "m.read.private"})


class _Marker(msgspec.Struct):
    event_id: EventID | None = None


class ReadMarkers:
    """Moves receipts and markers."""

    def __init__(
        self,
        database: Database,
        receipts: ReceiptStore,
        account_data: AccountDataStore,
        events: RoomEvents,
        reading: RoomReading,
        now_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._receipts = receipts
        self._account_data = account_data
        self._events = events
        self._reading = reading
        self._now_ms = now_ms

    async def do_mark(
        self, caller: Requester, room_id: RoomID, marks: dict[str, EventID], thread_id: str | None
    ) -> None:
        """Move receipts (m.read, m.read.private) and the marker (m.fully_read), forwards only.

        Raises Forbidden, InvalidParam, and NotFound for what stands at an event that the room does not have.
        """
        snapshot = await self._reading.check_joined(caller.user_id, room_id)
        for kind, event_id in marks.items():
            if not is_event_id(event_id):
                raise InvalidParam(f"{kind}: not an event id")
            if kind == FULLY_READ:
                if thread_id is not None:
                    raise InvalidParam("The fully read marker belongs to no thread")
                await self._set_fully_read(caller, snapshot, event_id)
            elif kind in RECEIPT_TYPES:
                await self._set_receipt(caller, snapshot, kind, event_id, _check_thread(thread_id))
            else:
                raise InvalidParam(f"Unknown type of receipt: {kind[:255]}")

    async def _set_receipt(
        self, caller: Requester, snapshot: RoomSnapshot, kind: str, event_id: EventID, thread_id: str
    ) -> None:
        event = await self._events.get_event(snapshot.room.room_nid, event_id)
        if event is None:
            raise NotFound("The room has no such event")
        standings = await find_standings(self._events, [event])
        if not stands_in(thread_id, event_id, standings[event_id]):
            raise InvalidParam("The event is not in that thread")
        await self._receipts.set_receipt(
            snapshot.room.room_nid,
            snapshot.room.room_id,
            caller.user_id,
            kind,
            thread_id,
            event_id,
            event.position,
            self._now_ms(),
        )

    async def _set_fully_read(self, caller: Requester, snapshot: RoomSnapshot, event_id: EventID) -> None:
        room_nid, room_id = snapshot.room.room_nid, snapshot.room_id
        before = await self._account_data.get_entry(caller.user_id, room_id, FULLY_READ)
        former = _event_id_of(before)
        if former == event_id:
            return
        events = await self._events.get_by_id(room_nid, [event_id] if former is None else [event_id, former])
        if event_id not in events:
            raise NotFound("The room has no such event")
        if former is not None and former in events and _arrival(events[event_id]) < _arrival(events[former]):
            return
        content = msgspec.json.encode({"event_id": event_id})

        def write(txn: WriteTransaction) -> None:
            if self._account_data.get_entry_in(txn, caller.user_id, room_id, FULLY_READ) == before:
                self._account_data.set_entry(txn, caller.user_id, room_id, FULLY_READ, content)

        await self._database.write("set_fully_read", write)


def _event_id_of(content: bytes | None) -> EventID | None:
    return None if content is None else msgspec.json.decode(content, type=_Marker).event_id


def _arrival(event: StoredEvent) -> int:
    return event.position or 0


def _check_thread(thread_id: str | None) -> str:
    if thread_id is None:
        return UNTHREADED
    if thread_id != MAIN_THREAD and not is_event_id(thread_id):
        raise InvalidParam("thread_id is the event id of a thread's root, or main")
    return thread_id
