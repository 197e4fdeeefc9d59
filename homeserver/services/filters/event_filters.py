"""Filters of events: parses the filters that clients send, and decides which events pass.

spec: client-server-api#filtering
"""

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from federation.protocol.errors import BadJson
from federation.protocol.events import Event
from federation.rooms.relations import read_relation

DEFAULT_LIMIT: Final = 10
MAX_LIMIT: Final = 1000
MAX_ENTRIES: Final = 1000
"""Entries of each list of a filter."""
MAX_CACHED_BYTES: Final = 4096
"""Larger filters are parsed each time, so that the cache stays small."""
MAX_CACHED_NAMES: Final = 50
"""Names in a filter whose decisions about event types are cached."""

T = TypeVar("T", bound=msgspec.Struct)
Name = Annotated[str, msgspec.Meta(max_length=255)]
Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_ENTRIES)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class EventFilter(msgspec.Struct, frozen=True):
    """A filter of events without a room.

    spec: client-server-api#post_matrixclientv3useruseridfilter_request_eventfilter
    """

    limit: Count | None = None
    types: Names | None = None
    not_types: Names = ()
    senders: Names | None = None
    not_senders: Names = ()

    @property
    def is_open(self) -> bool:
        """Whether everything passes."""
        return (
            self.types is None
            and not self.not_types
            and self.senders is None
            and not self.not_senders
        )

    def allows(self, type: str, sender: str | None) -> bool:
        """Return whether content of that type and sender (None: without sender) passes."""
        if self.is_open:
            return True
        if not _allows_type(self.types, self.not_types, type):
            return False
        return sender is None or _is_in(self.senders, self.not_senders, sender)


class RoomEventFilter(EventFilter, frozen=True, dict=True):
    """A filter of events in rooms.

    spec: client-server-api#post_matrixclientv3useruseridfilter_request_roomeventfilter
    """

    rooms: Names | None = None
    not_rooms: Names = ()
    contains_url: bool | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False
    unstable_thread_notifications: bool = msgspec.field(
        default=False, name="org.matrix.msc3773.unread_thread_notifications"
    )
    related_by_senders: Names | None = None
    related_by_rel_types: Names | None = None
    rel_types: Names | None = msgspec.field(default=None, name="org.matrix.msc3874.rel_types")
    not_rel_types: Names = msgspec.field(default=(), name="org.matrix.msc3874.not_rel_types")

    @cached_property
    def passes_all_events(self) -> bool:
        """Whether all events of an allowed room pass."""
        return (
            self.types is None
            and self.senders is None
            and self.contains_url is None
            and self.rel_types is None
            and self.related_by_senders is None
            and self.related_by_rel_types is None
            and not (self.not_types or self.not_senders or self.not_rel_types)
        )

    @property
    def filters_by_relation(self) -> bool:
        """Whether only events with certain children pass."""
        return self.related_by_senders is not None or self.related_by_rel_types is not None

    @property
    def _filters_by_parent(self) -> bool:
        return self.rel_types is not None or bool(self.not_rel_types)

    def allows_room(self, room_id: str) -> bool:
        """Return whether events of the room can pass."""
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)

    def allows_event(self, event: Event) -> bool:
        """Return whether an event of an allowed room passes, without regard to its children."""
        if not self.allows(event.type, event.sender):
            return False
        if self._filters_by_parent and not self._allows_relation(event):
            return False
        return self.contains_url is None or self.contains_url == isinstance(
            event.content.get("url"), str
        )

    def _allows_relation(self, event: Event) -> bool:
        relation = read_relation(event)
        if relation is None:
            return self.rel_types is None
        return _is_in(self.rel_types, self.not_rel_types, relation.rel_type)


class RoomFilter(msgspec.Struct, frozen=True):
    """The room part of a filter.

    spec: client-server-api#post_matrixclientv3useruseridfilter_request_roomfilter
    """

    rooms: Names | None = None
    not_rooms: Names = ()
    include_leave: bool = False
    timeline: RoomEventFilter = RoomEventFilter()
    state: RoomEventFilter = RoomEventFilter()
    ephemeral: RoomEventFilter = RoomEventFilter()
    account_data: RoomEventFilter = RoomEventFilter()

    def allows_room(self, room_id: str) -> bool:
        """Return whether the response includes the room."""
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)


class Filter(msgspec.Struct, frozen=True, dict=True):
    """The filter of a sync. spec: client-server-api#post_matrixclientv3useruseridfilter"""

    event_fields: Names | None = None
    event_format: Literal["client", "federation"] = "client"
    presence: EventFilter = EventFilter()
    account_data: EventFilter = EventFilter()
    room: RoomFilter = RoomFilter()

    @cached_property
    def loads_lazily(self) -> bool:
        """Whether the response has only the members that its events need (lazy loading)."""
        return self.room.state.lazy_load_members or self.room.timeline.lazy_load_members

    @cached_property
    def passes_all_messages(self) -> bool:
        """Whether all timeline events pass, in the usual format, up to the timeline limit."""
        room, timeline = self.room, self.room.timeline
        return (
            timeline.passes_all_events
            and self.event_fields is None
            and self.event_format == "client"
            and room.rooms is None
            and timeline.rooms is None
            and not (room.not_rooms or timeline.not_rooms)
        )


NO_FILTER: Final = Filter()


def parse_filter(json: bytes | str) -> Filter:
    """Parse a sync filter. Raises BadJson."""
    return _parse_cached(json) if len(json) <= MAX_CACHED_BYTES else _parse(json, Filter)


@lru_cache(maxsize=512)
def _parse_cached(json: bytes | str) -> Filter:
    return _parse(json, Filter)


def parse_room_event_filter(json: bytes | str) -> RoomEventFilter:
    """Parse the filter in the query of /messages, /context and others. Raises BadJson."""
    return _parse(json, RoomEventFilter)


def limit_of(filter: EventFilter, default: int = DEFAULT_LIMIT) -> int:
    """Return the limit of a filter, within bounds."""
    return default if filter.limit is None else max(0, min(filter.limit, MAX_LIMIT))


def _parse(json: bytes | str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(json, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise BadJson(f"The filter does not have the expected form: {error}") from None


def _is_in(wanted: Sequence[str] | None, unwanted: Sequence[str], value: str) -> bool:
    return value not in unwanted and (wanted is None or value in wanted)


def _allows_type(wanted: Names | None, unwanted: Names, type: str) -> bool:
    is_cached = len(wanted or ()) + len(unwanted) <= MAX_CACHED_NAMES
    return (_match_type_cached if is_cached else _match_type)(wanted, unwanted, type)


def _match_type(wanted: Names | None, unwanted: Names, type: str) -> bool:
    if any(_matches(pattern, type) for pattern in unwanted):
        return False
    return wanted is None or any(_matches(pattern, type) for pattern in wanted)


_match_type_cached = lru_cache(maxsize=2048)(_match_type)


def _matches(pattern: str, type: str) -> bool:
    if "*" not in pattern:
        return pattern == type
    return _glob(pattern).fullmatch(type) is not None


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    # atomic groups keep each part at its first match: without them a few stars would backtrack
    # exponentially
    first, *rest = map(re.escape, re.split(r"\*+", pattern))
    return re.compile(
        first + "".join(f"(?>.*?{part})" for part in rest[:-1]) + f".*{rest[-1]}", re.DOTALL
    )
