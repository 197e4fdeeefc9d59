"""Purges messages of rooms. A purged message keeps only the fields that a redaction keeps.

A stored event that cannot be read, for example after disk corruption, is logged and skipped, so
that it does not block the others.

proposal: MSC1763
"""

from collections.abc import Callable, Sequence

from twisted.logger import Logger

from federation.protocol.events import encode_event_json, load_event
from federation.protocol.ids import EventID, RoomID
from federation.protocol.redaction import redact
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.retention.purging import PurgeableMessage, PurgeCause, PurgingStore
from storage.rooms.rooms import RoomStore

ExtraWrite = Callable[[WriteTransaction, int], None]
"""Writes more in the transaction of a purge; gets the number of purged messages."""
StillDue = Callable[[WriteTransaction], bool]
"""Called in the transaction; returns whether the messages are still to be purged."""


class MessagePurging:
    """Removes the content of messages."""

    _log = Logger()

    def __init__(
        self,
        *,
        database: Database,
        store: PurgingStore,
        rooms: RoomStore,
        now_ms: Callable[[], int],
        count_unreadable: Callable[[], None],
    ) -> None:
        self._database = database
        self._store = store
        self._rooms = rooms
        self._now_ms = now_ms
        self._count_unreadable = count_unreadable

    async def purge(
        self,
        room_nid: int,
        messages: Sequence[PurgeableMessage],
        cause: PurgeCause,
        extra_write: ExtraWrite | None = None,
        still_due: StillDue | None = None,
    ) -> int:
        """Purge messages of a room in one write, unless `still_due` returns False in it.

        Return the number of messages that had not been purged meanwhile.
        """
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        version, room_id = ROOM_VERSIONS[room.version], RoomID(room.room_id)
        pruned: dict[int, bytes] = {}
        for message in messages:
            left = self._prune(version, room_id, message)
            if left is not None:
                pruned[message.event_nid] = left
        now = self._now_ms()

        def write(txn: WriteTransaction) -> int:
            if still_due is not None and not still_due(txn):
                return 0
            count = self._store.purge(txn, room_nid, pruned, cause, now)
            if extra_write is not None:
                extra_write(txn, count)
            return count

        return await self._database.write("purge_messages", write)

    def _prune(
        self, version: RoomVersion, room_id: RoomID, message: PurgeableMessage
    ) -> bytes | None:
        """Return the redacted message; None if it cannot be read."""
        try:
            event = load_event(version, EventID(message.event_id), room_id, message.pdu)
            return encode_event_json(version, redact(version, event.pdu))
        except Exception:
            self._log.failure(
                "the stored event {id} cannot be read, and is not purged", id=message.event_id
            )
            self._count_unreadable()
            return None

    async def truncate_log(self) -> None:
        """End a run of purges: remove the purged content from the database's log as well, unless
        another connection prevents that."""
        await self._database.truncate_log()
