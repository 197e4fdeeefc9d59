"""State resolution of room versions 2 to 11 (algorithm 2) and 12 (algorithm 2.1).

The two algorithms differ in two points:

- Algorithm 2 starts from the unconflicted state map, algorithm 2.1 from the empty state.
- The conflicted state subgraph contains the events between conflicted events in the auth graph.
  Algorithm 2.1 adds it to the full conflicted set, so that all its events are replayed. Algorithm 2
  does not add it, but needs the auth events of these events: the auth chain of a power event may
  leave the full conflicted set through them and enter it again.

spec: rooms/v2#state-resolution, rooms/v12#state-resolution
"""

from collections.abc import Collection, Iterable

import msgspec

from federation.protocol.event_auth import POWER_LEVELS
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID
from federation.protocol.state_resolution.ordering import sort_by_mainline, sort_by_power
from federation.protocol.state_resolution.pool import EventPool, PowerLevelsOf, StateLookup


class Disputed(msgspec.Struct, frozen=True):
    """The events of a resolution: those to replay, and those that are only passed through."""

    replayed: frozenset[EventID]
    """The full conflicted set."""
    between: frozenset[EventID]
    """Events that lie between some of them in the auth graph, but are not to be replayed."""


def resolve(
    disputed: Disputed,
    start: StateLookup,
    pool: EventPool,
    *,
    power_levels_of: PowerLevelsOf,
    rejected: Collection[EventID],
) -> dict[StateKey, EventID]:
    """The entries that the replay sets on top of the state `start` (steps 1 to 4). Raises
    `MissingInput`.

    spec: rooms/v2#algorithm, rooms/v12#algorithm
    """
    replay = _Replay(start, pool, rejected)
    chosen, between = _choose_power_events(disputed, pool)
    replay.run(sort_by_power(chosen, between, power_levels_of, pool))
    remaining = disputed.replayed - chosen
    replay.run(sort_by_mainline(remaining, replay.state(POWER_LEVELS), power_levels_of, pool))
    return replay.settled


def is_power_event(event: Event) -> bool:
    """Whether the event may take from someone the ability to do something. spec:
    rooms/v2#definitions (power events)"""
    if event.state_key is None:
        return False
    if event.type == "m.room.member":
        return event.membership in ("leave", "ban") and event.sender != event.state_key
    return event.type in ("m.room.power_levels", "m.room.join_rules")


def _choose_power_events(disputed: Disputed, pool: EventPool) -> tuple[set[EventID], set[EventID]]:
    """The power events with what authorises them (step 1), and the events between these that are
    not replayed."""
    queue = [event_id for event_id in disputed.replayed if is_power_event(pool[event_id])]
    visited = set(queue)
    while queue:
        for auth_id in pool[queue.pop()].auth_events:
            if auth_id not in visited and (
                auth_id in disputed.replayed or auth_id in disputed.between
            ):
                visited.add(auth_id)
                queue.append(auth_id)
    return visited & disputed.replayed, visited & disputed.between


class _Replay:
    """Iterative auth checks: a state that takes in, one by one, the events that it allows.

    spec: rooms/v2#definitions (iterative auth checks)
    """

    def __init__(self, start: StateLookup, pool: EventPool, rejected: Collection[EventID]) -> None:
        self._start = start
        self._pool = pool
        self._rejected = frozenset(rejected)
        self.settled: dict[StateKey, EventID] = {}

    def state(self, key: StateKey) -> EventID | None:
        """The entry of the state as it stands."""
        return self.settled.get(key) or self._start(key)

    def run(self, ordered: Iterable[EventID]) -> None:
        """Take in the events that are allowed at their turn; pass over the others."""
        for event_id in ordered:
            event = self._pool[event_id]
            # An auth event is used without being checked again, and so only if it was accepted.
            accepted = (auth_id for auth_id in event.auth_events if auth_id not in self._rejected)
            if event.state_key is not None and self._pool.allows(event, self.state, accepted):
                self.settled[event.key] = event_id
