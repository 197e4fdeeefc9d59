"""Garbage collection of state nodes deletes exactly the unneeded ones, whatever happens during a
collection."""

from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.engine.database import Database, Transaction, WriteTransaction
from storage.maintenance.state_garbage_collection import StateGarbageCollector
from storage.state.keys import StateKey
from storage.state.radix_tree import get_child_ids
from storage.state.state_tree import StateTreeStore

ROOMS = count(1)
EVENTS = count(1)
State = dict[StateKey, int]


def key(number: int) -> StateKey:
    return ("m.room.member", f"@user{number}:example.org")


START = {key(number): 1 for number in range(150)}
"""Three leaves and a root."""


class RoomModel:
    """A room with events that have states, and the expected contents of these states. Events have
    only the columns they need."""

    def __init__(
        self, database: Database, states: StateTreeStore, collector: StateGarbageCollector
    ) -> None:
        self.database = database
        self.states = states
        self.collector = collector
        self.room_nid = next(ROOMS)
        self.events: dict[int, tuple[bytes | None, State]] = {}
        self.head: tuple[bytes | None, State] = (None, {})

    async def create(self) -> None:
        await self.database.write("create", self._create)
        await self.add_event(0, START, depth=1, moves_head=True)

    def _create(self, txn: WriteTransaction) -> None:
        txn.execute(
            "INSERT INTO rooms (room_nid, room_id, version, head_version, extremities, depth,"
            " creation_ts)"
            " VALUES (?, ?, '11', 0, '[]', 0, 0)",
            (self.room_nid, f"!{self.room_nid}"),
        )

    async def add_event(self, base: int, changes: State, depth: int, moves_head: bool) -> None:
        """Add an event whose state differs from that of another event, or (0) of the head."""
        nids = [0, *self.events]
        root, state = self.head if (nid := nids[base % len(nids)]) == 0 else self.events[nid]
        event_nid = next(EVENTS)
        root = await self.database.write(
            "add", self._add_event, event_nid, root, changes, depth, moves_head
        )
        self.events[event_nid] = (root, state | changes)
        if moves_head:
            self.head = self.events[event_nid]

    def _add_event(
        self,
        txn: WriteTransaction,
        event_nid: int,
        root: bytes | None,
        changes: State,
        depth: int,
        moves_head: bool,
    ) -> bytes | None:
        root = self.states.apply(txn, self.room_nid, root, changes)
        txn.execute(
            "INSERT INTO events"
            " (event_nid, event_id, room_nid, depth, type, sender, origin_server_ts, flags, pdu,"
            " state_root)"
            " VALUES (?, ?, ?, ?, 'm', '@a:b', 1, 0, ?, ?)",
            (event_nid, f"${event_nid}", self.room_nid, depth, b"{}", root),
        )
        if moves_head:
            self._set_head(txn, root)
        return root

    def _set_head(self, txn: WriteTransaction, root: bytes | None) -> None:
        txn.execute("UPDATE rooms SET state_root = ? WHERE room_nid = ?", (root, self.room_nid))

    async def resolve(self, changes: State) -> None:
        """Give the head a state that no event has."""
        root, state = self.head

        def write(txn: WriteTransaction) -> bytes | None:
            changed = self.states.apply(txn, self.room_nid, root, changes)
            self._set_head(txn, changed)
            return changed

        self.head = (await self.database.write("resolve", write), state | changes)

    async def fail(self, changes: State) -> None:
        """Make nodes in a write that is rolled back, so that they are only in the cache."""

        def write(txn: WriteTransaction) -> None:
            self.states.apply(txn, self.room_nid, self.head[0], changes)
            raise RuntimeError("undone")

        with pytest.raises(RuntimeError, match="undone"):
            await self.database.write("fail", write)

    async def remove_event(self, which: int) -> None:
        if not self.events:
            return
        event_nid = list(self.events)[which % len(self.events)]

        def write(txn: WriteTransaction) -> None:
            txn.execute("DELETE FROM events WHERE event_nid = ?", (event_nid,))
            self.collector.schedule(txn, self.room_nid)

        await self.database.write("remove", write)
        del self.events[event_nid]

    async def check(self) -> None:
        """Check that a reader without a cache can read everything that is needed."""
        fresh = StateTreeStore(database=self.database)
        for root, state in (self.head, *self.events.values()):
            assert await fresh.get_all(self.room_nid, root) == state

    async def check_nothing_else_is_stored(self) -> None:
        def read(txn: Transaction) -> dict[bytes, bytes]:
            rows = txn.query(
                "SELECT node, content FROM state_nodes WHERE room_nid = ?", (self.room_nid,)
            )
            return {bytes(node): bytes(content) for node, content in rows}

        nodes = await self.database.read("nodes", read)
        needed: set[bytes] = set()
        queue = [root for root, _ in (self.head, *self.events.values()) if root is not None]
        while queue:
            node = queue.pop()
            if node not in needed:
                needed.add(node)
                queue += get_child_ids(nodes[node])
        assert nodes.keys() == needed


