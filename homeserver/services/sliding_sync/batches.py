"""Makes the rooms of a sliding sync response in batches, to bound the size of the response.

The size of events is known only after they are read. So each batch has a limited number of events.
Subscribed rooms come first, then the rooms with the newest events. When the response is full
(`MAX_RESPONSE_BYTES`), no further batch is read.
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

from homeserver.services.sliding_sync.connections import SlidingConnection
from homeserver.services.sliding_sync.request import RoomConfig, SlidingRequest
from homeserver.services.sliding_sync.room_entries import RoomEntries
from homeserver.services.sliding_sync.room_update import SlidingRoomUpdate
from homeserver.services.sync.lazy_members import RoomMember

MAX_RESPONSE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of events after which a response ends."""
MAX_EVENTS_PER_BATCH: Final = 500
"""Timeline events that are read before their size is checked."""
MAX_ROOMS_WITH_MEMBERS: Final = 10
"""Rooms in a batch if all of their members are asked for."""

_size: Final = attrgetter("size")


async def make_entries(
    entries: RoomEntries,
    request: SlidingRequest,
    connection: SlidingConnection,
    updates: Sequence[SlidingRoomUpdate],
    upto: int,
    confirmed_members: set[RoomMember],
    new_members: set[RoomMember],
) -> tuple[dict[str, dict[str, Any]], Sequence[SlidingRoomUpdate]]:
    """Make as many entries as fit into a response. Returns them by room ID, and their updates.

    For the sets of members see `RoomEntries.make`.
    """
    if len(updates) == 1:
        return await entries.make(
            request, connection, updates, upto, confirmed_members, new_members
        ), updates
    made: dict[str, dict[str, Any]] = {}
    done, size = 0, 0
    opened = request.subscriptions
    updates = sorted(
        updates,
        key=lambda update: (update.room.room_id in opened, entries.find_latest(update)),
        reverse=True,
    )
    for batch in _batches_of(updates):
        made |= await entries.make(request, connection, batch, upto, confirmed_members, new_members)
        done += len(batch)
        size += sum(map(_size, batch))
        if size > MAX_RESPONSE_BYTES:
            break
    return made, updates[:done]


def _load_of(config: RoomConfig, *, initial: bool) -> int:
    """The number of events that a room may have, before they are read."""
    events = max(1, min(config.timeline_limit, MAX_EVENTS_PER_BATCH))
    if initial and config.required_state.all_members:
        return max(events, MAX_EVENTS_PER_BATCH // MAX_ROOMS_WITH_MEMBERS)
    return events


def _batches_of(updates: Sequence[SlidingRoomUpdate]) -> Iterator[Sequence[SlidingRoomUpdate]]:
    """Split the updates into batches; mostly there is one."""
    begin, load = 0, 0
    loads: dict[tuple[int, bool], int] = {}
    for index, update in enumerate(updates):
        case = (id(update.config), update.initial)  # mostly the same for all rooms
        events = loads.get(case)
        if events is None:
            events = loads[case] = _load_of(update.config, initial=update.initial)
        if load and load + events > MAX_EVENTS_PER_BATCH:
            yield updates[begin:index]
            begin, load = index, 0
        load += events
    yield updates[begin:]
