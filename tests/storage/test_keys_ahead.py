"""One-time keys of which a process knows what comes next: each is given out once, in order, whatever other processes do meanwhile, and
whatever fails."""

import struct
import tracemalloc
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from random import Random
from sys import getsizeof
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from storage import claim_log, one_time_keys, postgres, writer
from storage.database import Database, DatabaseUnavailable, PostgresConfig, SQLiteConfig, WriteTransaction
from storage.device_keys import CLAIMED_AT_ONCE, DeviceKeyStore, KeyCounts, NewKeys
from storage.devices import DeviceRow, DeviceStore
from storage.engine import Connection
from storage.keys_ahead import BYTES_BESIDE, KeyOf, KeyRun, KeysAhead
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, SteppedExecutor, open_inline
from tests.storage.test_one_time_keys import ALGORITHM, ALICE, content, parse_named

T = TypeVar("T")

OTHER = "other"
DEVICES = ("A", "B", "C")


class Losing:
    """A connection that may be lost once it has committed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.loses = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self, *args: Any) -> None:
        self._connection.commit(*args)
        if self.loses:
            raise DatabaseUnavailable("the connection was lost")


class Node:
    """A process, and what it asked of the database."""

    def __init__(self, config: SQLiteConfig | PostgresConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counter = QueryCounter()
        self.writer = SteppedExecutor()
        self.database: Database = open_inline(config, self.counter, self.writer)
        self.store = DeviceKeyStore(self.database)
        engine = self.database.engine
        connect = engine.connect_writer
        self.connections: list[Losing] = []

        def connect_losing() -> Losing:
            self.connections.append(Losing(connect()))
            return self.connections[-1]

        monkeypatch.setattr(engine, "connect_writer", connect_losing)

    def run(self, *coroutines: Coroutine[Any, Any, T]) -> list[T]:
        """What comes of them, whose writes are one batch."""
        waiting = [Deferred.fromCoroutine(each) for each in coroutines]
        self.writer.run()
        found: list[T] = []
        for each in waiting:
            each.addCallback(found.append)
            run_coroutine(as_coroutine(each), None)
        return found

    def upload(
        self,
        device_id: str,
        names: list[str],
        algorithm: str = ALGORITHM,
        *,
        identity: bytes | None = None,
        fail: bool = False,
    ) -> int:
        """How many keys it is told to have."""

        def put(txn: WriteTransaction) -> KeyCounts:
            DeviceStore(self.database).add_device(txn, DeviceRow(ALICE, device_id, None, 0))
            keys = {(algorithm, name): content(name) for name in names}
            counts = self.store.put_keys(txn, ALICE, device_id, NewKeys(identity, keys, {}), 0)
            if fail:
                raise ZeroDivisionError
            return counts

        (counts,) = self.run(self.database.write("upload", put))
        return counts.one_time.get(algorithm, 0)

    def remove(self, device_id: str) -> None:
        self.run(self.database.write("remove", lambda txn: self.store.remove_devices(txn, ALICE, [device_id])))

    def claim(self, *device_ids: str, algorithm: str = ALGORITHM) -> list[str | None]:
        (given,) = self.run(self.store.do_claim(wishes_for(device_ids, algorithm), 1000))
        return names_of(given)

    def count(self, device_id: str) -> int:
        """How many keys the device has left, as it is told."""
        ((counts, _),) = self.run(self.store.get_counts(ALICE, device_id))
        return counts.one_time.get(ALGORITHM, 0)

    def claim_together(self, *device_ids: str) -> list[list[str | None]]:
        """Twice, with a write between that fails, all of one batch."""
        claims = [self.store.do_claim(wishes_for(device_ids), 1000) for _ in range(2)]
        return list(map(names_of, self.run(claims[0], self.expect_failure(device_ids), claims[1])[::2]))

    def fail_to_claim(self, *device_ids: str) -> None:
        """The write is undone."""
        self.run(self.expect_failure(device_ids))

    async def expect_failure(self, device_ids: Sequence[str]) -> list[bytes | None]:
        def fail(txn: WriteTransaction) -> None:
            self.store.claim_keys(txn, wishes_for(device_ids), 1000)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await self.database.write("fail", fail)
        return []

    def claim_and_lose(self, *device_ids: str) -> None:
        """It is committed, and nobody knows."""
        self.run(self.database.write("connect", lambda _: None))
        self.connections[-1].loses = True
        with pytest.raises(DatabaseUnavailable):
            self.claim(*device_ids)


async def as_coroutine(deferred: Deferred[Any]) -> None:
    await deferred


def wishes_for(device_ids: Iterable[str], algorithm: str = ALGORITHM) -> list[KeyOf]:
    return [(ALICE, device_id, algorithm) for device_id in device_ids]


def names_of(given: Iterable[bytes | None]) -> list[str | None]:
    """The ids of keys, which are as they were uploaded."""
    keys = [None if key is None else parse_named(key) for key in given]
    assert all(key is None or key[1] == content(key[0]) for key in keys)
    return [None if key is None else key[0] for key in keys]


@pytest.fixture
def nodes(
    database_config: SQLiteConfig | PostgresConfig, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Node, Node]]:
    pair = Node(database_config, monkeypatch), Node(database_config, monkeypatch)
    yield pair
    for node in pair:
        run_coroutine(node.database.close(), None)


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block that has to be read, the next two keys or three are known; who has written twice believes to be alone; claims are
    gathered after three, and settled where they are of more than two blocks."""
    monkeypatch.setattr(one_time_keys, "READ_AHEAD", 40)
    monkeypatch.setattr(writer, "LONG_ENOUGH", 2)
    monkeypatch.setattr(postgres, "STEADY", 2)
    monkeypatch.setattr(claim_log, "MOST_CLAIMS", 3)
    monkeypatch.setattr(claim_log, "MOST_GATHERED", 2)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("upload"), st.integers(0, 1), st.sampled_from(DEVICES), st.integers(1, 9)),
        st.tuples(
            st.sampled_from(["fail", "begin anew"]), st.integers(0, 1), st.sampled_from(DEVICES), st.integers(1, 3)
        ),
        st.tuples(st.sampled_from(["remove", "write"]), st.integers(0, 1), st.sampled_from(DEVICES), st.just(4)),
        st.tuples(
            st.sampled_from(["claim", "lose", "fail claims", "together"]),
            st.integers(0, 1),
            st.lists(st.sampled_from(DEVICES), unique=True, min_size=1),
            st.integers(1, 12),
        ),
    ),
    max_size=40,
)


