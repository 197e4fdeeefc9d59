"""States of rooms: reads, sharing and differences, caches, and failures that must not leave wrong
numbers."""

from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.engine.database import Database, Transaction, WriteTransaction
from storage.state import state_tree
from storage.state.keys import StateKey
from storage.state.radix_tree import RadixTree
from storage.state.state_tree import StateTreeStore

ROOM = 7
CREATE: StateKey = ("m.room.create", "")
POWER: StateKey = ("m.room.power_levels", "")
TOPIC: StateKey = ("m.room.topic", "")


def member(number: int) -> StateKey:
    return ("m.room.member", f"@user{number}:example.org")


SMALL_TREE = RadixTree(leaf_bits=1, child_bits=1)
MAPS = st.dictionaries(st.integers(0, 40), st.integers(1, 1 << 33), max_size=12)


class Nodes(dict[bytes, bytes]):
    """Nodes in memory. Counts loads; loading a missing node fails."""

    loads = 0

    def load(self, ids: object) -> Mapping[bytes, bytes]:
        self.loads += 1
        return {node: self[node] for node in ids}  # type: ignore[attr-defined]

    def apply(
        self, root: bytes | None, changes: Mapping[int, int], tree: RadixTree = SMALL_TREE
    ) -> bytes | None:
        root, new = tree.apply(self.load, root, changes)
        self.update(new)
        return root


@given(st.lists(MAPS, max_size=6))
def test_a_tree_equals_the_map_for_any_order_of_changes(steps: list[dict[int, int]]) -> None:
    nodes, model, root = Nodes(), dict[int, int](), None
    for changes in steps:
        root = nodes.apply(root, changes)
        model |= changes
    assert SMALL_TREE.entries(nodes.load, root) == model
    assert list(SMALL_TREE.entries(nodes.load, root)) == sorted(model)
    assert SMALL_TREE.lookup(nodes.load, root, range(50)) == model
    assert root == Nodes().apply(None, model)
    if root is not None:
        assert SMALL_TREE.find_last_key(nodes.get, root) == max(model)
        assert SMALL_TREE.count_keys(nodes.load, [root]) == max(model) + 1


def test_equal_subtrees_in_two_places_change_apart() -> None:
    nodes = Nodes()
    root = nodes.apply(nodes.apply(None, {0: 1, 16: 1, 24: 1}), {18: 1, 24: 1})
    assert SMALL_TREE.entries(nodes.load, root) == {0: 1, 16: 1, 18: 1, 24: 1}


@given(MAPS, MAPS, MAPS)
def test_the_difference_of_trees_is_that_of_the_maps(
    common: dict[int, int], a: dict[int, int], b: dict[int, int]
) -> None:
    nodes = Nodes()
    base = nodes.apply(None, common)
    left, right = nodes.apply(base, a), nodes.apply(base, b)
    before, after = common | a, common | b
    assert SMALL_TREE.diff(nodes.load, left, right) == {
        key: (before.get(key), after.get(key))
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
    }


def test_a_difference_costs_its_size() -> None:
    tree, nodes = RadixTree(), Nodes()
    root = nodes.apply(None, {key: key + 1 for key in range(20_000)}, tree)
    changed = nodes.apply(root, {77: 1_000_000, 19_000: 1_000_001}, tree)
    nodes.loads = 0
    read: list[bytes] = []

    def load(ids: object) -> Mapping[bytes, bytes]:
        read.extend(ids)  # type: ignore[arg-type]
        return nodes.load(read)

    assert tree.diff(load, root, changed) == {77: (78, 1_000_000), 19_000: (19_001, 1_000_001)}
    assert len(read) <= 2 * (1 + 2 + 2 + 2)
    assert nodes.loads <= 4


def test_setting_the_same_value_makes_no_nodes() -> None:
    tree, nodes = RadixTree(), Nodes()
    root = nodes.apply(None, {1: 5, 900: 6}, tree)
    assert tree.apply(nodes.load, root, {900: 6}) == (root, {})


@pytest.mark.parametrize("changes", [{-1: 5}, {1: 0}])
def test_invalid_keys_and_values_are_refused(changes: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="keys are"):
        RadixTree().apply(Nodes().load, None, changes)


def apply_all(
    txn: WriteTransaction,
    states: StateTreeStore,
    root: bytes | None,
    *steps: Mapping[StateKey, int],
) -> list[bytes | None]:
    roots = []
    for step in steps:
        root = states.apply(txn, ROOM, root, step)
        roots.append(root)
    return roots


