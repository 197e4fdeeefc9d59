"""The two orders in which algorithms 2 and 2.1 replay events.

Both depend only on the events and not on the order of their arrival, so every server computes the
same order. The time is O(n log n) for n events. The code is not recursive, and ends even if the
auth events contain a cycle.

spec: rooms/v2#definitions (reverse topological power ordering, mainline ordering)
"""

import heapq
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from federation.protocol.ids import EventID
from federation.protocol.state_resolution.pool import EventPool, PowerLevelsOf

_OFF_MAINLINE: Final = math.inf


def sort_by_power(
    chosen: Collection[EventID],
    between: Collection[EventID],
    power_levels_of: PowerLevelsOf,
    pool: EventPool,
) -> list[EventID]:
    """The reverse topological power ordering of `chosen`: what authorises an event comes before it.

    `between` are events that are not to be ordered but lie between some that are. Events whose auth
    chain returns to itself have no place in any topological order and are left out: nothing can
    have authorised them.
    """
    nodes = {*chosen, *between}
    waits_for: dict[EventID, int] = {}
    cited_by: dict[EventID, list[EventID]] = {}
    for event_id in nodes:
        parents = nodes.intersection(pool[event_id].auth_events)
        waits_for[event_id] = len(parents)
        for parent in parents:
            cited_by.setdefault(parent, []).append(event_id)

    def rank(event_id: EventID) -> tuple[int, int, EventID]:
        """Return the sort key for events without an order in the graph.

        It starts with the sender's level according to the event's own auth events.
        """
        event = pool[event_id]
        level = pool.levels(power_levels_of(event_id)).user_level(event.sender)
        return -level, event.origin_server_ts, event_id

    ordered: list[EventID] = []
    ready: list[tuple[int, int, EventID]] = []
    free = [event_id for event_id, count in waits_for.items() if count == 0]
    while free or ready:
        if free:
            # Events in between hold nothing up: they are passed through before the next one is
            # chosen.
            event_id = free.pop()
            if event_id in chosen:
                heapq.heappush(ready, rank(event_id))
                continue
        else:
            event_id = heapq.heappop(ready)[-1]
            ordered.append(event_id)
        free.extend(_release(event_id, cited_by, waits_for))
    return ordered


def _release(
    done: EventID, cited_by: Mapping[EventID, list[EventID]], waits_for: dict[EventID, int]
) -> Iterator[EventID]:
    """Note that `done` is in its place; give the events that waited for nothing else."""
    for event_id in cited_by.get(done, ()):
        waits_for[event_id] -= 1
        if waits_for[event_id] == 0:
            yield event_id


def sort_by_mainline(
    remaining: Iterable[EventID],
    current_levels: EventID | None,
    power_levels_of: PowerLevelsOf,
    pool: EventPool,
) -> list[EventID]:
    """The mainline ordering of `remaining`, based on the power levels `current_levels` (None: there
    are none)."""
    position: dict[EventID, float] = {}
    levels_id = current_levels
    while levels_id is not None and levels_id not in position:
        position[levels_id] = len(position)
        levels_id = power_levels_of(levels_id)

    def find_position(event_id: EventID) -> float:
        """The position of the nearest power levels on the mainline; what is learnt on the way is
        kept."""
        passed: list[EventID] = []
        levels_id = power_levels_of(event_id)
        while levels_id is not None and levels_id not in position:
            # A walk that comes round to itself finds this, and never the mainline.
            position[levels_id] = _OFF_MAINLINE
            passed.append(levels_id)
            levels_id = power_levels_of(levels_id)
        found = _OFF_MAINLINE if levels_id is None else position[levels_id]
        position.update(dict.fromkeys(passed, found))
        return found

    def rank(event_id: EventID) -> tuple[float, int, EventID]:
        return -find_position(event_id), pool[event_id].origin_server_ts, event_id

    return sorted(remaining, key=rank)
