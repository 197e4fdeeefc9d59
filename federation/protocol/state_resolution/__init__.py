"""State resolution: computes the state of a room after forks of its history.

Room version 1 uses algorithm 1, versions 2 to 11 use algorithm 2, and version 12 uses algorithm
2.1. Every server must compute the same state. So the result depends only on the given values, and
not on the order of states, keys or events.

The *undisputed state* consists of the entries that all states share. (Algorithms 2 and 2.1 of the
specification call it the unconflicted state map.) The *events in dispute* are the events that a
resolution reads first: the conflicted events and, in algorithms 2 and 2.1, also the auth difference
and the conflicted state subgraph. (`v2.py` explains why algorithm 2 needs the subgraph.)

A caller that can find the differences between stored states cheaply uses four steps. With them, the
cost depends on the number of conflicts, not on the size of the room.

1. Call `find_conflicts` with the states, reduced to the keys in which they differ.
2. For algorithms 2 and 2.1, read three things from the auth-chain index (`auth_graph.py` defines
   them): the auth difference of the *complete* states, the conflicted state subgraph of the
   conflicted events, and the power lineage of the full conflicted set and of the undisputed power
   levels. For all algorithms, load the events that `events_in_dispute` returns.
3. Call `compute_needs`. It returns which auth events and which entries of the undisputed state the
   algorithm also reads. Load them.
4. Call `resolve_conflicts`. It returns the entries in which the resolved state differs from the
   undisputed state.

`resolve` resolves complete states in memory with one call. Its caller computes the data of step 2
with the functions of `auth_graph.py`. If the caller did not load something that is needed, a
`MissingInput` error names it.

spec: rooms/v1#state-resolution, rooms/v2#state-resolution, rooms/v12#state-resolution
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from federation.protocol.event_auth import POWER_LEVELS, auth_events_needed
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID
from federation.protocol.room_versions import RoomVersion, StateResolution
from federation.protocol.state_resolution import v1, v2
from federation.protocol.state_resolution.auth_graph import (
    compute_auth_difference,
    compute_conflicted_subgraph,
    compute_power_lineage,
)
from federation.protocol.state_resolution.conflicts import Conflicts, find_conflicts
from federation.protocol.state_resolution.pool import (
    EventPool,
    MissingEvent,
    MissingInput,
    MissingLineage,
    MissingStateKey,
    StateLookup,
)

__all__ = [
    "AuthGraph",
    "Conflicts",
    "MissingEvent",
    "MissingInput",
    "MissingLineage",
    "MissingStateKey",
    "Needs",
    "compute_auth_difference",
    "compute_conflicted_subgraph",
    "compute_needs",
    "compute_power_lineage",
    "events_in_dispute",
    "find_conflicts",
    "resolve",
    "resolve_conflicts",
]

_EMPTY_STATE: Final[Mapping[StateKey, EventID]] = MappingProxyType({})
"""The state from which algorithm 2.1 starts."""


class AuthGraph(msgspec.Struct, frozen=True):
    """Facts from the auth chains about a conflict. Algorithm 1 ignores them: pass `AuthGraph()`."""

    auth_difference: Collection[EventID] = ()
    """As `compute_auth_difference` of the whole states."""
    conflicted_subgraph: Collection[EventID] = ()
    """As `compute_conflicted_subgraph` of the conflicted events; in algorithm 2 as well (see
    `v2`)."""
    power_lineage: Mapping[EventID, EventID | None] | None = None
    """As `compute_power_lineage` of the events that are replayed and the undisputed power levels.
    None: it is read from the events, which must then hold all auth events of every
    m.room.power_levels event in the auth chains."""

    def power_levels_of(self, event_id: EventID) -> EventID | None:
        """Look up an event in `power_lineage`. Raises `MissingLineage`."""
        if self.power_lineage is None or event_id not in self.power_lineage:
            raise MissingLineage(event_id)
        return self.power_lineage[event_id]


class Needs(msgspec.Struct, frozen=True):
    """Data that a resolution needs besides the events in dispute."""

    state_keys: frozenset[StateKey]
    """Keys to look up in the undisputed state."""
    state_events: frozenset[StateKey]
    """Keys among `state_keys` of which the event has to be loaded too."""
    auth_events: frozenset[EventID]
    """Events that stand in for entries that the state has not."""


def events_in_dispute(
    version: RoomVersion, conflicts: Conflicts, graph: AuthGraph
) -> frozenset[EventID]:
    """Return the events to load before `compute_needs` is called."""
    if version.state_resolution is StateResolution.V1:
        return frozenset(conflicts.events)
    disputed = _find_disputed(version, conflicts, graph)
    return disputed.replayed | disputed.between


def compute_needs(
    version: RoomVersion, conflicts: Conflicts, graph: AuthGraph, events: Mapping[EventID, Event]
) -> Needs:
    """Return the state keys to look up and load besides `events_in_dispute`.

    `events` must hold the latter. The create event is passed to the resolution separately, but may
    be in the result. Raises `MissingEvent`.
    """
    with_auth_graph = version.state_resolution is not StateResolution.V1
    disputed = (
        _find_disputed(version, conflicts, graph).replayed if with_auth_graph else conflicts.events
    )
    state_keys: set[StateKey] = set()
    # The mainline begins at the power levels, whether or not a disputed event asks for them.
    state_events: set[StateKey] = {POWER_LEVELS} if with_auth_graph else set()
    auth_events: set[EventID] = set()
    for event_id in disputed:
        event = events.get(event_id)
        if event is None:
            raise MissingEvent(event_id)
        if event.state_key is not None:
            state_keys.add(event.key)
        state_events |= auth_events_needed(version, event)
        if with_auth_graph:
            auth_events.update(event.auth_events)
    return Needs(
        frozenset(state_keys | state_events),
        frozenset(state_events),
        frozenset(auth_events - events.keys()),
    )


def resolve_conflicts(
    version: RoomVersion,
    conflicts: Conflicts,
    undisputed: Mapping[StateKey, EventID | None],
    events: Mapping[EventID, Event],
    *,
    create: Event,
    graph: AuthGraph,
    rejected: Collection[EventID] = (),
) -> dict[StateKey, EventID]:
    """The entries that the resolved state has besides, or instead of, those that all states share.

    A conflicted key that is not in the answer has no entry in the resolved state. `undisputed` has
    the keys that `compute_needs` named, None where the shared state has no such entry; what
    `conflicts` calls unconflicted need not be in it. `events` are those in dispute and those that
    `compute_needs` named; `rejected` those of them that were rejected on receipt. Raises
    `MissingInput`.
    """

    def look_up(key: StateKey) -> EventID | None:
        if key in conflicts.unconflicted:
            return conflicts.unconflicted[key]
        if key in conflicts.conflicted:
            return None
        if key not in undisputed:
            raise MissingStateKey(key)
        return undisputed[key]

    settled = _settle(version, conflicts, look_up, EventPool(events, create), graph, rejected)
    return {**settled, **conflicts.unconflicted}


def resolve(
    version: RoomVersion,
    state_sets: Sequence[Mapping[StateKey, EventID]],
    events: Mapping[EventID, Event],
    *,
    create: Event,
    graph: AuthGraph,
    rejected: Collection[EventID] = (),
) -> dict[StateKey, EventID]:
    """The resolution of states that are given whole. `events` as in `resolve_conflicts`. Raises
    `MissingInput`."""
    conflicts = find_conflicts(version, state_sets)
    settled = _settle(
        version, conflicts, conflicts.unconflicted.get, EventPool(events, create), graph, rejected
    )
    return {**settled, **conflicts.unconflicted}


def _find_disputed(version: RoomVersion, conflicts: Conflicts, graph: AuthGraph) -> v2.Disputed:
    """The full conflicted set, and what lies between. spec: rooms/v2#definitions,
    rooms/v12#definitions"""
    replayed = frozenset(conflicts.events).union(graph.auth_difference)
    if version.state_resolution is StateResolution.V2_1:
        replayed = replayed.union(graph.conflicted_subgraph)
    return v2.Disputed(replayed, frozenset(graph.conflicted_subgraph) - replayed)


def _settle(
    version: RoomVersion,
    conflicts: Conflicts,
    undisputed: StateLookup,
    pool: EventPool,
    graph: AuthGraph,
    rejected: Collection[EventID],
) -> dict[StateKey, EventID]:
    """The entries that the version's algorithm sets where the undisputed state has none."""
    if not conflicts.conflicted:
        return {}
    if version.state_resolution is StateResolution.V1:
        return v1.resolve(conflicts.conflicted, undisputed, pool)
    settled = v2.resolve(
        _find_disputed(version, conflicts, graph),
        _EMPTY_STATE.get if version.state_resolution is StateResolution.V2_1 else undisputed,
        pool,
        power_levels_of=pool.power_levels_of
        if graph.power_lineage is None
        else graph.power_levels_of,
        rejected=rejected,
    )
    return {key: event_id for key, event_id in settled.items() if undisputed(key) is None}
