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
from homeserver.services.sliding_sync.room_work import RoomWork
from homeserver.services.sliding_sync.rooms import RoomEntries
from homeserver.services.sync.lazy_members import Member

LARGEST_ANSWER: Final = 4 * 1024 * 1024
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
    works: Sequence[RoomWork],
    upto: int,
    sent_members: set[Member],
    newly_sent: set[Member],
) -> tuple[dict[str, dict[str, Any]], Sequence[RoomWork]]:
    """The entries by room id, as many as an answer has room for; and the works that they are of.

    For the sets see `RoomEntries.make`.
    """
    if len(works) == 1:
        return await entries.make(request, connection, works, upto, sent_members, newly_sent), works
    made: dict[str, dict[str, Any]] = {}
    told, size = 0, 0
    opened = request.subscriptions
    works = sorted(
        works,
        key=lambda work: (work.room.room_id in opened, entries.find_latest(work)),
        reverse=True,
    )
    for portion in _portions_of(works):
        made |= await entries.make(request, connection, portion, upto, sent_members, newly_sent)
        told += len(portion)
        size += sum(map(_size, portion))
        if size > LARGEST_ANSWER:
            break
    return made, works[:told]


def _load_of(config: RoomConfig, *, initial: bool) -> int:
    """How many events a room may have, as far as it is known before they are read."""
    events = max(1, min(config.timeline_limit, MOST_EVENTS_AT_ONCE))
    if initial and config.required_state.all_members:
        return max(events, MOST_EVENTS_AT_ONCE // MOST_ROOMS_OF_MEMBERS)
    return events


def _portions_of(works: Sequence[RoomWork]) -> Iterator[Sequence[RoomWork]]:
    """One as a rule: as many as may be made before it is known how large they are."""
    begin, load = 0, 0
    loads: dict[tuple[int, bool], int] = {}
    for index, work in enumerate(works):
        case = (id(work.config), work.initial)  # mostly the same of all rooms
        events = loads.get(case)
        if events is None:
            events = loads[case] = _load_of(work.config, initial=work.initial)
        if load and load + events > MOST_EVENTS_AT_ONCE:
            yield works[begin:index]
            begin, load = index, 0
        load += events
    yield works[begin:]
