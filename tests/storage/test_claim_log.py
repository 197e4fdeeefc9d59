"""The log of claims of one-time keys, and what is known of the keys that come next, by themselves;
and what an upgrade and a copy of the database make of them."""

import struct
import tracemalloc
from random import Random
from sys import getsizeof
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.encryption import claim_log, one_time_keys
from storage.encryption.claim_log import LOGGED
from storage.encryption.device_keys import NewKeys
from storage.encryption.keys_ahead import BYTES_BESIDE, MOST_WITHOUT, KeyRun, KeysAhead
from storage.engine.database import PostgresConfig, SQLiteConfig, WriteTransaction, make_engine
from storage.engine.interface import Connection
from storage.maintenance.copy import copy_database
from tests.helpers.key_nodes import ALGORITHM, ALICE, Node, content, wishes_for

Config = SQLiteConfig | PostgresConfig


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
    latest = {
        block: (taken, position * 10)
        for position, marks in enumerate(claims)
        for block, taken in marks.items()
    }
    random.shuffle(rows)
    assert claim_log.read_marks(rows) == latest
    assert claim_log.find_marks(rows, wanted) == {
        block: latest[block] for block in wanted & latest.keys()
    }


def make_transaction() -> WriteTransaction:
    """What asks nothing of a database."""
    return WriteTransaction(cast("Connection", None), {}, {})


def test_what_is_known_is_bounded_and_of_whom_nothing_came_for_longest_goes_first() -> None:
    ahead, txn = (
        KeysAhead(most_bytes=3 * (BYTES_BESIDE + 10 + sum(map(getsizeof, ("a", "", ""))))),
        make_transaction(),
    )
    run = KeyRun(1, 0, 2, 5, b"12345" * 2)

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


