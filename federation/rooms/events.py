"""Events as the rest of the server reads them: parsed, cached, with the bytes that clients get.

The cache holds what never changes. The exceptions, a redaction or a content that comes late, a
purge, and an outlier that finds its place, are heard of on the stream and drop the event.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.protocol.events import Event, client_form_prefix, encode_event_json, load_event
from federation.protocol.ids import EventID, RoomID
from federation.protocol.redaction import redact
from federation.protocol.room_versions import ROOM_VERSIONS
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventFlag, EventRow, EventStore
from storage.retention.purging import PurgedMessages
from storage.rooms.rooms import RoomRow, RoomStore

MOST_ON_AVERAGE: Final = 4096
"""In bytes of memory, of the events that are kept: usual ones take less, the largest fifty times as
much and more."""
NO_TRANSACTION: Final = ("", "")
"""In the place of device and transaction id, of what no client has sent."""


class StoredEvent:
    """An event with what storage knows of it."""

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

    def __init__(self, event: Event, row: EventRow) -> None:
        self.event = event
        self.nid = row.event_nid
        self.aged_from = row.origin_server_ts
        """From when its age counts, in milliseconds since 1970: what claims to be from the future
        is as old as its arrival."""
        self.room_nid = row.room_nid
        self.depth = row.depth
        """How deep it stands by our own count: what an event claims of itself need not be so."""
        self.position = row.position
        """Arrival in the one sequence; None for what is not shown as new."""
        self.flags = row.flags
        self.state_root = row.state_root
        self.current_root = row.state_root if row.current_root is None else row.current_root
        """Root of the room's current state once it had arrived."""
        self.replaces = row.replaces
        """Number of the state entry that it took the place of."""
        self.redacted_by = row.redacted_by
        """Number of the redaction that took the content away."""
        self.thread_root = row.thread_root
        """The thread that it stands in, by its root, as far as it notifies anybody or was redacted;
        None for the main timeline."""
        self.pdu = row.pdu
        self.weight = _weigh(row.pdu)
        """About how many bytes of memory it takes, parsed and encoded."""
        self.sent: tuple[str, str] | None = None
        """Device and transaction id, or that there is none, as far as it is known."""
        self.is_plain = row.replaces is None and row.redacted_by is None and event.sticky_ms is None
        """Whether a reader is told nothing of it beside the event, but for children and transaction
        ids."""
        self.leaves_state = event.state_key is None and not row.flags & EventFlag.RESOLVED
        """Whether the room's current state was the same after its arrival as before."""
        self.is_plain_message = (
            self.is_plain and self.leaves_state and self.is_shown and not self.is_after_hole
        )
        """Whether who was in the room when it arrived sees it just as it is, nothing else has
        changed and nothing is missing before it."""

    def with_content_of(self, event: Event) -> "StoredEvent":
        """The same with another form of the event, for a reader who is not to get all of it."""
        other = copy(self)
        other.event = event
        other.client_prefix = client_form_prefix(event)
        return other

    def without_content(self) -> "StoredEvent":
        """The same with what a redaction leaves of the event."""
        event = self.event
        pruned = encode_event_json(event.version, redact(event.version, event.pdu))
        return self.with_content_of(
            load_event(event.version, event.event_id, event.room_id, pruned)
        )

    def __getattr__(self, name: str) -> bytes:
        """Called for what is not there yet: the client form is made when it is first asked for."""
        if name != "client_prefix":
            raise AttributeError(name)
        self.client_prefix = client_form_prefix(self.event)
        return self.client_prefix

    @property
    def in_timeline(self) -> bool:
        """Accepted, and neither outlier nor soft-failed."""
        return bool(self.flags & EventFlag.TIMELINE)

    @property
    def is_shown(self) -> bool:
        """What readers may see: it stands in the timeline, and was not purged."""
        return self.flags & (EventFlag.TIMELINE | EventFlag.PURGED) == EventFlag.TIMELINE

    @property
    def is_after_hole(self) -> bool:
        """Whether some of what it follows was not here when it came."""
        return bool(self.flags & EventFlag.AFTER_HOLE)

    @property
    def is_purged(self) -> bool:
        """Whether its content is gone for good, by its age or since an administrator said so."""
        return bool(self.flags & EventFlag.PURGED)

    def is_expired(self, oldest: int) -> bool:
        """Whether it is a message that is older than the oldest which is still to be shown
        (`Lifetimes.oldest_shown`)."""
        return self.event.state_key is None and self.aged_from < oldest

    @property
    def resolved(self) -> bool:
        """Whether the current state changed with its arrival by more than what it sets, since forks
        were resolved."""
        return bool(self.flags & EventFlag.RESOLVED)

    @property
    def rejected(self) -> bool:
        """Refused by authorization."""
        return bool(self.flags & EventFlag.REJECTED)

    @property
    def is_outlier(self) -> bool:
        """Kept without a place in the room."""
        return bool(self.flags & EventFlag.OUTLIER)


