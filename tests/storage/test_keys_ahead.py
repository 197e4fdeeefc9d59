"""One-time keys of which a process knows what comes next: each is given out once, in order, whatever other processes do meanwhile, and
whatever fails."""

import tracemalloc
from collections.abc import Coroutine, Iterator
from sys import getsizeof
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import one_time_keys
from storage.database import Database, DatabaseUnavailable, PostgresConfig, SQLiteConfig, WriteTransaction
from storage.device_keys import CLAIMED_AT_ONCE, DeviceKeyStore, NewKeys
from storage.devices import DeviceRow, DeviceStore
from storage.keys_ahead import BYTES_BESIDE, KeyRun, KeysAhead
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, open_inline
from tests.storage.test_one_time_keys import ALGORITHM, ALICE, content, parse_named

T = TypeVar("T")

OTHER = "other"
DEVICES = ("A", "B", "C")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What comes of it, at once."""
    found: list[T] = []

    async def keep() -> None:
        found.append(await coroutine)

    run_coroutine(keep(), None)
    return found[0]


class Node:
    """A process, and what it asked of the database."""

    def __init__(self, config: SQLiteConfig | PostgresConfig) -> None:
        self.counter = QueryCounter()
        self.database: Database = open_inline(config, self.counter)
        self.store = DeviceKeyStore(self.database)

    def upload(self, device_id: str, names: list[str], algorithm: str = ALGORITHM, *, fail: bool = False) -> None:
        def put(txn: WriteTransaction) -> None:
            DeviceStore(self.database).add_device(txn, DeviceRow(ALICE, device_id, None, 0))
            keys = {(algorithm, name): content(name) for name in names}
            self.store.put_keys(txn, ALICE, device_id, NewKeys(None, keys, {}), 0)
            if fail:
                raise ZeroDivisionError

        run(self.database.write("upload", put))

    def remove(self, device_id: str) -> None:
        run(self.database.write("remove", lambda txn: self.store.remove_devices(txn, ALICE, [device_id])))

    def claim(self, *device_ids: str, algorithm: str = ALGORITHM) -> list[str | None]:
        wishes = [(ALICE, device_id, algorithm) for device_id in device_ids]
        given = run(self.store.do_claim(wishes, 1000))
        for key in given:
            assert key is None or parse_named(key)[1] == content(parse_named(key)[0])
        return [None if key is None else parse_named(key)[0] for key in given]


@pytest.fixture
def nodes(database_config: SQLiteConfig | PostgresConfig) -> Iterator[tuple[Node, Node]]:
    pair = Node(database_config), Node(database_config)
    yield pair
    for node in pair:
        run_coroutine(node.database.close(), None)


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block that has to be read, the next two keys or three are known."""
    monkeypatch.setattr(one_time_keys, "READ_AHEAD", 40)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("upload"), st.integers(0, 1), st.sampled_from(DEVICES), st.integers(1, 9)),
        st.tuples(st.just("fail"), st.integers(0, 1), st.sampled_from(DEVICES), st.integers(1, 3)),
        st.tuples(st.just("remove"), st.integers(0, 1), st.sampled_from(DEVICES), st.just(0)),
        st.tuples(
            st.just("claim"), st.integers(0, 1), st.lists(st.sampled_from(DEVICES), unique=True), st.integers(1, 12)
        ),
    ),
    max_size=40,
)


@pytest.mark.usefixtures("short_runs")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_keys_are_given_out_in_order_and_once_at_whichever_node(
    nodes: tuple[Node, Node], steps: list[tuple[str, int, Any, int]]
) -> None:
    left: dict[str, list[str]] = {device_id: [] for device_id in DEVICES}
    for device_id in DEVICES:
        nodes[0].remove(device_id)
    number = 0
    for step, at, what, times in steps:
        node = nodes[at]
        if step in ("upload", "fail"):
            names = [f"k{number + each}" for each in range(times)]
            number += times
            if step == "upload":
                node.upload(what, names)
                left[what] += names
            else:
                with pytest.raises(ZeroDivisionError):
                    node.upload(what, names, fail=True)
        elif step == "remove":
            node.remove(what)
            left[what].clear()
        else:
            for _ in range(times):
                wanted = [left[device_id].pop(0) if left[device_id] else None for device_id in what]
                assert node.claim(*what) == wanted


