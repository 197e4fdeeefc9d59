"""A cache of the newest events of rooms in client form, shared by readers who see them plainly.

Laws:
- A page is valid as long as the room's newest events are these, and the cache of events has these
  very objects. A redaction, a purge or a write of another node replaces the objects there.
- Only the age of an event differs between readers of a page. A reader who gets transaction ids,
  children, or events that are not plain gets no page.
- Whether its events have children is asked again once any event has got a child.

For the reactor thread.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from itertools import repeat
from operator import attrgetter
from typing import Any, Final

import msgspec

from federation.protocol.ids import DeviceID, UserID
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import Seen, plain_since
from homeserver.services.rooms.aggregations import Aggregations
from homeserver.services.rooms.client_events import (
    ClientEvents,
    are_without_transactions,
    form_of_page,
)
from storage.cache import LRU
from storage.events.timelines import Arrival

MEMBER: Final = "m.room.member"
LARGEST_SHARE: Final = 16
"""A page that takes more than one part in so many of the capacity is not cached: it would evict
those of many rooms."""

_event_nid: Final = attrgetter("event_nid")
_origin_server_ts: Final = attrgetter("event.origin_server_ts")
_pdu: Final = attrgetter("pdu")
_pdu_event: Final = attrgetter("event.event")
_sender: Final = attrgetter("sender")
_sender_of: Final = attrgetter("event.sender")
_state_key: Final = attrgetter("state_key")
_weight: Final = attrgetter("weight")


class Page(msgspec.Struct, gc=False):
    """The newest events of a room, oldest first; at least one."""

    key: tuple[int, int]
    arrivals: Sequence[Arrival]
    limited: bool
    """Whether there are older ones."""
    nids: Sequence[int]
    events: Sequence[StoredEvent]
    shown: Sequence[Seen]
    """As a member sees them."""
    since: int
    """The position of the first."""
    people: Set[str]
    """Whose memberships are needed to show them."""
    senders: Mapping[str, Sequence[StoredEvent]]
    size: int
    """Of the events, in bytes."""
    weight: int
    """About how many bytes of memory it takes, with its events."""
    sent_at: Sequence[int]
    """When the events were sent, by their senders' clocks."""
    is_used: bool = False
    form: bytes | None = None
    """The JSON of the events with places for their ages; made when it is used a second time."""
    childless_at: int | None = None
    """What `Aggregations.children_heard` was when none of them had children."""
    beside: Any = None
    """What follows from the page, kept with it by who tells of the room (`keep_beside`)."""
    beside_weight: int = 0


class NewestPages:
    """Caches pages."""

    def __init__(
        self,
        timelines: Timelines,
        events: RoomEvents,
        aggregations: Aggregations,
        client_events: ClientEvents,
        now_ms: Callable[[], int],
        *,
        capacity: int,
    ) -> None:
        """`capacity`: about how many bytes, with the events."""
        self._timelines = timelines
        self._events = events
        self._aggregations = aggregations
        self._client_events = client_events
        self._now_ms = now_ms
        self._pages: LRU[tuple[int, int], Page] = LRU(
            max_weight=capacity, weigh=lambda _, page: page.weight, largest_share=LARGEST_SHARE
        )
        """By room and by the limit."""
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        """Pages in the cache."""
        return len(self._pages)

    @property
    def weight(self) -> int:
        """About how many bytes the pages take."""
        return self._pages.weight

    def find(self, room_nid: int, upto: int, limit: int) -> Page | None:
        """The newest events with position ≤ up to, as many as that at most. None where they are not
        all in memory, or not plain, or there are none."""
        stretch = self._timelines.find_latest(room_nid, 0, upto, limit)
        if stretch is None or not stretch.arrivals:
            return None
        key = (room_nid, limit)
        page = self._pages.get(key)
        if page is not None:
            is_same = page.arrivals == stretch.arrivals and page.limited == stretch.limited
            if is_same and self._events.holds(page.nids, page.events):
                self.hits += 1
                return page
            self._pages.pop(key)
        self.misses += 1
        nids = list(map(_event_nid, stretch.arrivals))
        events = self._events.find_all(nids)
        since = None if events is None else plain_since(events)
        if events is None or since is None:
            return None
        senders: dict[str, list[StoredEvent]] = {}
        for sender, event in zip(map(_sender_of, events), events, strict=True):
            senders.setdefault(sender, []).append(event)
        shown = list(map(Seen, events, repeat("join")))
        page = Page(
            key,
            stretch.arrivals,
            stretch.limited,
            nids,
            events,
            shown,
            since,
            people_in(shown),
            senders,
            sum(map(len, map(_pdu, events))),
            sum(map(_weight, events)),
            list(map(_origin_server_ts, events)),
        )
        self._pages.put(key, page)
        return page

    def present(
        self, user_id: UserID, device_id: DeviceID | None, page: Page
    ) -> list[msgspec.Raw] | msgspec.Raw | None:
        """The events of a page as a member gets them, without room ids: a list, or its JSON. None
        where it is not in memory that they have no children, or whether this device sent one."""
        heard = self._aggregations.children_heard
        if page.childless_at != heard:
            if not self._aggregations.lack_children(page.events):
                return None
            page.childless_at = heard
        own = page.senders.get(user_id, ()) if device_id is not None else ()
        if not page.is_used or not are_without_transactions(own, device_id):
            page.is_used = True
            return self._client_events.present_messages(user_id, device_id, page.events)
        if page.form is None:
            page.form = form_of_page(page.events)
            self._grow(page, len(page.form))
        now = self._now_ms()
        return msgspec.Raw(page.form % tuple(map(now.__sub__, page.sent_at)))

    def keep_beside(self, page: Page, beside: object, weight: int) -> None:
        """Keep this with a page that was just found. `weight`: about how many bytes it takes."""
        more = weight - page.beside_weight
        page.beside, page.beside_weight = beside, weight
        self._grow(page, more)

    def _grow(self, page: Page, size: int) -> None:
        page.weight += size
        if self._pages.peek(page.key) is page:  # else it was dropped
            self._pages.reweigh(page.key)


def people_in(timeline: Sequence[Seen]) -> set[str]:
    """Whose memberships are needed to show a timeline: senders, and those whom membership events
    are about."""
    events = list(map(_pdu_event, timeline))
    needed: set[str] = set(map(_sender, events))
    if any(map(_state_key, events)):
        needed.update(
            event.state_key for event in events if event.state_key and event.type == MEMBER
        )
    return needed
