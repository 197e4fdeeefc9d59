"""A cache of events, parsed and in the encoded form that clients receive.

Events are immutable, with three exceptions: a redaction or a purge removes the content, content
that was missing or purged is restored, and an outlier is added to the room's graph. The stream
announces these changes, and the cache then evicts the event.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.protocol.events import Event, client_form_prefix, encode_event_json, load_event
from federation.protocol.ids import EventID, RoomID
from federation.protocol.redaction import redact
from federation.protocol.room_versions import ROOM_VERSIONS
from storage.cache import LRU
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventFlag, EventRow, EventStore
from storage.retention.purging import PurgedMessages
from storage.rooms.rooms import RoomRow, RoomStore

AVERAGE_BYTES: Final = 4096
"""Bytes of memory per cached event on average. Usual events take less, the largest fifty times as
much and more."""
NO_TRANSACTION: Final = ("", "")
"""Stands for the device and transaction ID of an event that no client of ours sent."""


class StoredEvent:
    """An event with the columns of its row."""

    __slots__ = (
        "aged_from",
        "client_prefix",
        "current_root",
        "depth",
        "event",
        "flags",
        "is_plain",
        "is_plain_message",
        "leaves_state",
        "nid",
        "pdu",
        "position",
        "redacted_by",
        "replaces",
        "room_nid",
        "sent",
        "state_root",
        "thread_root",
        "weight",
    )

    client_prefix: bytes
    """The client form, without `room_id`, `unsigned` and the closing brace; encoded once."""

    def __init__(self, *, event: Event, row: EventRow) -> None:
        self.event = event
        self.nid = row.event_nid
        self.aged_from = row.origin_server_ts
        """The start of its age, in milliseconds since 1970: its own time, but not later than its
        arrival."""
        self.room_nid = row.room_nid
        self.depth = row.depth
        """The depth by our own count; the depth that an event claims may be wrong."""
        self.position = row.position
        """The position of its arrival in the stream; None if it is not shown as new."""
        self.flags = row.flags
        self.state_root = row.state_root
        self.current_root = row.state_root if row.current_root is None else row.current_root
        """Root of the room's current state after its arrival."""
        self.replaces = row.replaces
        """Number of the state event that it replaced."""
        self.redacted_by = row.redacted_by
        """Number of the redaction that removed its content."""
        self.thread_root = row.thread_root
        """The root of its thread, if it notifies a user or was redacted; None for the main
        timeline."""
        self.pdu = row.pdu
        self.weight = _weigh(row.pdu)
        """Approximate bytes of memory, parsed and encoded."""
        self.sent: tuple[str, str] | None = None
        """Device and transaction ID, or `NO_TRANSACTION`, once known."""
        self.is_plain = row.replaces is None and row.redacted_by is None and event.sticky_ms is None
        """Whether clients get it without `unsigned` data, except aggregations and transaction
        IDs."""
        self.leaves_state = event.state_key is None and not row.flags & EventFlag.RESOLVED
        """Whether the room's current state did not change with its arrival."""
        self.is_plain_message = (
            self.is_plain and self.leaves_state and self.is_shown and not self.is_after_gap
        )
        """Whether a member at its arrival sees it unchanged, no state changed with it, and no gap
        precedes it."""

    def with_form(self, event: Event) -> "StoredEvent":
        """Return a copy with another form of the event, for a reader who may not see all of it."""
        other = copy(self)
        other.event = event
        other.client_prefix = client_form_prefix(event)
        return other

    def without_content(self) -> "StoredEvent":
        """Return a copy with the redacted event."""
        event = self.event
        pruned = encode_event_json(event.version, redact(event.version, event.pdu))
        return self.with_form(load_event(event.version, event.event_id, event.room_id, pruned))

    def __getattr__(self, name: str) -> bytes:
        """Encode the client form when it is first needed."""
        if name != "client_prefix":
            raise AttributeError(name)
        self.client_prefix = client_form_prefix(self.event)
        return self.client_prefix

    @property
    def in_timeline(self) -> bool:
        """Whether it is accepted, and neither an outlier nor soft-failed."""
        return bool(self.flags & EventFlag.TIMELINE)

    @property
    def is_shown(self) -> bool:
        """Whether readers may see it: it is in the timeline and not purged."""
        return self.flags & (EventFlag.TIMELINE | EventFlag.PURGED) == EventFlag.TIMELINE

    @property
    def is_after_gap(self) -> bool:
        """Whether some events before it were missing when it came."""
        return bool(self.flags & EventFlag.AFTER_GAP)

    @property
    def is_purged(self) -> bool:
        """Whether its content was purged."""
        return bool(self.flags & EventFlag.PURGED)

    def is_expired(self, oldest: int) -> bool:
        """Return whether it is a message older than the oldest one to show
        (`RoomRetentionCache.get_oldest_shown`)."""
        return self.event.state_key is None and self.aged_from < oldest

    @property
    def resolved(self) -> bool:
        """Whether its arrival changed the current state by more than its own entry, by resolving
        forks."""
        return bool(self.flags & EventFlag.RESOLVED)

    @property
    def rejected(self) -> bool:
        """Whether authorization refused it."""
        return bool(self.flags & EventFlag.REJECTED)

    @property
    def is_outlier(self) -> bool:
        """Whether it is stored without a place in the room."""
        return bool(self.flags & EventFlag.OUTLIER)