async def test_reads_on_the_calling_thread_are_bounded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users can create any number of keys of a type: the reactor thread does not read all of
    them."""
    states = StateTreeStore(database=database)
    everyone = {member(number): 100 + number for number in range(300)}
    (root,) = await database.write(
        "apply", apply_all, states, None, {CREATE: 1, POWER: 2} | everyone
    )
    assert await states.get_all(ROOM, root) == {CREATE: 1, POWER: 2} | everyone
    assert states.get_cached(ROOM, root, [CREATE], ["m.room.member"]) == {CREATE: 1} | everyone
    monkeypatch.setattr(state_tree, "MAX_INLINE_KEYS", 299)
    assert states.get_cached(ROOM, root, [CREATE], ["m.room.member"]) is None
    assert states.get_cached(ROOM, root, [CREATE], ["m.room.power_levels"]) == {CREATE: 1, POWER: 2}
    (found,) = await states.get_entries_of_rooms([(ROOM, root, [CREATE], ["m.room.member"])])
    assert found == {CREATE: 1} | everyone


async def test_states_are_read_complete_by_type_by_key_and_as_differences(
    database: Database,
) -> None:
    states = StateTreeStore(database=database)
    everyone = {member(number): 100 + number for number in range(300)}
    first, second = await database.write(
        "apply", apply_all, states, None, {CREATE: 1, POWER: 2} | everyone, {POWER: 3, TOPIC: 4}
    )
    for reader in (states, StateTreeStore(database=database)):
        assert await reader.get_all(ROOM, first) == {CREATE: 1, POWER: 2} | everyone
        assert await reader.get_entries(ROOM, second, [CREATE, POWER, member(7), member(999)]) == {
            CREATE: 1,
            POWER: 3,
            member(7): 107,
        }
        assert await reader.get_by_type(ROOM, second, ["m.room.member"]) == everyone
        assert await reader.get_by_type(ROOM, second, ["m.room.topic", "m.none"]) == {TOPIC: 4}
        assert await reader.get_by_type(ROOM, first, ["m.room.topic"]) == {}
        assert await reader.get_diff(ROOM, first, second) == {POWER: (2, 3), TOPIC: (None, 4)}
        of_rooms = [
            (ROOM, first, [CREATE, TOPIC, member(999)], ()),
            (ROOM, second, [CREATE, member(7)], ("m.room.topic", "m.none")),
            (ROOM, None, [CREATE], ("m.room.topic",)),
        ]
        assert await reader.get_entries_of_rooms(of_rooms) == [
            {CREATE: 1},
            {CREATE: 1, member(7): 107, TOPIC: 4},
            {},
        ]
        for asked, found in zip(of_rooms, await reader.get_entries_of_rooms(of_rooms), strict=True):
            assert reader.get_cached(*asked) == found
        assert await reader.get_entries_of(ROOM, [first, second, None], [POWER, TOPIC]) == {
            first: {POWER: 2},
            second: {POWER: 3, TOPIC: 4},
            None: {},
        }
    assert await states.get_all(ROOM, None) == {}


async def test_reading_costs_a_query_a_level_and_then_none(database: Database) -> None:
    writer = StateTreeStore(database=database)
    everyone = {member(number): 100 + number for number in range(2000)}
    roots = await database.write(
        "apply",
        apply_all,
        writer,
        None,
        everyone,
        *({member(number): 9000 + number} for number in range(40)),
    )
    reader = StateTreeStore(database=database)

    def count(txn: Transaction) -> int:
        reader.get_entries_of_in(txn, ROOM, roots, [member(number) for number in range(0, 2000, 9)])
        return txn.queries

    # the pairs, the roots, two levels below them
    assert await database.read("count", count) == 4
    assert await database.read("count", count) == 0
    assert reader.get_cached(ROOM, roots[-1], [member(9), TOPIC]) == {member(9): 9009}


@pytest.mark.parametrize("members", [0, 3, 600])
async def test_a_state_is_read_without_its_members(database: Database, members: int) -> None:
    store = StateTreeStore(database=database)
    others = {CREATE: 1, POWER: 2}
    state = others | {member(number): 10 + number for number in range(members)}

    def write(txn: WriteTransaction) -> tuple[bytes | None, bytes | None]:
        root = store.apply(txn, ROOM, None, state)
        return root, store.apply(txn, ROOM, root, {TOPIC: 3, member(members): 9})

    root, later = await database.write("write", write)
    for each in (store, StateTreeStore(database=database)):
        assert await each.get_all_but(ROOM, root, "m.room.member") == others
        assert await each.get_all_but(ROOM, later, "m.room.member") == {**others, TOPIC: 3}
        assert await each.get_all_but(ROOM, root, "m.room.topic") == state
        assert await each.get_all_but(ROOM, None, "m.room.member") == {}


async def test_a_write_reads_the_numbering_once(database: Database) -> None:
    store = StateTreeStore(database=database)
    await database.write(
        "begin", lambda txn: store.apply(txn, ROOM, None, {CREATE: 1, member(0): 2})
    )

    def write(txn: WriteTransaction) -> tuple[bytes | None, list[int]]:
        root, queries = store.apply(txn, ROOM, None, {CREATE: 1}), list[int]()
        for number in range(5):
            before = txn.queries
            assert store.get_entries_in(txn, ROOM, root, [member(number), TOPIC]) == {}
            root = store.apply(txn, ROOM, root, {member(number): 10 + number})
            queries.append(txn.queries - before)
        return root, queries

    root, queries = await database.write("write", write)
    assert queries == [1, 3, 2, 2, 2], (
        "nodes; with a new pair its row; with the first of these a question"
    )
    everything = {CREATE: 1} | {member(number): 10 + number for number in range(5)}
    assert await store.get_all(ROOM, root) == everything
    assert await StateTreeStore(database=database).get_all(ROOM, root) == everything


async def test_numbers_of_a_failed_write_are_reused(database: Database) -> None:
    states = StateTreeStore(database=database)
    [first] = await database.write("apply", apply_all, states, None, {CREATE: 1})

    def fail(txn: WriteTransaction) -> None:
        root = states.apply(txn, ROOM, first, {TOPIC: 2})
        assert states.get_all_in(txn, ROOM, root) == {CREATE: 1, TOPIC: 2}
        raise RuntimeError("undone")

    with pytest.raises(RuntimeError, match="undone"):
        await database.write("fail", fail)
    [second] = await database.write("apply", apply_all, states, first, {POWER: 3, TOPIC: 4})
    for reader in (states, StateTreeStore(database=database)):
        assert await reader.get_all(ROOM, second) == {CREATE: 1, POWER: 3, TOPIC: 4}


async def test_a_store_reads_numbers_that_another_node_assigned(database: Database) -> None:
    here, there = StateTreeStore(database=database), StateTreeStore(database=database)
    [first] = await database.write("apply", apply_all, here, None, {CREATE: 1})
    assert await there.get_entries(ROOM, first, [TOPIC]) == {}
    [second] = await database.write("apply", apply_all, here, first, {TOPIC: 2})
    [third] = await database.write("apply", apply_all, there, second, {POWER: 3, TOPIC: 4})
    assert there.get_cached(ROOM, third, [CREATE, POWER, TOPIC]) == {CREATE: 1, POWER: 3, TOPIC: 4}
    assert await here.get_entries(ROOM, third, [POWER, TOPIC]) == {POWER: 3, TOPIC: 4}
    assert await here.get_by_type(ROOM, third, ["m.room.power_levels"]) == {POWER: 3}


async def test_uncached_keys_are_not_taken_for_unset(database: Database) -> None:
    writer, reader = StateTreeStore(database=database), StateTreeStore(database=database)
    [first] = await database.write("apply", apply_all, writer, None, {CREATE: 1})
    assert reader.get_cached(ROOM, first, [CREATE]) is None
    await reader.get_all(ROOM, first)
    assert reader.get_cached(ROOM, first, [CREATE, TOPIC]) == {CREATE: 1}
    [second] = await database.write("apply", apply_all, writer, first, {TOPIC: 2})
    assert reader.get_cached(ROOM, second, [TOPIC]) is None


async def test_small_caches_evict_and_read_again(database: Database) -> None:
    states = StateTreeStore(database=database, cache_bytes=2000, cache_keys=50)
    everyone = {member(number): 100 + number for number in range(300)}
    roots = await database.write(
        "apply",
        apply_all,
        states,
        None,
        everyone,
        *({member(number): 900 + number} for number in range(20)),
    )
    for number, root in enumerate(roots):
        assert await states.get_all(ROOM, root) == everyone | {
            member(i): 900 + i for i in range(number)
        }


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.dictionaries(st.integers(0, 150), st.integers(1, 9), max_size=6), min_size=1, max_size=5
    )
)
async def test_any_sequence_of_changes_gives_the_expected_state(
    database: Database, steps: list[dict[int, int]]
) -> None:
    changes = [{member(number): value for number, value in step.items()} for step in steps]
    states = StateTreeStore(database=database)
    roots = await database.write("apply", apply_all, states, None, *changes)
    model: dict[StateKey, int] = {}
    for root, change in zip(roots, changes, strict=True):
        model |= change
        for reader in (states, StateTreeStore(database=database)):
            assert await reader.get_all(ROOM, root) == model
            assert await reader.get_by_type(ROOM, root, ["m.room.member"]) == model
            assert (
                await reader.get_entries(ROOM, root, [member(number) for number in range(151)])
                == model
            )