def test_what_was_uploaded_here_is_claimed_without_being_read(nodes: tuple[Node, Node]) -> None:
    node, other = nodes
    for device_id in DEVICES:
        node.upload(device_id, [f"{device_id}{number}" for number in range(4)])
    for number in range(3):
        node.counter.clear()
        assert node.claim(*DEVICES) == [f"{device_id}{number}" for device_id in DEVICES]
        assert dict(node.counter.queries) == {"claim_keys": 1}
    assert other.claim(*DEVICES) == [f"{device_id}3" for device_id in DEVICES]
    assert node.claim(*DEVICES) == [None] * len(DEVICES)


def test_what_is_known_of_one_algorithm_says_nothing_of_another(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    node.upload("A", ["a", "b"])
    node.upload("A", ["c", "d"], OTHER)
    assert node.claim("A", algorithm=OTHER) == ["c"]
    assert node.claim("A") == ["a"]
    assert node.claim("A", algorithm=OTHER) == ["d"]
    assert node.claim("A", algorithm=OTHER) == [None]
    assert node.claim("A") == ["b"]


def test_younger_keys_are_not_taken_for_the_next(nodes: tuple[Node, Node]) -> None:
    """An upload is known; the one before, at another node, has keys left."""
    node, other = nodes
    other.upload("A", ["a", "b"])
    node.upload("A", ["c"])
    assert [node.claim("A") for _ in range(4)] == [["a"], ["b"], ["c"], [None]]


def test_where_a_later_write_of_a_claim_fails_what_was_given_out_is_not_lost(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = nodes
    devices = [f"D{number:04}" for number in range(CLAIMED_AT_ONCE + 3)]
    for device_id in devices:
        other.upload(device_id, [device_id])
    write = node.database.write
    calls: list[str] = []

    async def fail_later(name: str, fn: Any, *args: Any) -> Any:
        calls.append(name)
        if len(calls) > 1:
            raise DatabaseUnavailable("gone")
        return await write(name, fn, *args)

    monkeypatch.setattr(node.database, "write", fail_later)
    assert node.claim(*devices) == [*devices[:CLAIMED_AT_ONCE], None, None, None]
    with pytest.raises(DatabaseUnavailable):
        node.claim(*devices)
    monkeypatch.setattr(node.database, "write", write)
    assert node.claim(*devices) == [*[None] * CLAIMED_AT_ONCE, *devices[CLAIMED_AT_ONCE:]]


def test_what_is_known_is_bounded_and_what_was_not_used_for_longest_goes_first() -> None:
    ahead = KeysAhead(most_bytes=3 * (BYTES_BESIDE + 10 + sum(map(getsizeof, ("a", "", "")))))
    run = KeyRun(1, 0, 5, b"12345" * 2)
    for name in "abc":
        ahead.put((name, "", ""), run)
    assert ahead.get_all([("a", "", ""), ("x", "", "")]) == {("a", "", ""): run}
    ahead.put(("d", "", ""), run)
    ahead.put(("d", "", ""), run)
    assert ahead.get_all([(name, "", "") for name in "abcd"]) == {(name, "", ""): run for name in "acd"}
    ahead.put(("a", "", ""), None)
    ahead.put(("e", "", ""), run)
    assert ahead.get_all([(name, "", "") for name in "acde"]) == {(name, "", ""): run for name in "cde"}


def test_what_is_known_is_bounded_however_long_the_names_are() -> None:
    most = 1 << 20
    tracemalloc.start()
    try:
        ahead = KeysAhead(most)
        for number in range(2 * most // (BYTES_BESIDE + 10)):
            ahead.put(
                (ALICE, f"{number}" + "\U0001f511" * 250, "\U0001f511" * 240 + f"{number}"),
                KeyRun(number, 0, 5, b"12345" * 2),
            )
        assert most / 2 < tracemalloc.get_traced_memory()[0] < most * 1.1
    finally:
        tracemalloc.stop()
