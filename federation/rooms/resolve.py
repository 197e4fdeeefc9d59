"""Resolves the room state where branches of the history meet, from stored states.

A state is a `StateChange`: a stored root, and the entries that differ from it. Only the entries in
which the states differ are read. All other data that the resolution needs comes from the auth-chain
index and the event cache, in batches.

spec: server-server-api#room-state-resolution
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from federation.protocol.event_auth import CREATE, POWER_LEVELS
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID
from federation.protocol.membership_auth import JOIN_RULES
from federation.protocol.room_versions import RoomVersion, StateResolution
from federation.protocol.state_resolution import (
    AuthGraph,
    Conflicts,
    compute_needs,
    compute_power_lineage,
    events_in_dispute,
    find_conflicts,
    resolve_conflicts,
)
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.state_view import StateView
from storage.cache import LRU
from storage.engine.database import Database, Transaction
from storage.events.auth_chains import AuthChainStore
from storage.events.events import select_state_keys
from storage.persist.room_writer import StateChange
from storage.state.state_tree import StateTreeStore

Entries = dict[StateKey, int | None]
"""Event numbers by key; None if the state has no such entry."""
_OFTEN_CITED = (CREATE, POWER_LEVELS, JOIN_RULES)
"""Entries that most events cite."""
Difference = Mapping[StateKey, tuple[int | None, int | None]]


class StateResolver:
    """Resolves the states of rooms, and caches the results. Use this class only on the reactor
    thread."""

    def __init__(
        self,
        *,
        database: Database,
        trees: StateTreeStore,
        chains: AuthChainStore,
        events: RoomEvents,
        capacity: int = 1000,
    ) -> None:
        """`capacity`: resolutions in the cache."""
        self._database = database
        self._trees = trees
        self._chains = chains
        self._events = events
        self._resolved: LRU[tuple[int, frozenset[object]], StateChange] = LRU(max_entries=capacity)

    async def resolve(
        self, room_nid: int, version: RoomVersion, create: Event, states: Iterable[StateChange]
    ) -> StateChange:
        """Return the resolution of one or more states of the room, in any order."""
        distinct = {_name(state): state for state in states}
        if len(distinct) == 1:
            return next(iter(distinct.values()))
        name = (room_nid, frozenset(distinct))
        known = self._resolved.get(name)
        if known is None:
            known = await self._resolve(room_nid, version, create, list(distinct.values()))
            self._resolved.put(name, known)
        return known

    async def load(
        self,
        room_nid: int,
        state: StateChange,
        keys: Iterable[StateKey],
        view: StateView | None = None,
    ) -> dict[StateKey, StoredEvent]:
        """Return entries of a state, as far as they exist.

        `view`: a state of the room whose entries may be cached.
        """
        wanted = list(keys)
        if not state.entries:
            if view is not None and view.root == state.root:
                return await view.load(wanted)
            found = await self._trees.get_entries(room_nid, state.root, wanted)
            stored = await self._events.get_events(found.values())
            return {key: stored[found[key]] for key in wanted if key in found}
        nids = await self._get_entries(room_nid, state, wanted)
        events = await self._events.get_events(nid for nid in nids.values() if nid is not None)
        return {key: events[nid] for key, nid in nids.items() if nid is not None}

    async def diff(self, room_nid: int, a: StateChange, b: StateChange) -> Difference:
        """Return the keys in which two states differ, with the event numbers in each."""
        values: dict[StateKey, tuple[int | None, int | None]] = {
            StateKey(*key): change
            for key, change in (await self._trees.get_diff(room_nid, a.root, b.root)).items()
        }
        overlaid = [StateKey(*key) for key in {*a.entries, *b.entries}]
        if overlaid:
            in_a = await self._get_entries(room_nid, a, overlaid)
            in_b = await self._get_entries(room_nid, b, overlaid)
            values.update((key, (in_a[key], in_b[key])) for key in overlaid)
        return {key: (left, right) for key, (left, right) in values.items() if left != right}

    async def _get_entries(
        self, room_nid: int, state: StateChange, keys: Iterable[StateKey]
    ) -> Entries:
        wanted = list(keys)
        below = [key for key in wanted if key not in state.entries]
        stored = await self._trees.get_entries(room_nid, state.root, below) if below else {}
        return {key: state.entries.get(key) or stored.get(key) for key in wanted}

    async def _resolve(
        self, room_nid: int, version: RoomVersion, create: Event, states: Sequence[StateChange]
    ) -> StateChange:
        conflicted_state = await self._find_conflicted(room_nid, states)
        loaded: dict[int, StoredEvent] = dict(
            await self._events.get_events(
                {nid for values in conflicted_state.values() for nid in values if nid is not None}
            )
        )
        conflicts = find_conflicts(
            version,
            [
                {
                    key: loaded[nid].event.event_id
                    for key, values in conflicted_state.items()
                    if (nid := values[at]) is not None
                }
                for at in range(len(states))
            ],
        )
        graph = AuthGraph()
        if version.state_resolution is not StateResolution.V1 and conflicts.conflicted:
            graph = await self._read_graph(
                room_nid, version, conflicts, states, conflicted_state, loaded
            )
        pool = {event.event.event_id: event for event in loaded.values()}
        needs = compute_needs(
            version, conflicts, graph, {name: stored.event for name, stored in pool.items()}
        )
        around = await self.load(
            room_nid, states[0], [key for key in needs.state_keys if key not in conflicted_state]
        )
        pool |= {stored.event.event_id: stored for stored in around.values()}
        pool |= await self._events.get_by_id(room_nid, needs.auth_events)
        entries = resolve_conflicts(
            version,
            conflicts,
            {
                key: around[key].event.event_id if key in around else None
                for key in needs.state_keys - conflicted_state.keys()
            },
            {name: stored.event for name, stored in pool.items()},
            create=create,
            graph=graph,
            rejected=[name for name, stored in pool.items() if stored.rejected],
        )
        resolved: Entries = {
            key: pool[entries[key]].nid if key in entries else None for key in conflicted_state
        }
        return await self._express(room_nid, states, conflicted_state, resolved)

    async def _find_conflicted(
        self, room_nid: int, states: Sequence[StateChange]
    ) -> dict[StateKey, list[int | None]]:
        """Return the keys in which the states differ, with the entry of each state."""
        conflicted_state: dict[StateKey, list[int | None]] = {}
        for at, state in enumerate(states[1:], 1):
            for key, (first, other) in (await self.diff(room_nid, states[0], state)).items():
                conflicted_state.setdefault(key, [first] * len(states))[at] = other
        return conflicted_state

    async def _read_graph(
        self,
        room_nid: int,
        version: RoomVersion,
        conflicts: Conflicts,
        states: Sequence[StateChange],
        conflicted_state: Mapping[StateKey, Sequence[int | None]],
        loaded: dict[int, StoredEvent],
    ) -> AuthGraph:
        """Read the auth chains; add the events that they name to `loaded`."""
        names = conflicts.events
        conflicted = {nid for nid, stored in loaded.items() if stored.event.event_id in names}
        sets = [
            {nid for values in conflicted_state.values() if (nid := values[at]) is not None}
            for at in range(len(states))
        ]
        senders = {StateKey("m.room.member", stored.event.sender) for stored in loaded.values()}
        likely_keys = {*_OFTEN_CITED, *senders} - conflicted_state.keys()
        agreed = await self._get_entries(room_nid, states[0], likely_keys)
        difference = await self._database.read(
            "get_auth_difference_of_states",
            self._read_difference,
            room_nid,
            states[0],
            frozenset(conflicted_state),
            sets,
            [nid for nid in agreed.values() if nid is not None],
        )
        subgraph = await self._chains.get_conflicted_subgraph(conflicted)
        loaded.update(await self._events.get_events((difference | subgraph) - loaded.keys()))
        graph = AuthGraph(_ids(difference, loaded), _ids(subgraph, loaded))
        in_conflict = events_in_dispute(version, conflicts, graph)
        start = {name: event for name, event in _by_id(loaded).items() if name in in_conflict}
        levels = agreed.get(POWER_LEVELS)
        if levels is not None:
            event = (await self._events.get_events([levels]))[levels].event
            start[event.event_id] = event
        return AuthGraph(
            graph.auth_difference,
            graph.conflicted_subgraph,
            await self._read_power_lineage(room_nid, start),
        )

    def _read_difference(
        self,
        txn: Transaction,
        room_nid: int,
        state: StateChange,
        conflicted_state: Collection[tuple[str, str]],
        sets: Sequence[Collection[int]],
        likely_keys: Collection[int],
    ) -> set[int]:
        def find_agreed(nids: Collection[int]) -> list[int]:
            keys = {
                nid: key
                for nid, key in select_state_keys(txn, nids).items()
                if key not in conflicted_state
            }
            stored = self._trees.get_entries_in(txn, room_nid, state.root, set(keys.values()))
            return [
                nid
                for nid, key in keys.items()
                if (state.entries.get(key) or stored.get(key)) == nid
            ]

        return self._chains.get_conflicted_difference_in(txn, sets, likely_keys, find_agreed)

    async def _read_power_lineage(
        self, room_nid: int, start: Mapping[EventID, Event]
    ) -> Mapping[EventID, EventID | None]:
        """Return the events' lineage of power levels; one batch per change, mostly cached."""
        known = dict(start)
        level: Collection[Event] = list(start.values())
        while level:
            cited = {name for event in level for name in event.auth_events if name not in known}
            found = {
                name: stored.event
                for name, stored in (await self._events.get_by_id(room_nid, cited)).items()
            }
            known |= found
            level = [
                event for event in found.values() if (event.type, event.state_key) == POWER_LEVELS
            ]
        return compute_power_lineage(start, known)

    async def _express(
        self,
        room_nid: int,
        states: Sequence[StateChange],
        conflicted_state: Mapping[StateKey, Sequence[int | None]],
        resolved: Entries,
    ) -> StateChange:
        """Express the resolved state by one of the given roots, to which entries can only be
        added."""
        best: dict[tuple[str, str], int] | None = None
        root = None
        for at, state in enumerate(states):
            changes = {
                key: nid
                for key, nid in state.entries.items()
                if resolved.get(StateKey(*key), nid) is not None
            }
            changes |= {
                key: nid
                for key, nid in resolved.items()
                if nid is not None and nid != conflicted_state[key][at]
            }
            removed = [key for key, nid in resolved.items() if nid is None]
            left = await self._trees.get_entries(room_nid, state.root, removed) if removed else {}
            if not left and (best is None or len(changes) < len(best)):
                best, root = changes, state.root
        if best is not None:
            return StateChange(root, best)
        # each root has an entry that the resolution removed
        complete = dict(await self._trees.get_all(room_nid, states[0].root)) | dict(
            states[0].entries
        )
        result = {key: nid for key, nid in complete.items() if key not in resolved}
        result.update((key, nid) for key, nid in resolved.items() if nid is not None)
        return StateChange(None, result)


def _name(state: StateChange) -> object:
    return (state.root, frozenset(state.entries.items()))


def _by_id(events: Mapping[int, StoredEvent]) -> dict[EventID, Event]:
    return {stored.event.event_id: stored.event for stored in events.values()}


def _ids(nids: Collection[int], events: Mapping[int, StoredEvent]) -> frozenset[EventID]:
    return frozenset(events[nid].event.event_id for nid in nids)
