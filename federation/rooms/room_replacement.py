"""Replaces a room with a new one, in one transaction.

The transaction writes the new room's first events and the old room's last events, or nothing. So no
crash leaves a new room to which nothing refers, or an old room whose tombstone names a missing
room.

spec: client-server-api#room-upgrades
"""

from collections.abc import Awaitable, Callable, Sequence

from twisted.logger import Logger

from federation.protocol.errors import MatrixError
from federation.protocol.ids import RoomID
from federation.protocol.room_versions import RoomVersion
from federation.rooms.engine import MAX_REBUILDS, HeadContention, RoomEngine
from federation.rooms.event_drafts import Draft
from federation.rooms.events import RoomEvents
from federation.rooms.snapshot import RoomSnapshot
from storage.engine.transaction import WriteTransaction
from storage.persist.room_writer import AppendResult, HeadMoved, RoomWriter
from storage.rooms.rooms import RoomRow

ExtraWrite = Callable[[WriteTransaction, RoomRow, RoomRow], None]
"""Writes more in the same transaction, given the old room and the new one."""
FindLastEvents = Callable[[RoomSnapshot, RoomID], Awaitable[Sequence[Draft]]]
"""Returns the last events of the old room, given the ID of the new one."""


class RoomReplacement:
    """Replaces rooms. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        engine: RoomEngine,
        events: RoomEvents,
        writer: RoomWriter,
        now_ms: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._events = events
        self._writer = writer
        self._now_ms = now_ms
        self._log = Logger()

    async def replace(
        self,
        old_id: RoomID,
        version: RoomVersion,
        new_id: RoomID | None,
        drafts: Callable[[RoomSnapshot], Awaitable[Sequence[Draft]]],
        find_last_events: FindLastEvents,
        extra_write: ExtraWrite,
        find_earlier: Callable[[RoomSnapshot], Awaitable[RoomSnapshot | None]],
    ) -> RoomSnapshot:
        """Create a room that replaces another; return the new room.

        `find_earlier` is called when no other work moves the old room, and returns a replacement
        that was made meanwhile. `drafts` returns the events of the new room, starting with the
        create event; `new_id` is None if that is hashed to the room ID. `find_last_events` returns
        the last events of the old room. The first must be allowed; others that are not allowed are
        left out. Raises NotFound, Forbidden and other errors of authorization.
        """

        async def work() -> RoomSnapshot:
            old = await self._engine.get_snapshot(old_id)
            for _ in range(MAX_REBUILDS):
                earlier = await find_earlier(old)
                if earlier is not None:
                    return earlier
                try:
                    return await self._attempt(
                        old, version, new_id, await drafts(old), find_last_events, extra_write
                    )
                except HeadMoved:
                    old = await self._engine.refresh(old)
            raise HeadContention(old_id)

        return await self._engine.in_turn(old_id, work)

    async def _attempt(
        self,
        old: RoomSnapshot,
        version: RoomVersion,
        new_id: RoomID | None,
        drafts: Sequence[Draft],
        find_last_events: FindLastEvents,
        extra_write: ExtraWrite,
    ) -> RoomSnapshot:
        chain = await self._engine.begin_chain(old)
        appended: list[AppendResult] = []

        async def end_old(created_id: RoomID) -> None:
            now = self._now_ms()
            first, *others = await find_last_events(old, created_id)
            await chain.add([first], now)
            for draft in others:
                try:
                    await chain.add([draft], now)
                except MatrixError as error:
                    self._log.info(
                        "{type} of the replaced room {room_id} stays as it is: {error}",
                        type=draft.type,
                        room_id=old.room_id,
                        error=error.text,
                    )
            self._events.expect(chain.built)

        def write(txn: WriteTransaction, room: RoomRow) -> None:
            appended[:] = [
                self._writer.append(
                    txn, old.room, old.head, chain.new, chain.extremities, now_ms=self._now_ms()
                )
            ]
            extra_write(txn, old.room, room)

        try:
            new, _ = await self._engine.create(version, new_id, drafts, write, end_old)
        finally:
            self._events.stop_expecting(chain.built)
        self._engine.advance(old, appended[0])
        return new
