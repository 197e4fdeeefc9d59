"""How much of an answer is made at once, and where it ends: the same for an answer made in the
ordinary way (`sliding_sync.py`) and in the shorter one (`messages.py`).

What events weigh is known once they are read; so rooms are made in portions that cannot become too
large, those that the client has open first, then those with the newest events, and after a portion
that filled the answer no other is begun.
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

from homeserver.services.sliding_sync.connections import Connection
from homeserver.services.sliding_sync.request import RoomConfig, SlidingRequest
from homeserver.services.sliding_sync.room_update import SlidingRoomUpdate
from homeserver.services.sliding_sync.rooms import RoomEntries
from homeserver.services.sync.lazy_members import Member

LARGEST_RESPONSE: Final = 4 * 1024 * 1024
"""In bytes of events: with what goes beyond it an answer ends."""
MOST_EVENTS_AT_ONCE: Final = 500
"""So many events of timelines are looked for before it is asked how large they are."""
MOST_ROOMS_OF_MEMBERS: Final = 10
"""As many rooms as are looked at before that if all of their members are asked for."""

_size: Final = attrgetter("size")


async def make_entries(
    entries: RoomEntries,
    request: SlidingRequest,
    connection: Connection,
    updates: Sequence[SlidingRoomUpdate],
    upto: int,
    confirmed_members: set[Member],
    new_members: set[Member],
) -> tuple[dict[str, dict[str, Any]], Sequence[SlidingRoomUpdate]]:
    """The entries by room id, as many as an answer has room for; and the updates that they are of.

    For the sets see `RoomEntries.make`.
    """
    if len(updates) == 1:
        return await entries.make(
            request, connection, updates, upto, confirmed_members, new_members
        ), updates
    made: dict[str, dict[str, Any]] = {}
    told, size = 0, 0
    opened = request.subscriptions
    updates = sorted(
        updates,
        key=lambda update: (update.room.room_id in opened, entries.find_latest(update)),
        reverse=True,
    )
    for portion in _portions_of(updates):
        made |= await entries.make(
            request, connection, portion, upto, confirmed_members, new_members
        )
        told += len(portion)
        size += sum(map(_size, portion))
        if size > LARGEST_RESPONSE:
            break
    return made, updates[:told]


def _load_of(config: RoomConfig, *, initial: bool) -> int:
    """How many events a room may have, as far as it is known before they are read."""
    events = max(1, min(config.timeline_limit, MOST_EVENTS_AT_ONCE))
    if initial and config.required_state.all_members:
        return max(events, MOST_EVENTS_AT_ONCE // MOST_ROOMS_OF_MEMBERS)
    return events


def _portions_of(updates: Sequence[SlidingRoomUpdate]) -> Iterator[Sequence[SlidingRoomUpdate]]:
    """One as a rule: as many as may be made before it is known how large they are."""
    begin, load = 0, 0
    loads: dict[tuple[int, bool], int] = {}
    for index, update in enumerate(updates):
        case = (id(update.config), update.initial)  # mostly the same of all rooms
        events = loads.get(case)
        if events is None:
            events = loads[case] = _load_of(update.config, initial=update.initial)
        if load and load + events > MOST_EVENTS_AT_ONCE:
            yield updates[begin:index]
            begin, load = index, 0
        load += events
    yield updates[begin:]
