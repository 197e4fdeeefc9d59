"""State resolution of room version 1, for the rooms that still use it.

Conflicts about m.room.power_levels, m.room.join_rules and m.room.member are resolved first, in this
order, because these types affect authorization. Conflicts about all other types follow. Candidates
are ordered by depth and the hash of the event id, not by the auth graph. This algorithm can reset
state to older events. Later versions correct that.

The specification leaves two points open:

- For each of the three types, it describes one list of events. Here each key of a type is resolved
  separately, against the state before its type was resolved. The reason: the membership of one user
  does not affect that of another, and the result must not depend on the order of keys.
- For other types, a key stays unset if the state allows none of its candidates.

spec: rooms/v1#state-resolution
"""

from collections.abc import Iterable, Mapping
from hashlib import sha1
from typing import Final

from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID
from federation.protocol.state_resolution.pool import EventPool, StateLookup

_PASSES: Final = ("m.room.power_levels", "m.room.join_rules", "m.room.member")
"""The types that affect authorisation, in the order in which their conflicts are resolved."""


def resolve(
    conflicted: Mapping[StateKey, Iterable[EventID]], undisputed: StateLookup, pool: EventPool
) -> dict[StateKey, EventID]:
    """The winners among the conflicted events. Raises `MissingInput`."""
    settled: dict[StateKey, EventID] = {}

    def state(key: StateKey) -> EventID | None:
        return settled.get(key) or undisputed(key)

    for type in _PASSES:
        keys = [key for key in conflicted if key.type == type]
        settled.update({key: _settle_in_sequence(conflicted[key], state, pool) for key in keys})
    for key in conflicted.keys() - settled.keys():
        winner = _settle_by_latest(conflicted[key], state, pool)
        if winner is not None:
            settled[key] = winner
    return settled


def _settle_in_sequence(
    candidates: Iterable[EventID], state: StateLookup, pool: EventPool
) -> EventID:
    """Oldest first, each candidate that is allowed after the one before it takes its place; a
    refusal ends it."""
    winner, *later = _oldest_first(candidates, pool)

    def state_with_winner(key: StateKey) -> EventID | None:
        return winner.event_id if key == winner.key else state(key)

    for event in later:
        if not pool.allows(event, state_with_winner):
            break
        winner = event
    return winner.event_id


def _settle_by_latest(
    candidates: Iterable[EventID], state: StateLookup, pool: EventPool
) -> EventID | None:
    """The latest candidate that the state allows."""
    latest_first = reversed(_oldest_first(candidates, pool))
    return next((event.event_id for event in latest_first if pool.allows(event, state)), None)


def _oldest_first(candidates: Iterable[EventID], pool: EventPool) -> list[Event]:
    """By ascending depth, then descending SHA-1 of the event id."""
    by_hash = sorted(
        candidates, key=lambda event_id: sha1(event_id.encode()).digest(), reverse=True
    )
    return sorted((pool[event_id] for event_id in by_hash), key=lambda event: event.depth)
