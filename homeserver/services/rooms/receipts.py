"""Read receipts, public and private, of rooms and threads, and the fully read marker.

spec: client-server-api#receipts, client-server-api#fully-read-markers
"""

from collections.abc import Callable
from typing import Final

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import EventID, RoomID, UserID, is_event_id
from federation.rooms.event_threads import find_threads
from federation.rooms.events import RoomEvents, StoredEvent
from homeserver.api.requester import Requester
from homeserver.services.rooms.reading import RoomReading
from storage.account_data.account_data import AccountDataStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.events.events import select_progress
from storage.rooms.receipts import (
    MAIN_THREAD,
    UNTHREADED,
    NewReceipt,
    is_valid_thread,
    set_receipts,
)

FULLY_READ: Final = "m.fully_read"
RECEIPT_TYPES: Final = frozenset({"m.read", "m.read.private"})


class _Marker(msgspec.Struct):
    event_id: EventID | None = None


class ReadMarkers:
    """Moves receipts and fully read markers."""

    def __init__(
        self,
        *,
        database: Database,
        account_data: AccountDataStore,
        events: RoomEvents,
        reading: RoomReading,
        now_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._account_data = account_data
        self._events = events
        self._reading = reading
        self._now_ms = now_ms

    async def do_move(
        self,
        caller: Requester,
        room_id: RoomID,
        event_ids: dict[str, EventID],
        thread_id: str | None,
    ) -> None:
        """Move receipts (m.read, m.read.private) and the marker (m.fully_read) forwards: all of
        them, or none.

        Raises Forbidden, InvalidParam, and NotFound for an event that the room does not have or the
        user may not see. The error is the same for both, so it does not reveal whether the event
        exists.
        """
        for kind, event_id in event_ids.items():
            _check_mark(kind, event_id, thread_id)
        thread = _check_thread(thread_id)
        snapshot, events = await self._reading.get_for_member(
            caller.user_id, room_id, event_ids.values()
        )
        if not event_ids:
            return
        room_nid = snapshot.room.room_nid
        if thread != UNTHREADED:
            for event_id, event_thread in (
                await find_threads(self._events, events.values())
            ).items():
                # a root belongs to the main timeline only; from users of other servers we accept
                # such a receipt as it is
                if thread == event_id or not is_valid_thread(thread, event_id, event_thread):
                    raise InvalidParam("The event is not in that thread")
        now_ms, user_id = self._now_ms(), caller.user_id
        receipts = [
            NewReceipt(
                room_nid,
                room_id,
                user_id,
                kind,
                thread,
                event_id,
                events[event_id].position,
                now_ms,
            )
            for kind, event_id in event_ids.items()
            if kind in RECEIPT_TYPES
        ]
        fully_read = event_ids.get(FULLY_READ)

        def write(txn: WriteTransaction) -> None:
            set_receipts(txn, receipts)
            if fully_read is not None:
                self._move_fully_read(txn, user_id, room_id, events[fully_read])

        await self._database.write("set_receipts", write)

    def _move_fully_read(
        self, txn: WriteTransaction, user_id: UserID, room_id: RoomID, event: StoredEvent
    ) -> None:
        before = self._account_data.get_entry_in(txn, user_id, room_id, FULLY_READ)
        previous = None if before is None else msgspec.json.decode(before, type=_Marker).event_id
        if previous == event.event.event_id:
            return
        if previous is not None:
            progress = select_progress(txn, event.room_nid, [previous])
            if (
                previous in progress
                and (event.position or 0, event.depth, event.nid) < progress[previous]
            ):
                return
        content = msgspec.json.encode({"event_id": event.event.event_id})
        self._account_data.set_entry(txn, user_id, room_id, FULLY_READ, content)


def _check_mark(kind: str, event_id: EventID, thread_id: str | None) -> None:
    if kind != FULLY_READ and kind not in RECEIPT_TYPES:
        raise InvalidParam(f"Unknown type of receipt: {kind[:255]}")
    if not is_event_id(event_id):
        raise InvalidParam(f"{kind}: not an event id")
    if kind == FULLY_READ and thread_id is not None:
        raise InvalidParam("The fully read marker cannot have a thread_id")


def _check_thread(thread_id: str | None) -> str:
    if thread_id is None:
        return UNTHREADED
    if thread_id != MAIN_THREAD and not is_event_id(thread_id):
        raise InvalidParam("thread_id must be the event ID of a thread root, or main")
    return thread_id