@pytest.mark.usefixtures("short_runs")
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_keys_are_given_out_in_order_and_once_at_whichever_node(
    nodes: tuple[Node, Node], steps: list[tuple[str, int, Any, int]]
) -> None:
    left: dict[str, list[str]] = {device_id: [] for device_id in DEVICES}
    given: dict[str, list[str]] = {device_id: [] for device_id in DEVICES}
    have_identity: set[str] = set()
    for device_id in DEVICES:
        nodes[0].remove(device_id)

    def take(device_ids: Sequence[str]) -> list[str | None]:
        taken: list[str | None] = []
        for device_id in device_ids:
            given[device_id] += left[device_id][:1]
            taken.append(left[device_id].pop(0) if left[device_id] else None)
        return taken

    number = 0
    for step, at, what, times in steps:
        node = nodes[at]
        if step in ("upload", "fail", "begin anew"):
            names = [f"k{number + each}" for each in range(times)]
            number += times
            if step == "upload":
                left[what] += names
                assert node.upload(what, [*given[what], *names]) == len(left[what]), "what was given out stays so"
            elif step == "begin anew":
                node.upload(what, names, identity=b'{"keys":{"ed25519:%b":"%d"}}' % (what.encode(), number))
                if what in have_identity:
                    left[what], given[what] = [], []
                left[what] += names
                have_identity.add(what)
            else:
                with pytest.raises(ZeroDivisionError):
                    node.upload(what, names, fail=True)
        elif step == "write":
            for _ in range(times):
                node.run(node.database.write("other", lambda txn: txn.next_position()))
        elif step == "remove":
            node.remove(what)
            left[what], given[what] = [], []
            have_identity.discard(what)
        else:
            for number_of_claim in range(times):
                if step == "fail claims" and number_of_claim % 2:
                    node.fail_to_claim(*what)
                wanted = take(what)
                if step == "lose" and number_of_claim % 3 == 2:
                    node.claim_and_lose(*what)
                    continue
                if step == "together":
                    assert node.claim_together(*what) == [wanted, take(what)]
                    continue
                assert node.claim(*what) == wanted
        for device_id, names in left.items():
            for each in nodes:
                assert each.count(device_id) == len(names)