@pytest.mark.parametrize("more", ["", "\U0001f511" * 240])
def test_what_is_known_is_bounded_however_long_the_names_are(more: str) -> None:
    most = 1 << 20
    tracemalloc.start()
    try:
        ahead = KeysAhead(most)
        for number in range(2 * most // (BYTES_BESIDE + 10)):
            ahead.put(
                make_transaction(),
                (f"{ALICE}{number}", f"{number}{more}", f"{more}{number}"),
                KeyRun(number, 0, 2, 5, b"12345" * 2),
            )
        assert most / 2 < tracemalloc.get_traced_memory()[0] < most * 1.1
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("more", ["", "x" * 600, "x" * 100_000])
def test_of_whom_it_is_known_that_none_is_left_is_bounded_however_many_names_are_made_up(
    more: str,
) -> None:
    ahead, txn = KeysAhead(), make_transaction()
    txn.stretch = 1
    tracemalloc.start()
    try:
        for number in range(MOST_WITHOUT + 10 if len(more) < 1000 else 1000):
            of = (f"{ALICE}{number}", f"{number}{more}", ALGORITHM)
            ahead.note_none(txn, of)
            assert ahead.have_none(txn, of) is (len(more) < 1000)
            txn.undoings.clear()
        assert tracemalloc.get_traced_memory()[0] < 16 << 20
    finally:
        tracemalloc.stop()


def count_logged(node: Node) -> int:
    """Rows of the log."""
    (rows,) = node.run(node.database.read("read", lambda txn: txn.query(LOGGED)))
    return len(rows)


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("to_postgres", [True, False])
def test_a_log_that_is_copied_to_the_other_database_holds_there(
    sqlite: SQLiteConfig,
    postgresql: PostgresConfig,
    monkeypatch: pytest.MonkeyPatch,
    *,
    to_postgres: bool,
) -> None:
    source, target = (sqlite, postgresql) if to_postgres else (postgresql, sqlite)
    node = Node(source, monkeypatch)
    for device_id in "AB":
        node.upload(device_id, [f"{device_id}{number}" for number in range(10)])
    node.write(3)
    for number in range(5):
        assert node.claim("A", "B") == [f"A{number}", f"B{number}"]
    assert count_logged(node) == 3, "what is gathered, and two claims"
    node.close()
    copy_database(make_engine(source), make_engine(target), lambda _: None)
    node = Node(target, monkeypatch)
    assert count_logged(node) == 3
    assert [node.count(device_id) for device_id in "AB"] == [5, 5]
    for number in range(5, 10):
        assert node.claim("A", "B") == [f"A{number}", f"B{number}"]
    assert node.claim("A", "B") == [None, None]
    node.close()


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("restarts", [True, False])
def test_claims_of_many_devices_are_gathered_however_few_a_process_has_seen_of_them(
    database_config: Config, monkeypatch: pytest.MonkeyPatch, *, restarts: bool
) -> None:
    monkeypatch.setattr(claim_log, "MOST_CLAIMS", 100)
    node = Node(database_config, monkeypatch)
    for number in range(6):
        node.write(3)
        devices = [f"{each}{number}" for each in "AB"]
        for device_id in devices:
            node.upload(device_id, ["a"])
        assert node.claim(*devices) == ["a", "a"]
        (rows,) = node.run(
            node.database.read("read", lambda txn: txn.query("SELECT marks FROM key_claims"))
        )
        assert (
            sum(len(marks) for (marks,) in rows) <= (claim_log.MOST_MARKS + len(devices) - 1) * 10
        ), "bytes"
        if restarts:
            node = node.restarted()
    node.close()


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("number", [1, 12])
def test_what_a_claim_asks_does_not_grow_with_devices_nor_with_what_they_uploaded(
    database_config: Config, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Of a device that adds a key whenever one was given out a claim has to read what comes
    next."""
    monkeypatch.setattr(claim_log, "MOST_CLAIMS", 100)
    monkeypatch.setattr(claim_log, "MOST_MARKS", 1000)
    node, other = Node(database_config, monkeypatch), Node(database_config, monkeypatch)
    devices = [f"D{each}" for each in range(number)]
    for key in range(5 + number):
        for device_id in devices:
            node.upload(device_id, [f"{device_id} {key}"])
    node.upload("many", [f"{key}" for key in range(5)])
    node.upload("none", ["0"])
    assert node.claim("many", "none") == ["0", "0"]

    def cost(*device_ids: str) -> int:
        node.counter.clear()
        node.claim(*device_ids)
        return node.counter.queries["claim_keys"]

    for _ in range(2):  # the log is settled, and then empty
        other.write(1)
        last = cost("many", *devices)
    assert last == 3, (
        "to move the marks of those that are known, if the log is empty, and which comes next of the others"
    )
    node.write(3)
    assert cost(*devices) == 2, "which comes next; a row of the log"
    assert cost(*devices) == 2, "not what the log says: that is known"
    node.upload("more", ["a"])
    assert cost("more") == 1, "a row of the log"
    assert cost("none") == 2, "what comes next; whether there is a fallback key"
    assert cost("none") == 1, "that none is left is known"
    node.upload("none", ["1"])
    assert cost("none") == 1, "a row of the log"
    assert cost("none") == 2
    assert cost("none") == 1
    other.write(1)
    node.write(3)
    assert cost("none") == 6, (
        "what the log says; what is next, which that says is used up; what else it says that of; so that those marks hold; what is next; "
        "whether there is a fallback key"
    )
    assert cost("none") == 1
    node.close()
    other.close()


@pytest.mark.usefixtures("short_runs")
def test_what_is_known_is_bounded_also_where_more_was_read_of_it(
    database_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_time_keys, "MOST_READ_AHEAD", 1000)
    node, other = Node(database_config, monkeypatch), Node(database_config, monkeypatch)
    most = 5000
    node.remember_at_most(most)
    devices = [f"D{number}" for number in range(3)]
    for device_id in devices:
        other.upload(device_id, [f"{device_id}{number}{'x' * 200}" for number in range(5)])
    node.write(3)
    for number in range(5):
        for device_id in devices:
            assert node.claim(device_id) == [f"{device_id}{number}{'x' * 200}"]
            known = [run for run in node.ahead.get_all(wishes_for(devices)) if run is not None]
            assert 0 < sum(BYTES_BESIDE + len(run.keys) for run in known) < most
    node.close()
    other.close()


@pytest.mark.usefixtures("short_runs")
def test_of_whom_keys_were_taken_that_had_been_read_the_rest_is_read(
    database_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_time_keys, "READ_AHEAD", 0)
    monkeypatch.setattr(claim_log, "MOST_CLAIMS", 100)
    monkeypatch.setattr(claim_log, "MOST_MARKS", 100)
    monkeypatch.setattr(one_time_keys, "MOST_READ_AHEAD", 1000)
    node, other = Node(database_config, monkeypatch), Node(database_config, monkeypatch)
    for device_id in "AB":
        other.upload(device_id, [f"{device_id}{number}" for number in range(5)])
    node.write(3)
    costs: list[int] = []
    for number in range(5):
        node.counter.clear()
        assert node.claim("A", "B") == [f"A{number}", f"B{number}"]
        costs.append(node.counter.queries["claim_keys"])
    assert costs[1:] == [2, 1, 1, 1], "it is read, and a row of the log; a row"
    node.close()
    other.close()


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize(
    "how", ["still known", "read by the claim", "read by the upload", "settled"]
)
def test_how_long_a_key_is_remembered_begins_with_its_claim_wherever_that_is_written(
    database_config: Config, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    node, other = Node(database_config, monkeypatch), Node(database_config, monkeypatch)
    names = [f"A{number}" for number in range(5)]

    def put(txn: WriteTransaction) -> int:
        keys = {(ALGORITHM, name): content(name) for name in (*names, "more")}
        return node.store.put_keys(txn, ALICE, "A", NewKeys(None, keys, {}), 5).one_time[ALGORITHM]

    node.upload("A", names)
    node.write(3)
    for ts in range(1, 6):
        node.run(node.store.do_claim([(ALICE, "A", ALGORITHM)], ts))
    assert count_logged(node) == 3, "what is gathered, and the last two claims"
    if how != "still known":
        other.write(1)
        node.write(0 if how == "settled" else 3)
    if how in ("read by the claim", "settled"):
        assert node.claim("Z") == [None], "it has to know what is in the log, or to settle it"
    assert count_logged(node) == (0 if how == "settled" else 3)
    for _ in range(2):
        assert node.run(node.database.write("upload", put)) == [1], (
            "all but one were given out no longer ago"
        )
    node.close()
    other.close()


@pytest.mark.usefixtures("short_runs")
def test_a_mark_that_an_undone_write_had_moved_is_not_where_it_was_then(
    database_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(database_config, monkeypatch)
    node.upload("A", ["a", "b", "c"])
    assert node.claim("A") == ["a"]
    node.write(3)
    node.fail_to_claim([(ALICE, "A", ALGORITHM)])
    assert [node.claim("A") for _ in range(3)] == [["b"], ["c"], [None]]
    node.close()