class RoomEvents:
    """Reads events in batches through a cache of the most recently used ones. Use this class
    only on the reactor thread.

    The cache is no `StreamCache`. After a write of another node it evicts only the events that this
    write may have changed.
    """

    def __init__(
        self, *, store: EventStore, rooms: RoomStore, streams: Streams, capacity: int
    ) -> None:
        """`capacity`: events of `AVERAGE_BYTES` bytes; fewer if they are larger."""
        self._store = store
        self._rooms = rooms
        self._cache: LRU[int, StoredEvent] = LRU(
            max_entries=capacity,
            max_weight=capacity * AVERAGE_BYTES,
            weigh=lambda _, stored: stored.weight,
            on_remove=lambda _, stored: self._nids.pop(stored.event.event_id, None),
        )
        self._nids: dict[str, int] = {}
        """Numbers of the events in the cache, by ID."""
        self._changes = 0
        """Rises whenever an event may have changed."""
        self._expected: dict[str, Event] = {}
        self._latest_nid = 0
        """The highest number of a redaction that this node knows of another node."""
        self._log = Logger()
        streams.subscribe(
            self._on_changes,
            Topic.EVENT,
            Topic.REDACTED,
            Topic.OUTLIER_PLACED,
            Topic.PURGED,
            stage=Stage.CACHE,
        )
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    def __len__(self) -> int:
        """Events in the cache."""
        return len(self._cache)

    @property
    def weight(self) -> int:
        """About how many bytes the events in the cache take."""
        return self._cache.weight

    @property
    def hits(self) -> int:
        """Events that were cached."""
        return self._cache.hits

    @property
    def misses(self) -> int:
        """Events that had to be read."""
        return self._cache.misses

    async def get_events(self, nids: Iterable[int]) -> Mapping[int, StoredEvent]:
        """Return events by number; unknown ones are missing."""
        wanted = list(nids)
        found = self._cache.get_many(wanted)
        missing = [nid for nid in wanted if nid not in found] if len(found) < len(wanted) else []
        while missing:
            changes = self._changes
            rows = await self._store.get_events(missing)
            rooms = await self._rooms.get_rooms_by_nid({row.room_nid for row in rows.values()})
            if changes != self._changes:
                continue  # a row may have been read before it changed
            for nid, row in rows.items():
                found[nid] = self.get_or_parse(rooms[row.room_nid], row)
            break
        return found

    def find(self, nid: int) -> StoredEvent | None:
        """Return the event of this number, if it is cached."""
        return self._cache.get(nid) if nid in self._cache else None

    def find_all(self, nids: Iterable[int]) -> Sequence[StoredEvent] | None:
        """Return the events of these numbers, if all of them are cached."""
        wanted = list(nids)
        if not all(map(self._cache.__contains__, wanted)):
            return None
        return list(map(self._cache.get_many(wanted).__getitem__, wanted))

    def holds(self, nids: Sequence[int], events: Sequence[StoredEvent]) -> bool:
        """Return whether the cached events of these numbers are these very objects."""
        return list(map(self._cache.peek, nids)) == events and self.find_all(nids) is not None

    async def get_event(self, room_nid: int, event_id: EventID) -> StoredEvent | None:
        """Return one event of a room by its ID, or None."""
        return (await self.get_by_id(room_nid, [event_id])).get(event_id)

    async def get_by_id(
        self, room_nid: int, event_ids: Iterable[EventID]
    ) -> Mapping[EventID, StoredEvent]:
        """Return events of a room by ID; unknown ones, and those of other rooms, are missing."""
        found = await self.get_in_any_room(event_ids)
        return {event_id: event for event_id, event in found.items() if event.room_nid == room_nid}

    async def get_in_any_room(self, event_ids: Iterable[EventID]) -> Mapping[EventID, StoredEvent]:
        """Return events by ID, of any room. Cached ones need no query."""
        nids: dict[str, int] = {}
        missing: list[EventID] = []
        for event_id in event_ids:
            nid = self._nids.get(event_id)
            if nid is None:
                missing.append(event_id)
            else:
                nids[event_id] = nid
        if missing:
            nids.update(await self._store.get_event_nids(missing))
        events = await self.get_events(nids.values())
        return {event.event.event_id: event for event in events.values()}

    def is_cached(self, event_id: EventID) -> bool:
        """Return whether the event is cached, and therefore stored."""
        return event_id in self._nids

    def get_or_parse(self, room: RoomRow, row: EventRow) -> StoredEvent:
        """Return the event of a row that was just read or written; the cached one if there is
        one."""
        cached = self._cache.peek(row.event_nid)
        if cached is not None:
            return cached
        event = load_event(
            ROOM_VERSIONS[room.version], EventID(row.event_id), RoomID(room.room_id), row.pdu
        )
        return self._put(StoredEvent(event=event, row=row))

    def expect(self, events: Iterable[Event]) -> None:
        """Register events that are about to be written, so that they are not parsed again when the
        stream announces them."""
        self._expected.update((event.event_id, event) for event in events)

    def stop_expecting(self, events: Iterable[Event]) -> None:
        """Unregister events after their write has ended or failed."""
        for event in events:
            self._expected.pop(event.event_id, None)

    def evict(self, event_ids: Iterable[EventID]) -> None:
        """Evict these events, because another node may have changed them."""
        for event_id in event_ids:
            nid = self._nids.get(event_id)
            if nid is not None:
                self._cache.pop(nid)

    def _put(self, stored: StoredEvent) -> StoredEvent:
        self._cache.put(stored.nid, stored)
        if stored.nid in self._cache:
            self._nids[stored.event.event_id] = stored.nid
        return stored

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.EVENT and isinstance(change.detail, EventRow):
                event = self._expected.get(change.detail.event_id)
                if event is not None:
                    self._put(StoredEvent(event=event, row=change.detail))
            elif change.topic in (Topic.REDACTED, Topic.OUTLIER_PLACED, Topic.PURGED):
                self._changes += 1
                if isinstance(change.detail, int):
                    self._cache.pop(change.detail)
                elif isinstance(change.detail, PurgedMessages):
                    for nid in change.detail.nids:
                        self._cache.pop(nid)
                else:  # the changed event is unknown
                    self._cache.clear()

    def _on_remote_write(self, after: int, _upto: int) -> None:
        """Evict events that another node may have changed.

        It may have redacted or purged cached events, placed outliers, or completed a room, which
        shows rejected events as new and hides others.
        """
        self._changes += 1
        # at once: clients that are woken ask for what is new
        for nid in [nid for nid, event in self._cache.items() if not event.in_timeline]:
            self._cache.pop(nid)
        Deferred.fromCoroutine(self._drop_changed(after)).addErrback(
            lambda failure: self._log.failure(
                "which events other nodes redacted is not known", failure
            )
        )

    async def _drop_changed(self, after: int) -> None:
        changes = await self._store.get_content_changes(self._latest_nid, after)
        self._latest_nid = changes.redaction_nid
        self._changes += 1
        self.evict(EventID(event_id) for event_id in changes.redacted)
        if changes.changed_rooms:
            for nid in [
                nid for nid, event in self._cache.items() if event.room_nid in changes.changed_rooms
            ]:
                self._cache.pop(nid)


def _weigh(pdu: bytes) -> int:
    """Estimate the memory of an event: its stored bytes, its client form, and the parsed values."""
    return 512 + 3 * len(pdu) + 64 * (pdu.count(b",") + pdu.count(b"{") + pdu.count(b"["))


def entries_before(
    event: StoredEvent, after: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], int]:
    """Return the state before an event, given the state after it."""
    entries = dict(after)
    if event.event.state_key is not None:
        if event.replaces is None:
            entries.pop(event.event.key, None)
        else:
            entries[event.event.key] = event.replaces
    return entries
