"""Computes the auth difference, the conflicted state subgraph and the power lineage, by walking
along auth events.

- The auth difference: the events that are in the auth chain of some of the states, but not of all.
- The conflicted state subgraph: the events on paths along auth events between two conflicted
  events.
- The power lineage of an event: the power-levels event among its auth events, then the one among
  the auth events of that event, and so on.

The walks visit the complete auth chain, so they are for tests and for rooms in memory. The room
engine reads the same data from its auth-chain index. The walks are not recursive. They end even if
the auth events form a cycle. (Cycles are possible in room versions 1 and 2, where the sending
server chooses the event ids.)
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID
from federation.protocol.state_resolution.pool import sets_power_levels

Neighbours = Callable[[EventID], Iterable[EventID]]
"""For an event the events it points to; in `auth_events_of`, its auth events."""


def compute_auth_difference(
    state_sets: Sequence[Mapping[StateKey, EventID]], auth_events_of: Neighbours
) -> set[EventID]:
    """The events that are in the auth chain of some, but not of every state.

    Needs the whole states: an event in the auth chain of something that all agree on is in every
    chain, and so not in the difference, however many of the conflicted events lack it. spec:
    rooms/v2#definitions (auth difference)
    """
    seen_by: Counter[EventID] = Counter()
    for state in state_sets:
        seen_by.update(_reach(state.values(), auth_events_of))
    return {event_id for event_id, count in seen_by.items() if count < len(state_sets)}


def compute_conflicted_subgraph(
    conflicted: Iterable[EventID], auth_events_of: Neighbours
) -> set[EventID]:
    """The events on a path along auth events from one conflicted event to another, both ends
    included.

    spec: rooms/v12#definitions (conflicted state subgraph)
    """
    ends = set(conflicted)
    below = _reach(ends, auth_events_of)
    cited_by: dict[EventID, list[EventID]] = {}
    for event_id in ends | below:
        for auth_id in auth_events_of(event_id):
            cited_by.setdefault(auth_id, []).append(event_id)
    above = _reach(ends, lambda event_id: cited_by.get(event_id, ()))
    return (below & above) | (ends & (below | above))


def compute_power_lineage(
    start: Iterable[EventID], events: Mapping[EventID, Event]
) -> dict[EventID, EventID | None]:
    """For each event of `start`, and each event in the answer, the power levels among its auth
    events, or None.

    `events` must hold every m.room.power_levels event in the auth chain of `start`; an auth event
    that is not in it is taken to be of another type. Where the auth chain is indexed by type, this
    needs one query and no walk. spec: rooms/v2#definitions (mainline ordering)
    """
    lineage: dict[EventID, EventID | None] = {}
    queue = list(start)
    while queue:
        event_id = queue.pop()
        if event_id in lineage:
            continue
        cited = (auth_id for auth_id in events[event_id].auth_events if auth_id in events)
        levels = next((auth_id for auth_id in cited if sets_power_levels(events[auth_id])), None)
        lineage[event_id] = levels
        if levels is not None:
            queue.append(levels)
    return lineage


def _reach(start: Iterable[EventID], neighbours: Neighbours) -> set[EventID]:
    """All that is reached from `start` in one step or more."""
    reached: set[EventID] = set()
    queue = list(start)
    expanded = set(queue)
    while queue:
        for neighbour in neighbours(queue.pop()):
            reached.add(neighbour)
            if neighbour not in expanded:
                expanded.add(neighbour)
                queue.append(neighbour)
    return reached
