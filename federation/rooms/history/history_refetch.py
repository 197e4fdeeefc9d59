"""Restores messages that this server purged because all local users had forgotten their room.

The content comes from other servers. It is requested when a local user has rejoined the room and
paginates back (`backfill.py`).

Laws:
- No server is trusted. The received event must have the reference hash of the stored one, and its
  content must match the content hash, which the purge has kept.
- Redacted messages stay without content, whether they were redacted before or after the purge.
- If the asked servers have a message only without its content, it is not requested again. Otherwise
  readers would never get beyond it to older messages.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from federation.protocol.event_signing import is_content_hash_valid
from federation.protocol.events import Event, compute_reference_hash, encode_event_json
from federation.protocol.ids import EventID
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.receive.persist import EventPersister
from federation.rooms.relations import read_relation
from federation.rooms.snapshot import RoomSnapshot
from storage.engine.database import Database
from storage.events.events import EventFlag, EventStore
from storage.media.content_uris import find_content_uris
from storage.media.references import limit_by_uris
from storage.retention.history_refetch import (
    RefetchedMessage,
    restore_messages,
    stop_fetching_messages,
)


class RefetchResult(msgspec.Struct, frozen=True):
    """The result of restoring messages from the events that one server sent."""

    count: int
    """Messages that are shown again."""
    useless: frozenset[int]
    """Numbers of messages that came without valid content."""


class HistoryRefetch:
    """Restores purged messages from events of other servers."""

    def __init__(
        self,
        *,
        database: Database,
        event_store: EventStore,
        events: RoomEvents,
        persister: EventPersister,
    ) -> None:
        self._database = database
        self._event_store = event_store
        self._events = events
        self._persister = persister

    async def restore(
        self, snapshot: RoomSnapshot, received: Mapping[EventID, Event]
    ) -> RefetchResult:
        """Restore the purged messages among these events."""
        room_nid = snapshot.room.room_nid
        stored = await self._events.get_by_id(room_nid, received)
        forgotten = {
            name: each for name, each in stored.items() if each.flags & EventFlag.FORGOTTEN
        }
        if not forgotten:
            return RefetchResult(0, frozenset())
        waiting = await self._event_store.get_earlier_references(room_nid, forgotten)
        restored: list[RefetchedMessage] = []
        for name, each in forgotten.items():
            redactions = await self._events.get_events(waiting.redactions.get(name, ()))
            found = await self._check(snapshot, each, received[name], list(redactions.values()))
            if found is not None:
                restored.append(found)
        useless = {each.nid for each in forgotten.values()} - {each.event_nid for each in restored}
        count = 0
        while restored:
            chunk = limit_by_uris(restored, lambda each: len(find_content_uris(each.pdu or b"")))
            count += await self._database.write(
                "restore_messages", restore_messages, room_nid, chunk
            )
            restored = restored[len(chunk) :]
        return RefetchResult(count, frozenset(useless))

    async def give_up(self, nids: Collection[int]) -> None:
        """Do not request these messages again."""
        await self._database.write("stop_fetching_messages", stop_fetching_messages, nids)

    async def _check(
        self,
        snapshot: RoomSnapshot,
        stored: StoredEvent,
        received: Event,
        redactions: Sequence[StoredEvent],
    ) -> RefetchedMessage | None:
        """Return what to restore; None if it is another event or lacks its content."""
        version = snapshot.version
        if compute_reference_hash(version, received.pdu) != compute_reference_hash(
            version, stored.event.pdu
        ):
            return None
        redaction_nids = frozenset(redaction.nid for redaction in redactions)
        if stored.redacted_by != stored.nid:
            return RefetchedMessage(stored.nid, None, None, None, redaction_nids)
        effective = await self._persister.find_redactions(snapshot.room, stored.event, redactions)
        if effective:
            return RefetchedMessage(stored.nid, None, effective[0].nid, None, redaction_nids)
        if not is_content_hash_valid(received):
            return None
        # these signatures were verified when the event came
        pdu = encode_event_json(
            version, {**received.pdu, "signatures": stored.event.pdu.get("signatures", {})}
        )
        return RefetchedMessage(stored.nid, pdu, None, read_relation(received), redaction_nids)
