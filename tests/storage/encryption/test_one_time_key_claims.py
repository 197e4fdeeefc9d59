"""Claims of one-time keys: each key is given out once, in order, whatever other processes do
meanwhile and whatever fails."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.encryption.device_keys import CLAIM_CHUNK, NewKeys
from storage.engine.database import (
    DatabaseUnavailable,
    PostgresConfig,
    SQLiteConfig,
    WriteTransaction,
)
from tests.helpers.key_nodes import ALGORITHM, ALICE, Node, content, names_of, requests_for

OTHER = "other"
OWNERS = (("A", ALGORITHM), ("B", ALGORITHM), ("B", OTHER))
"""The devices and algorithms of the history."""


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
failures = st.sampled_from([ZeroDivisionError(), DatabaseUnavailable("gone")])
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
            st.sampled_from(["remove", "write", "restart"]), st.integers(0, 1), owners, st.just(4)
        ),
        st.tuples(
            st.sampled_from(["claim", "lose", "fail claims", "together"]),
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


@pytest.mark.usefixtures("small_blocks")
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps)
def test_any_node_gives_out_each_key_once_and_in_order(
    nodes: list[Node], steps: list[tuple[str, int, Any, int]]
) -> None:
    left: list[list[str]] = [[] for _ in OWNERS]
    given: list[list[str]] = [[] for _ in OWNERS]
    have_identity: set[str] = set()
    for device_id, _ in OWNERS:
        nodes[0].remove(device_id)

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
                received = node.upload(device_id, [*given[what], *names], algorithm)
                assert received == len(left[what]), "claimed keys stay claimed"
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
        elif step == "break":
            claimed, owner, failure = what
            device_id, algorithm = OWNERS[owner]
            requests_ = [(ALICE, *OWNERS[each]) for each in claimed]
            claims = [node.store.claim_in_chunks(requests_, 1000) for _ in range(2)]
            upload = node.do_upload(device_id, [*given[owner], *names], algorithm)
            first, received, second = node.run_failing(times, failure, claims[0], upload, claims[1])
            if first is not None:
                assert names_of(first) == take(claimed)
            if received is not None:
                left[owner] += names
                assert received == len(left[owner])
            if second is not None:
                assert names_of(second) == take(claimed)
        else:
            requests_ = [(ALICE, *OWNERS[each]) for each in what]
            for number_of_claim in range(times):
                if step == "fail claims" and number_of_claim % 2 == 0:
                    node.fail_to_claim(requests_)
                wanted = take(what)
                if step == "lose" and number_of_claim % 3 == 2:
                    node.claim_and_lose(requests_)
                    continue
                if step == "together":
                    assert node.claim_together(requests_) == [wanted, take(what)]
                    continue
                (answer,) = node.run(node.store.claim_in_chunks(requests_, 1000))
                assert names_of(answer) == wanted
        for owner, names_left in zip(OWNERS, left, strict=True):
            for each in nodes:
                assert each.count(*owner) == len(names_left)


@pytest.mark.usefixtures("small_blocks")
def test_alternating_nodes_give_out_each_key_once(nodes: list[Node]) -> None:
    for device_id in "AB":
        nodes[0].upload(device_id, [f"{device_id}{number}" for number in range(12)])
    for number in range(12):
        assert nodes[number % 2].claim("A", "B") == [f"A{number}", f"B{number}"]
        assert {node.count("A") for node in nodes} == {11 - number}
    assert nodes[0].claim("A", "B") == [None, None]


def test_a_rolled_back_claim_takes_no_key(nodes: list[Node]) -> None:
    node, _ = nodes
    node.upload("A", ["a", "b"])
    node.fail_to_claim(requests_for("A"))
    assert [node.claim("A") for _ in range(3)] == [["a"], ["b"], [None]]


def test_a_claim_of_very_many_keys_takes_several_writes(nodes: list[Node]) -> None:
    """More keys than one statement takes."""
    node, other = nodes
    devices = [f"D{number}" for number in range(2 * CLAIM_CHUNK)]
    for device_id in devices:
        node.upload(device_id, ["a", "b"])
    assert node.claim(*devices) == ["a"] * len(devices)
    assert {node.count(device_id) for device_id in devices[::50]} == {1}
    assert other.claim(*devices) == ["b"] * len(devices)
    assert node.claim(*devices) == [None] * len(devices)


@pytest.mark.parametrize("number", [1, 40])
def test_the_query_count_of_a_claim_is_constant(nodes: list[Node], number: int) -> None:
    node, _ = nodes
    devices = [f"D{each}" for each in range(number)]
    for upload in range(3):
        for device_id in devices:
            node.upload(device_id, [f"{device_id} {upload}"])

    def cost(*device_ids: str) -> int:
        node.counter.clear()
        node.claim(*device_ids)
        return node.counter.queries["claim_keys"]

    assert [cost(*devices) for _ in range(3)] == [1, 1, 1]
    assert cost(*devices) == 2, "none is left: look for a fallback key"


def test_the_digest_of_a_key_is_stored_for_some_time_after_its_claim(nodes: list[Node]) -> None:
    node, _ = nodes
    names = [f"A{number}" for number in range(5)]

    def put(txn: WriteTransaction) -> int:
        keys = {(ALGORITHM, name): content(name) for name in (*names, "more")}
        return node.store.upload_keys(txn, ALICE, "A", NewKeys(None, keys, {}), 5).one_time[
            ALGORITHM
        ]

    node.upload("A", names)
    for ts in range(1, 6):
        node.run(node.store.claim_in_chunks([(ALICE, "A", ALGORITHM)], ts))
    for _ in range(2):
        assert node.run(node.database.write("upload", put)) == [1], (
            "the last key of the block was claimed later"
        )


def test_keys_of_different_algorithms_are_separate(nodes: list[Node]) -> None:
    node, _ = nodes
    node.upload("A", ["a", "b"])
    node.upload("A", ["c", "d"], OTHER)
    assert node.claim("A", algorithm=OTHER) == ["c"]
    assert node.claim("A") == ["a"]
    assert node.claim("A", algorithm=OTHER) == ["d"]
    assert node.claim("A", algorithm=OTHER) == [None]
    assert node.claim("A") == ["b"]


def test_a_deleted_device_has_no_keys(nodes: list[Node]) -> None:
    node, _ = nodes
    for algorithm in (ALGORITHM, OTHER):
        node.upload("A", ["a", "b"], algorithm)
        assert node.claim("A", algorithm=algorithm) == ["a"]
    node.remove("A")
    for algorithm in (ALGORITHM, OTHER):
        assert node.claim("A", algorithm=algorithm) == [None]


def test_keys_of_the_oldest_upload_are_claimed_first_on_every_node(nodes: list[Node]) -> None:
    node, other = nodes
    other.upload("A", ["a", "b"])
    node.upload("A", ["c"])
    assert [node.claim("A") for _ in range(4)] == [["a"], ["b"], ["c"], [None]]


def test_keys_of_a_partly_failed_claim_are_returned(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = nodes
    devices = [f"D{number:04}" for number in range(CLAIM_CHUNK + 3)]
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
    assert node.claim(*devices) == [*devices[:CLAIM_CHUNK], None, None, None]
    with pytest.raises(DatabaseUnavailable):
        node.claim(*devices)
    monkeypatch.setattr(node.database, "write", write)
    assert node.claim(*devices) == [*[None] * CLAIM_CHUNK, *devices[CLAIM_CHUNK:]]
