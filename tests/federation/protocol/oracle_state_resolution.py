"""State resolution word for word from the specification: slow, plain, and written apart from the
production code.

Sets and lists where production has an index or a heap; nothing is computed once that the text
computes twice. What it shares with production are the authorization rules, which have tests of
their own.

spec: rooms/v1#state-resolution, rooms/v2#state-resolution, rooms/v12#state-resolution
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cmp_to_key
from hashlib import sha1

from federation.protocol.auth_rules import AuthError
from federation.protocol.event_auth import auth_events_needed, check_auth
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID
from federation.protocol.room_versions import RoomVersion, StateResolution

State = Mapping[StateKey, EventID]


@dataclass
class Oracle:
    """One resolution. `allowed` notes, as it goes, the events that passed the rules at their
    turn."""

    version: RoomVersion
    state_sets: Sequence[State]
    events: Mapping[EventID, Event]
    create: Event
    rejected: Collection[EventID] = ()
    allowed: set[EventID] = field(default_factory=set)

    def resolve(self) -> dict[StateKey, EventID]:
        """The resolved state."""
        if self.version.state_resolution is StateResolution.V1:
            return self._resolve_1()
        return self._resolve_2()

    # ---- version 1

    def _resolve_1(self) -> dict[StateKey, EventID]:
        union: dict[StateKey, set[EventID]] = {}
        for state in self.state_sets:
            for key, event_id in state.items():
                union.setdefault(key, set()).add(event_id)
        r = {key: min(ids) for key, ids in union.items() if len(ids) == 1}
        conflicts = {key: ids for key, ids in union.items() if len(ids) > 1}

        for type in ("m.room.power_levels", "m.room.join_rules", "m.room.member"):
            before = dict(r)
            for key, ids in conflicts.items():
                if key.type == type:
                    working = dict(before)
                    for index, event_id in enumerate(sorted(ids, key=self._by_depth_1)):
                        if index > 0 and not self._is_allowed(event_id, working, ()):
                            break
                        working[key] = event_id
                    r[key] = working[key]

        before = dict(r)
        for key, ids in conflicts.items():
            if key not in before:
                for event_id in sorted(ids, key=self._by_depth_1, reverse=True):
                    if self._is_allowed(event_id, before, ()):
                        r[key] = event_id
                        break
        return r

    def _by_depth_1(self, event_id: EventID) -> tuple[int, int]:
        """Ascending depth, then descending SHA-1."""
        return self.events[event_id].depth, -int(sha1(event_id.encode()).hexdigest(), 16)

    # ---- versions 2 and 2.1

    def _resolve_2(self) -> dict[StateKey, EventID]:
        new = self.version.state_resolution is StateResolution.V2_1
        unconflicted = self.unconflicted_state_map()
        full = self.conflicted_state_set() | self.auth_difference()
        if new:
            full |= self.conflicted_state_subgraph()

        x = {p for p in full if self._is_power_event(self.events[p])}
        for p in list(x):
            x |= self.auth_chain(p) & full
        state: dict[StateKey, EventID] = {} if new else dict(unconflicted)
        self._iterative_auth_checks(state, self.reverse_topological_power_ordering(x))
        self._iterative_auth_checks(
            state, self.mainline_ordering(state.get(StateKey("m.room.power_levels", "")), full - x)
        )
        return {**state, **unconflicted}

    def unconflicted_state_map(self) -> dict[StateKey, EventID]:
        pairs = [set(state.items()) for state in self.state_sets]
        return dict(set.intersection(*pairs)) if pairs else {}

    def conflicted_state_set(self) -> set[EventID]:
        unconflicted = set(self.unconflicted_state_map().items())
        return {
            pair[1]
            for state in self.state_sets
            for pair in state.items()
            if pair not in unconflicted
        }

    def auth_chain(self, event_id: EventID) -> set[EventID]:
        chain: set[EventID] = set()
        grown = set(self.events[event_id].auth_events)
        while grown - chain:
            chain |= grown
            grown = {auth_id for each in chain for auth_id in self.events[each].auth_events}
        return chain

    def auth_difference(self) -> set[EventID]:
        full_chains = [
            {auth_id for event_id in state.values() for auth_id in self.auth_chain(event_id)}
            for state in self.state_sets
        ]
        union = {event_id for chain in full_chains for event_id in chain}
        return {
            event_id for event_id in union if not all(event_id in chain for chain in full_chains)
        }

    def conflicted_state_subgraph(self) -> set[EventID]:
        ends = self.conflicted_state_set()
        chains = {event_id: self.auth_chain(event_id) for event_id in self.events}
        return {
            between
            for start in ends
            for end in ends & chains[start]
            for between in chains[start] | {start}
            if between == end or end in chains[between]
        }

    @staticmethod
    def _is_power_event(event: Event) -> bool:
        return event.state_key is not None and (
            event.type == "m.room.power_levels"
            or event.type == "m.room.join_rules"
            or (
                event.type == "m.room.member"
                and event.content.get("membership") in ("leave", "ban")
                and event.sender != event.state_key
            )
        )

    def reverse_topological_power_ordering(self, events: Collection[EventID]) -> list[EventID]:
        def compare(x: EventID, y: EventID) -> int:
            if self.sender_level(x) != self.sender_level(y):
                return -1 if self.sender_level(x) > self.sender_level(y) else 1
            return self._compare_time_and_id(x, y)

        placed: list[EventID] = []
        left = set(events)
        while left:
            candidates = [event_id for event_id in left if not self.auth_chain(event_id) & left]
            if not candidates:
                break  # Only cycles are left.
            smallest = min(candidates, key=cmp_to_key(compare))
            placed.append(smallest)
            left.remove(smallest)
        return placed

    def mainline_ordering(self, p: EventID | None, events: Collection[EventID]) -> list[EventID]:
        mainline = [] if p is None else [p, *self._power_levels_above(p)]

        def position(e: EventID) -> float:
            for each in self._power_levels_above(e):
                if each in mainline:
                    return mainline.index(each)
            return math.inf

        def compare(x: EventID, y: EventID) -> int:
            if position(x) != position(y):
                return -1 if position(x) > position(y) else 1
            return self._compare_time_and_id(x, y)

        return sorted(events, key=cmp_to_key(compare))

    def _compare_time_and_id(self, x: EventID, y: EventID) -> int:
        x_time, y_time = self.events[x].origin_server_ts, self.events[y].origin_server_ts
        if x_time != y_time:
            return -1 if x_time < y_time else 1
        return -1 if x < y else int(x > y)

    def _power_levels_above(self, event_id: EventID) -> list[EventID]:
        found: list[EventID] = []
        current = self._power_levels_in_auth_events(event_id)
        while current is not None and current not in found:
            found.append(current)
            current = self._power_levels_in_auth_events(current)
        return found

    def _power_levels_in_auth_events(self, event_id: EventID) -> EventID | None:
        for auth_id in self.events[event_id].auth_events:
            if (self.events[auth_id].type, self.events[auth_id].state_key) == (
                "m.room.power_levels",
                "",
            ):
                return auth_id
        return None

    def sender_level(self, event_id: EventID) -> float:
        """The sender's power level by the event's own auth events."""
        sender = self.events[event_id].sender
        creators = (self.create.sender, *self.create.content.get("additional_creators", ()))
        if self.version.creators_privileged and sender in creators:
            return math.inf
        levels_id = self._power_levels_in_auth_events(event_id)
        if levels_id is None:
            if self.version.creators_privileged:
                return 0
            creator = (
                self.create.sender
                if self.version.creator_is_sender
                else self.create.content.get("creator")
            )
            return 100 if sender == creator else 0
        content = self.events[levels_id].content
        return int(content.get("users", {}).get(sender, content.get("users_default", 0)))

    def _iterative_auth_checks(
        self, state: dict[StateKey, EventID], events: Iterable[EventID]
    ) -> None:
        for event_id in events:
            event = self.events[event_id]
            if event.state_key is not None and self._is_allowed(event_id, state, event.auth_events):
                state[event.key] = event_id

    def _is_allowed(self, event_id: EventID, state: State, auth_events: Iterable[EventID]) -> bool:
        event = self.events[event_id]
        around: dict[StateKey, Event] = {}
        for key in auth_events_needed(self.version, event):
            if key in state:
                around[key] = self.events[state[key]]
                continue
            for auth_id in auth_events:
                auth_event = self.events[auth_id]
                if (auth_event.type, auth_event.state_key) == key and auth_id not in self.rejected:
                    around.setdefault(key, auth_event)
        try:
            check_auth(event, around, create=self.create)
        except AuthError:
            return False
        self.allowed.add(event_id)
        return True
