"""Computes the conflicts between several states of a room.

The states may be complete, or reduced to the keys in which they differ. So a caller that can find
the differences cheaply need not load the complete states.
"""

from collections.abc import Mapping, Sequence

import msgspec

from federation.protocol.events import StateKey
from federation.protocol.ids import EventID
from federation.protocol.room_versions import RoomVersion, StateResolution


class Conflicts(msgspec.Struct, frozen=True):
    """The states to resolve, in two parts: the entries on which they agree, and the candidates for
    each key on which they do not."""

    unconflicted: Mapping[StateKey, EventID]
    conflicted: Mapping[StateKey, frozenset[EventID]]

    @property
    def events(self) -> set[EventID]:
        """The conflicted state set: every candidate of every key."""
        return {event_id for candidates in self.conflicted.values() for event_id in candidates}


def find_conflicts(
    version: RoomVersion, state_sets: Sequence[Mapping[StateKey, EventID]]
) -> Conflicts:
    """Divide the states into what they agree on and what they do not.

    In algorithm 1 states conflict only over different events for a key; in 2 and 2.1 also where one
    has none. spec: rooms/v1#state-resolution, rooms/v2#definitions (unconflicted state map and
    conflicted state set)
    """
    candidates: dict[StateKey, set[EventID]] = {}
    holders: dict[StateKey, int] = {}
    for state in state_sets:
        for key, event_id in state.items():
            candidates.setdefault(key, set()).add(event_id)
            holders[key] = holders.get(key, 0) + 1
    absence_conflicts = version.state_resolution is not StateResolution.V1
    unconflicted: dict[StateKey, EventID] = {}
    conflicted: dict[StateKey, frozenset[EventID]] = {}
    for key, found in candidates.items():
        if len(found) > 1 or (absence_conflicts and holders[key] < len(state_sets)):
            conflicted[key] = frozenset(found)
        else:
            unconflicted[key] = next(iter(found))
    return Conflicts(unconflicted, conflicted)