@pytest.mark.usefixtures("short_runs")
def test_what_is_not_settled_is_bounded_over_restarts(
    database_config: SQLiteConfig | PostgresConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    for number in range(7):
        node = Node(database_config, monkeypatch)
        for _ in range(3):
            node.run(node.database.write("other", lambda txn: txn.next_position()))
        node.upload(f"D{number}", ["a", "b", "c"])
        assert [node.claim(f"D{number}") for _ in range(2)] == [["a"], ["b"]]
        (rows,) = node.run(node.database.read("read", lambda txn: txn.query(claim_log.LOGGED)))
        found.append(len(claim_log.read_marks(rows)))
        run_coroutine(node.database.close(), None)
    assert max(found) == 3, "blocks: more are settled"
    assert found[-1] < 3


@pytest.mark.usefixtures("short_runs")
def test_two_stores_of_a_process_give_out_no_key_twice(nodes: tuple[Node, Node]) -> None:
    """What each of them does is no other process's: they are alone together."""
    node, _ = nodes
    node.upload("A", [f"k{number}" for number in range(20)])
    stores = node.store, DeviceKeyStore(node.database)
    given: list[str | None] = []
    for number in range(20):
        node.store = stores[number % 2]
        given += node.claim("A")
    assert given == [f"k{number}" for number in range(20)]


@pytest.mark.usefixtures("short_runs")
def test_what_a_failed_write_had_settled_is_not_taken_for_settled(nodes: tuple[Node, Node]) -> None:
    node, other = nodes
    other.upload("A", [f"k{number}" for number in range(5)])
    for _ in range(3):
        node.run(node.database.write("other", lambda txn: txn.next_position()))
    assert [node.claim("A") for _ in range(3)] == [["k0"], ["k1"], ["k2"]], "the latter two are in the log"
    node.fail_to_claim("A")  # it has to read what comes next, and settles before
    assert node.claim("A") == ["k3"]
    assert node.count("A") == 1


def test_claims_of_very_many_keys_are_settled_too(nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """More marks than one statement moves."""
    monkeypatch.setattr(writer, "LONG_ENOUGH", 2)
    node, other = nodes
    devices = [f"D{number}" for number in range(2 * CLAIMED_AT_ONCE)]
    for device_id in devices:
        node.upload(device_id, ["a", "b", "c", "d"])
    for name in "abc":
        assert node.claim(*devices) == [name] * len(devices)
    assert {node.count(device_id) for device_id in devices[::50]} == {1}
    assert other.claim(*devices) == ["d"] * len(devices)
    assert node.claim(*devices) == [None] * len(devices)


@pytest.mark.usefixtures("short_runs")
def test_what_was_settled_is_not_looked_through_again(
    postgresql: PostgresConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as somebody reads an old state, as a backup does, PostgreSQL keeps the rows that have gone since."""
    node = Node(postgresql, monkeypatch)
    for _ in range(3):
        node.run(node.database.write("other", lambda txn: txn.next_position()))
    node.upload("A", [f"k{number}" for number in range(41)])
    assert node.claim("A") == ["k0"]
    engine = node.database.engine
    backup = engine.connect_reader()
    backup.begin_snapshot()
    assert len(backup.query("SELECT claim_nid FROM key_claims", ())) == 1
    for number in range(1, 41):
        assert node.claim("A") == [f"k{number}"]
    reader = engine.connect_reader()
    for sql in (claim_log.LOGGED, f"SELECT 1 WHERE {claim_log.IS_SETTLED}"):
        plan = "\n".join([line for (line,) in reader.query(f"EXPLAIN (ANALYZE) {sql}", ())])
        assert "Index Cond: (claim_nid >" in plan
        assert "Rows Removed" not in plan
    for connection in (backup, reader):
        connection.close()
    run_coroutine(node.database.close(), None)


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


numbers_of_blocks = st.sampled_from([0, 1, 2, 255, 256, 257, 511, 512, 1 << 16, 1 << 40])
"""Such that the bytes of one stand across others, too."""


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.dictionaries(numbers_of_blocks, st.integers(0, 300), max_size=6), max_size=5),
    st.sets(numbers_of_blocks),
    st.randoms(use_true_random=False),
)
def test_what_is_read_of_some_blocks_is_what_all_of_the_log_says_of_them(
    claims: list[dict[int, int]], wanted: set[int], random: Random
) -> None:
    rows = [
        (position, position * 10, b"".join([struct.pack(">qH", *mark) for mark in marks.items()]))
        for position, marks in enumerate(claims)
    ]
    latest = {block: (taken, position * 10) for position, marks in enumerate(claims) for block, taken in marks.items()}
    random.shuffle(rows)
    assert claim_log.read_marks(rows) == latest
    assert claim_log.find_marks(rows, wanted) == {block: latest[block] for block in wanted & latest.keys()}


def make_transaction() -> WriteTransaction:
    """What asks nothing of a database."""
    return WriteTransaction(cast("Connection", None), {}, {})


def test_what_is_known_is_bounded_and_of_whom_nothing_came_for_longest_goes_first() -> None:
    ahead, txn = KeysAhead(most_bytes=3 * (BYTES_BESIDE + 10 + sum(map(getsizeof, ("a", "", ""))))), make_transaction()
    run = KeyRun(1, 0, 5, b"12345" * 2)

    def known() -> str:
        return "".join(name for name in "abcdef" if ahead.get_all([(name, "", "")]) == [run])

    for name in "abc":
        ahead.put(txn, (name, "", ""), run)
    assert known() == "abc"
    ahead.put(txn, ("a", "", ""), run)
    ahead.put(txn, ("d", "", ""), run)
    assert known() == "acd"
    ahead.remove(("a", "", ""))
    ahead.put(txn, ("e", "", ""), run)
    assert known() == "cde"
    ahead.forget("c", "")
    ahead.put(txn, ("f", "", ""), run)
    assert known() == "def"
    for undo in txn.undoings:
        undo()
    assert known() == ""


def test_what_is_known_is_bounded_however_long_the_names_are() -> None:
    most = 1 << 20
    tracemalloc.start()
    try:
        ahead = KeysAhead(most)
        for number in range(2 * most // (BYTES_BESIDE + 10)):
            ahead.put(
                make_transaction(),
                (ALICE, f"{number}" + "\U0001f511" * 250, "\U0001f511" * 240 + f"{number}"),
                KeyRun(number, 0, 5, b"12345" * 2),
            )
        assert most / 2 < tracemalloc.get_traced_memory()[0] < most * 1.1
    finally:
        tracemalloc.stop()
