"""Restores the content of events that are stored without it.

We store an event in redacted form if its content hash does not match (`unaltered_copies.py`). When
a copy with the right hash arrives, its content is added. The event is not checked again, because
redaction keeps every field that the authorization rules use. Clients are not notified: they get the
content when they read the event again.

spec: server-server-api#checks-performed-on-receipt-of-a-pdu
"""

from collections.abc import Callable

from federation.peers.identity import ServerIdentity
from federation.protocol.event_signing import is_content_hash_valid
from federation.protocol.events import Event, encode_pdu, parse_event
from federation.protocol.ids import RoomID
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.receipt_checks import ReceivedPdu
from federation.rooms.receive.unaltered_copies import is_same
from federation.rooms.relations import read_relation
from federation.rooms.state_effects import state_effect
from storage.engine.database import Database
from storage.events.relations import RelationRow
from storage.persist.content_restore import RestoredContent, restore_content

MAX_TRIES = 3


class ContentRestorer:
    """Adds the content to stored events that lack it. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        database: Database,
        engine: RoomEngine,
        events: RoomEvents,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
    ) -> None:
        self._now_ms = now_ms
        self._database = database
        self._engine = engine
        self._events = events
        self._identity = identity

    async def restore(self, room_id: RoomID, own: StoredEvent, candidate: ReceivedPdu) -> None:
        """Add the content to a stored event if it lacks it and the new copy is unaltered."""
        event = find_complete(own, candidate)
        if event is None:
            return
        for _ in range(MAX_TRIES):
            snapshot = await self._engine.find_snapshot(room_id)
            if snapshot is None or own.room_nid != snapshot.room.room_nid:
                return
            current = None if event.state_key is None else await snapshot.state.get(event.key)
            is_current = current is not None and current.nid == own.nid
            restored = RestoredContent(
                own.nid,
                event.event_id,
                own.room_nid,
                encode_pdu(event),
                _relation(own, event),
                state_effect(event, self._identity) if is_current else None,
                self._now_ms(),
            )
            done = await self._database.write(
                "restore_content", restore_content, restored, snapshot.head.version
            )
            self._events.evict([event.event_id])
            if done and is_current:
                snapshot.state.clear_cache()
            await self._engine.refresh(snapshot)
            if done:
                return


def find_complete(own: StoredEvent, candidate: ReceivedPdu) -> Event | None:
    """Return the event with the content that the stored one lacks, if the copy has it."""
    event = candidate.read()
    if own.redacted_by is not None or own.is_purged or own.event.content == event.content:
        return None
    if (
        candidate.hashed() is not event
        or is_content_hash_valid(own.event)
        or not is_same(own.event, event)
    ):
        return None
    # the verified signatures are those of the stored copy; they cover the same fields
    return parse_event(
        event.version,
        {**event.pdu, "signatures": own.event.pdu["signatures"]},
        event_id=event.event_id,
    )


def _relation(own: StoredEvent, event: Event) -> RelationRow | None:
    relation = read_relation(event)
    if relation is None or not own.in_timeline:
        return None
    return RelationRow(
        relation,
        own.nid,
        event.event_id,
        own.room_nid,
        own.depth,
        event.type,
        event.sender,
        event.origin_server_ts,
    )