class RoomEvents:
    """Reads events in batches through a cache of the most recently used ones. For the reactor
    thread."""

    def __init__(
        self, store: EventStore, rooms: RoomStore, streams: Streams, *, capacity: int
    ) -> None:
        """`capacity` is in events, of `MOST_ON_AVERAGE` bytes: of large ones fewer are kept."""
        self._store = store
        self._rooms = rooms
        self._capacity = capacity
        self._capacity_bytes = capacity * MOST_ON_AVERAGE
        self.weight = 0
        """About how many bytes the events in the cache take."""
        self._cache: OrderedDict[int, StoredEvent] = OrderedDict()
        self._nids: dict[str, int] = {}
        """Numbers of the events in the cache, by id."""
        self.hits = 0
        self.misses = 0
        self._changes_heard = 0
        self._expected: dict[str, Event] = {}
        self._latest_nid = 0
        """The highest number of an event that this node has heard of: redactions of other nodes are
        above it."""
        self._log = Logger()
        streams.subscribe(self._hear, Topic.EVENT, Topic.REDACTED, Topic.PLACED, Topic.PURGED)
        streams.watch(self._heed_others)

    def __len__(self) -> int:
        """Events in the cache."""
        return len(self._cache)

    async def get_events(self, nids: Iterable[int]) -> Mapping[int, StoredEvent]:
        """Events by number; unknown ones are missing from the answer."""
        cache = self._cache
        wanted = list(nids)
        if not wanted:
            return {}
        cached = list(map(cache.get, wanted))
        missing: list[int] = []
        if None in cached:
            missing = [nid for nid, event in zip(wanted, cached, strict=True) if event is None]
            wanted = [nid for nid, event in zip(wanted, cached, strict=True) if event is not None]
        found = dict(zip(wanted, filter(None, cached), strict=True))
        deque(map(cache.move_to_end, found), 0)
        self.hits += len(found)
        self.misses += len(missing)
        while missing:
            heard = self._changes_heard
            rows = await self._store.get_events(missing)
            rooms = await self._rooms.get_rooms_by_nid({row.room_nid for row in rows.values()})
            if heard != self._changes_heard:
                # a row may have been read just before it changed: read again, or the cache would
                # keep it
                continue
            for nid, row in rows.items():
                found[nid] = self.keep(rooms[row.room_nid], row)
            break
        return found

    def find(self, nid: int) -> StoredEvent | None:
        """The event of this number, if it is in memory."""
        found = self._cache.get(nid)
        if found is not None:
            self._cache.move_to_end(nid)
            self.hits += 1
        return found

    def find_all(self, nids: Iterable[int]) -> Sequence[StoredEvent] | None:
        """The events of these numbers, if all of them are in memory."""
        wanted = list(nids)
        found = list(filter(None, map(self._cache.get, wanted)))
        if len(found) < len(wanted):
            return None
        deque(map(self._cache.move_to_end, wanted), 0)
        self.hits += len(wanted)
        return found

    def holds(self, nids: Sequence[int], events: Sequence[StoredEvent]) -> bool:
        """Whether the events in memory that have these numbers are these very ones."""
        if list(map(self._cache.get, nids)) != events:
            return False
        deque(map(self._cache.move_to_end, nids), 0)
        self.hits += len(nids)
        return True

    async def get_event(self, room_nid: int, event_id: EventID) -> StoredEvent | None:
        """One event of a room by its id, or None."""
        return (await self.get_by_id(room_nid, [event_id])).get(event_id)

    async def get_by_id(
        self, room_nid: int, event_ids: Iterable[EventID]
    ) -> Mapping[EventID, StoredEvent]:
        """Events of a room by id; unknown ones, and those of other rooms, are missing from the
        answer."""
        found = await self.get_anywhere(event_ids)
        return {event_id: event for event_id, event in found.items() if event.room_nid == room_nid}

    async def get_anywhere(self, event_ids: Iterable[EventID]) -> Mapping[EventID, StoredEvent]:
        """Events by id, of whatever room: for what others say of rooms. No query for what is
        cached."""
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
        """Whether the event is at hand without a query: then it is stored."""
        return event_id in self._nids

    def keep(self, room: RoomRow, row: EventRow) -> StoredEvent:
        """The event of a row that was just read or written, from the cache if it is there."""
        cached = self._cache.get(row.event_nid)
        if cached is not None:
            return cached
        event = load_event(
            ROOM_VERSIONS[room.version], EventID(row.event_id), RoomID(room.room_id), row.pdu
        )
        return self._put(StoredEvent(event, row))

    def expect(self, events: Iterable[Event]) -> None:
        """These are about to be written: when the stream tells of them, they need not be parsed
        again."""
        self._expected.update((event.event_id, event) for event in events)

    def forget_expected(self, events: Iterable[Event]) -> None:
        """The write has ended, one way or the other."""
        for event in events:
            self._expected.pop(event.event_id, None)

    def forget(self, event_ids: Iterable[EventID]) -> None:
        """Read these anew when they are next asked for: another node may have changed them."""
        for event_id in event_ids:
            nid = self._nids.get(event_id)
            if nid is not None:
                self._drop(nid)

    def _put(self, stored: StoredEvent) -> StoredEvent:
        self._drop(stored.nid)
        self._cache[stored.nid] = stored
        self._nids[stored.event.event_id] = stored.nid
        self.weight += stored.weight
        while len(self._cache) > self._capacity or self.weight > self._capacity_bytes:
            self._drop(next(iter(self._cache)))
        return stored

    def _drop(self, nid: int) -> None:
        dropped = self._cache.pop(nid, None)
        if dropped is not None:
            del self._nids[dropped.event.event_id]
            self.weight -= dropped.weight

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.EVENT and isinstance(change.detail, EventRow):
                event = self._expected.get(change.detail.event_id)
                if event is not None:
                    self._put(StoredEvent(event, change.detail))
            elif change.topic in (Topic.REDACTED, Topic.PLACED, Topic.PURGED):
                self._changes_heard += 1
                if isinstance(change.detail, int):
                    self._drop(change.detail)
                elif isinstance(change.detail, PurgedMessages):
                    for nid in change.detail.nids:
                        self._drop(nid)
                else:  # another node's: of which event is not known here
                    self._cache.clear()
                    self._nids.clear()
                    self.weight = 0

    def _heed_others(self, after: int, _upto: int) -> None:
        """Another node has written: it may have redacted or purged events that are kept here, or
        placed outliers, or completed a room: then what was refused may be shown, as news, and what
        was shown may be refused."""
        self._changes_heard += 1
        # at once: whoever is woken asks for what is news
        for nid in [nid for nid, event in self._cache.items() if not event.in_timeline]:
            self.forget([self._cache[nid].event.event_id])
        Deferred.fromCoroutine(self._forget_redacted(after)).addErrback(
            lambda failure: self._log.failure("what other nodes redacted is not known", failure)
        )

    async def _forget_redacted(self, after: int) -> None:
        lost = await self._store.get_lost_since(self._latest_nid, after)
        self._latest_nid = lost.redaction_nid
        self._changes_heard += 1
        self.forget(EventID(event_id) for event_id in lost.redacted)
        if lost.changed_rooms:
            for nid in [
                nid for nid, event in self._cache.items() if event.room_nid in lost.changed_rooms
            ]:
                self._drop(nid)


def _weigh(pdu: bytes) -> int:
    """Its bytes stay as they are stored, as clients get them, and parsed, where each value is an
    object."""
    return 512 + 3 * len(pdu) + 64 * (pdu.count(b",") + pdu.count(b"{") + pdu.count(b"["))


def entries_before(
    event: StoredEvent, after: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], int]:
    """The state before an event, of that after it."""
    entries = dict(after)
    if event.event.state_key is not None:
        if event.replaces is None:
            entries.pop(event.event.key, None)
        else:
            entries[event.event.key] = event.replaces
    return entries
