"""One-time keys of which a process knows what comes next: each is given out once, in order,
whatever other processes do meanwhile, and whatever fails."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.encryption import claim_log
from storage.encryption.device_keys import CLAIMED_AT_ONCE, DeviceKeyStore
from storage.encryption.keys_ahead import BYTES_BESIDE, MOST_BYTES
from storage.engine import writer
from storage.engine.database import (
    DatabaseUnavailable,
    PostgresConfig,
    SQLiteConfig,
    WriteTransaction,
)
from storage.engine.interface import OthersWrote
from tests.helpers.key_nodes import ALGORITHM, ALICE, Node, names_of, wishes_for

OTHER = "other"
DEVICES = ("A", "B", "C")
OWNERS = (("A", ALGORITHM), ("B", ALGORITHM), ("B", OTHER))
"""Of the history: devices, each with an algorithm."""


@pytest.fixture
def nodes(
    database_config: SQLiteConfig | PostgresConfig, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Node]]:
    pair = [Node(database_config, monkeypatch), Node(database_config, monkeypatch)]
    yield pair
    for node in pair:
        node.close()


owners = st.integers(0, len(OWNERS) - 1)
some_owners = st.lists(owners, unique=True, min_size=1)
failures = st.sampled_from([ZeroDivisionError(), OthersWrote(), DatabaseUnavailable("gone")])
steps = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["upload", "upload one by one"]),
            st.integers(0, 1),
            owners,
            st.integers(1, 9),
        ),
        st.tuples(
            st.sampled_from(["fail", "begin anew"]), st.integers(0, 1), owners, st.integers(1, 3)
        ),
        st.tuples(
            st.sampled_from(["remove", "write", "restart", "another store"]),
            st.integers(0, 1),
            owners,
            st.just(4),
        ),
        st.tuples(
            st.sampled_from(["claim", "alone", "lose", "fail claims", "together"]),
            st.integers(0, 1),
            some_owners,
            st.integers(1, 12),
        ),
        st.tuples(
            st.just("break"),
            st.integers(0, 1),
            st.tuples(some_owners, owners, failures),
            st.integers(1, 20),
        ),
    ),
    max_size=40,
)


@pytest.mark.usefixtures("short_runs")
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps, st.sampled_from([0, BYTES_BESIDE + 300, 2 * BYTES_BESIDE + 600, MOST_BYTES]))
def test_keys_are_given_out_in_order_and_once_at_whichever_node(
    nodes: list[Node], steps: list[tuple[str, int, Any, int]], most_bytes: int
) -> None:
    left: list[list[str]] = [[] for _ in OWNERS]
    given: list[list[str]] = [[] for _ in OWNERS]
    have_identity: set[str] = set()
    for device_id, _ in OWNERS:
        nodes[0].remove(device_id)
    for node in nodes:
        node.remember_at_most(most_bytes)

    def take(owners: Sequence[int]) -> list[str | None]:
        taken: list[str | None] = []
        for owner in owners:
            given[owner] += left[owner][:1]
            taken.append(left[owner].pop(0) if left[owner] else None)
        return taken

    def forget(of: str) -> None:
        for owner, (device_id, _) in enumerate(OWNERS):
            if device_id == of:
                left[owner], given[owner] = [], []

    number = 0
    for step, at, what, times in steps:
        node = nodes[at]
        names = [f"k{number + each}" for each in range(times)]
        number += times
        if step in ("upload", "upload one by one", "fail", "begin anew"):
            device_id, algorithm = OWNERS[what]
            if step == "upload":
                left[what] += names
                told = node.upload(device_id, [*given[what], *names], algorithm)
                assert told == len(left[what]), "what was given out stays so"
            elif step == "upload one by one":
                for name in names:
                    left[what].append(name)
                    assert node.upload(device_id, [name], algorithm) == len(left[what])
            elif step == "begin anew":
                identity = b'{"keys":{"ed25519:%b":"%d"}}' % (device_id.encode(), number)
                node.upload(device_id, names, algorithm, identity=identity)
                if device_id in have_identity:
                    forget(device_id)
                left[what] += names
                have_identity.add(device_id)
            else:
                with pytest.raises(ZeroDivisionError):
                    node.upload(device_id, names, algorithm, fail=True)
        elif step == "write":
            node.write(times)
        elif step == "remove":
            device_id, _ = OWNERS[what]
            node.remove(device_id)
            forget(device_id)
            have_identity.discard(device_id)
        elif step == "restart":
            nodes[at] = node.restarted()
        elif step == "another store":
            node.use_another_store()
        elif step == "break":
            claimed, owner, failure = what
            device_id, algorithm = OWNERS[owner]
            wishes = [(ALICE, *OWNERS[each]) for each in claimed]
            claims = [node.store.do_claim(wishes, 1000) for _ in range(2)]
            upload = node.do_upload(device_id, [*given[owner], *names], algorithm)
            first, told, second = node.run_failing(times, failure, claims[0], upload, claims[1])
            if first is not None:
                assert names_of(first) == take(claimed)
            if told is not None:
                left[owner] += names
                assert told == len(left[owner])
            if second is not None:
                assert names_of(second) == take(claimed)
        else:
            wishes = [(ALICE, *OWNERS[each]) for each in what]
            if step == "alone":
                node.write(3)
            for number_of_claim in range(times):
                if step == "fail claims" and number_of_claim % 2 == 0:
                    node.fail_to_claim(wishes)
                wanted = take(what)
                if step == "lose" and number_of_claim % 3 == 2:
                    node.claim_and_lose(wishes)
                    continue
                if step == "together":
                    assert node.claim_together(wishes) == [wanted, take(what)]
                    continue
                (answer,) = node.run(node.store.do_claim(wishes, 1000))
                assert names_of(answer) == wanted
        for owner, names_left in zip(OWNERS, left, strict=True):
            for each in nodes:
                assert each.count(*owner) == len(names_left)


@pytest.mark.usefixtures("short_runs")
def test_what_is_not_settled_is_bounded_over_restarts(
    database_config: SQLiteConfig | PostgresConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    for number in range(7):
        node = Node(database_config, monkeypatch)
        node.write(3)
        node.upload(f"D{number}", ["a", "b", "c"])
        assert [node.claim(f"D{number}") for _ in range(2)] == [["a"], ["b"]]
        (rows,) = node.run(node.database.read("read", lambda txn: txn.query(claim_log.LOGGED)))
        found.append(len(claim_log.read_marks(rows)))
        (rows,) = node.run(
            node.database.read("read", lambda txn: txn.query("SELECT claim_nid FROM key_claims"))
        )
        assert len(rows) <= 3, "they go when they are gathered"
        node.close()
    assert max(found) == 3, "blocks: more are settled"
    assert found[-1] < 3


@pytest.mark.usefixtures("short_runs")
def test_what_is_in_the_log_is_not_believed_once_another_node_was_alone(nodes: list[Node]) -> None:
    for device_id in "AB":
        nodes[0].upload(device_id, [f"{device_id}{number}" for number in range(20)])
    for number in range(0, 20, 2):
        node = nodes[number // 2 % 2]
        node.write(3)
        node.upload("C", [f"C{number}"])
        assert node.claim("C") == [f"C{number}"], "known, and in the log"
        for more in range(2):
            assert node.claim("A", "B") == [f"A{number + more}", f"B{number + more}"]
            assert node.count("A") == 19 - number - more
    assert nodes[0].claim("A", "B") == [None, None]


@pytest.mark.usefixtures("short_runs")
def test_two_stores_of_a_process_give_out_no_key_twice(nodes: list[Node]) -> None:
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
def test_what_a_failed_write_had_settled_is_not_taken_for_settled(nodes: list[Node]) -> None:
    node, other = nodes
    other.upload("A", [f"k{number}" for number in range(5)])
    node.write(3)
    assert [node.claim("A") for _ in range(3)] == [["k0"], ["k1"], ["k2"]], (
        "the latter two are in the log"
    )
    node.fail_to_claim(wishes_for("A"))  # it has to read what comes next, and settles before
    assert node.claim("A") == ["k3"]
    assert node.count("A") == 1


@pytest.mark.usefixtures("short_runs")
def test_a_batch_that_is_run_again_does_not_believe_that_none_is_left(nodes: list[Node]) -> None:
    """It gave out the last one before, and then looked for another."""
    node, _ = nodes

    def add_again(txn: WriteTransaction) -> None:
        txn.execute_later("INSERT INTO counters (name, value) VALUES ('position', 1)")

    async def be_refused() -> list[bytes | None]:
        with pytest.raises(node.database.engine.errors):
            await node.database.write("refused", add_again)
        return []

    node.write(3)
    node.upload("A", ["a"])
    claims = [node.store.do_claim(wishes_for("A"), 1000) for _ in range(2)]
    assert list(map(names_of, node.run(*claims, be_refused()))) == [["a"], [None], []]


def test_claims_of_very_many_keys_are_settled_too(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    """As long as somebody reads an old state, as a backup does, PostgreSQL keeps the rows that have
    gone since."""
    node = Node(postgresql, monkeypatch)
    node.write(3)
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
    node.close()


def test_what_was_uploaded_here_is_claimed_without_being_read(nodes: list[Node]) -> None:
    node, other = nodes
    for device_id in DEVICES:
        node.upload(device_id, [f"{device_id}{number}" for number in range(4)])
    for number in range(3):
        node.counter.clear()
        assert node.claim(*DEVICES) == [f"{device_id}{number}" for device_id in DEVICES]
        assert dict(node.counter.queries) == {"claim_keys": 1}
    assert other.claim(*DEVICES) == [f"{device_id}3" for device_id in DEVICES]
    assert node.claim(*DEVICES) == [None] * len(DEVICES)


def test_what_is_known_of_one_algorithm_says_nothing_of_another(nodes: list[Node]) -> None:
    node, _ = nodes
    node.upload("A", ["a", "b"])
    node.upload("A", ["c", "d"], OTHER)
    assert node.claim("A", algorithm=OTHER) == ["c"]
    assert node.claim("A") == ["a"]
    assert node.claim("A", algorithm=OTHER) == ["d"]
    assert node.claim("A", algorithm=OTHER) == [None]
    assert node.claim("A") == ["b"]


@pytest.mark.usefixtures("short_runs")
def test_nothing_is_known_of_a_device_that_has_gone(nodes: list[Node]) -> None:
    node, _ = nodes
    node.write(3)
    for algorithm in (ALGORITHM, OTHER):
        node.upload("A", ["a", "b"], algorithm)
        assert node.claim("A", algorithm=algorithm) == ["a"]
    node.remove("A")
    for algorithm in (ALGORITHM, OTHER):
        assert node.claim("A", algorithm=algorithm) == [None]


def test_younger_keys_are_not_taken_for_the_next(nodes: list[Node]) -> None:
    """An upload is known; the one before, at another node, has keys left."""
    node, other = nodes
    other.upload("A", ["a", "b"])
    node.upload("A", ["c"])
    assert [node.claim("A") for _ in range(4)] == [["a"], ["b"], ["c"], [None]]


def test_where_a_later_write_of_a_claim_fails_what_was_given_out_is_not_lost(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
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