# Few keys and few values, so that collected nodes are often made again
CHANGES = st.dictionaries(
    st.sampled_from([key(0), key(70), key(140)]), st.integers(1, 3), max_size=2
)
WHICH = st.integers(0, 9)
ACTIONS = st.one_of(
    st.tuples(st.just("add"), WHICH, CHANGES, st.integers(1, 5), st.booleans()),
    st.tuples(st.just("resolve"), CHANGES),
    st.tuples(st.just("fail"), CHANGES),
    st.tuples(st.just("remove"), WHICH),
    st.tuples(st.just("step"), st.integers(1, 12)),
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(ACTIONS, max_size=25), st.integers(1, 3))
async def test_a_collection_during_writes_keeps_exactly_the_needed_nodes(
    database: Database, actions: list[tuple[object, ...]], nodes: int
) -> None:
    collector = StateGarbageCollector(nodes_per_step=nodes)
    room = RoomModel(database, StateTreeStore(database=database), collector)
    await room.create()
    for name, *arguments in actions:
        match name, arguments:
            case "add", [int(base), dict(changes), int(depth), bool(moves_head)]:
                await room.add_event(base, changes, depth, moves_head)
            case "resolve", [dict(changes)]:
                await room.resolve(changes)
            case "fail", [dict(changes)]:
                await room.fail(changes)
            case "remove", [int(which)]:
                await room.remove_event(which)
            case "step", [int(steps)]:
                for _ in range(steps):
                    await database.write("step", collector.step)
                await room.check()
    await database.write("note", collector.schedule, room.room_nid)
    while await database.write("step", collector.step):
        await room.check()
    await room.check_nothing_else_is_stored()


async def test_without_a_removal_nothing_is_collected(database: Database) -> None:
    collector = StateGarbageCollector()
    room = RoomModel(database, StateTreeStore(database=database), collector)
    await room.create()
    assert await database.write("step", collector.step) is False


async def test_nodes_made_again_at_any_moment_of_a_collection_stay(database: Database) -> None:
    collector = StateGarbageCollector(nodes_per_step=1)
    states = StateTreeStore(database=database)
    steps_in_all = 30
    for steps in range(steps_in_all):
        room = RoomModel(database, states, collector)
        await room.create()
        await room.add_event(0, {key(70): 5}, depth=2, moves_head=False)
        await room.remove_event(1)
        going_on = True
        for _ in range(steps):
            going_on = await database.write("step", collector.step)
        # the nodes stay in the cache of the store
        await room.add_event(0, {key(70): 5}, depth=0, moves_head=False)
        while await database.write("step", collector.step):
            await room.check()
        await room.check()
    assert not going_on, "the collection of the last room must end before the event is stored again"


async def test_a_head_based_on_a_state_without_an_event_stays(database: Database) -> None:
    collector = StateGarbageCollector()
    room = RoomModel(database, StateTreeStore(database=database), collector)
    await room.create()
    await room.remove_event(0)
    # marked as new in this collection, unlike most nodes below it
    await room.resolve({key(0): 2})
    while await database.write("step", collector.step):
        await room.check()
    await room.check()
