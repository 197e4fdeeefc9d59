"""The caches of `storage.cache`: bounds, shared loads, and no value older than its reader."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import CancelledError, Deferred

from storage.cache import LRU, StreamCache, StreamValue, drop_oldest
from storage.engine.streams import Change, Stage, Streams, Topic
from tests.helpers.state_machines import run_machine


class Table:
    """A table of numbers by user that answers reads when the test says so."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.pending: list[tuple[tuple[str, ...], Deferred[None]]] = []

    async def load(self, keys: Sequence[str]) -> Mapping[str, int]:
        done: Deferred[None] = Deferred()
        self.pending.append((tuple(keys), done))
        await done
        return {key: self.rows.get(key, 0) for key in keys}

    def answer(self) -> None:
        """Answer all pending reads with the current rows."""
        pending, self.pending = self.pending, []
        for _, done in pending:
            done.callback(None)


def user_of(change: Change) -> Sequence[str] | None:
    return None if change.user_id is None else (change.user_id,)


def cache_of(table: Table, streams: Streams, **bounds: Any) -> StreamCache[str, int]:
    return StreamCache(streams, Topic.ACCOUNT_DATA, load=table.load, keys_of=user_of, **bounds)


def change(position: int, user_id: str | None, topic: Topic = Topic.ACCOUNT_DATA) -> Change:
    return Change(position, topic, user_id=user_id)


def start(cache: StreamCache[str, int], *keys: str) -> "Deferred[dict[str, int]]":
    return Deferred.fromCoroutine(cache.get_many(keys))


def result(deferred: "Deferred[Any]") -> Any:
    assert deferred.called
    results: list[Any] = []
    deferred.addBoth(results.append)
    return results[0]


def test_an_lru_evicts_the_least_recently_used_entry() -> None:
    removed: list[tuple[str, int]] = []
    lru: LRU[str, int] = LRU(
        max_entries=2, on_remove=lambda key, value: removed.append((key, value))
    )
    lru.put("a", 1)
    lru.put("b", 2)
    assert lru.get("a") == 1
    lru.put("c", 3)
    assert removed == [("b", 2)]
    assert lru.get("b") is None
    assert lru.peek("a") == 1
    assert (lru.hits, lru.misses, len(lru)) == (1, 1, 2)
    assert lru.get_many(["a", "b"]) == {"a": 1}
    assert list(lru) == ["c", "a"]
    assert (lru.hits, lru.misses) == (2, 2)
    lru.clear()
    assert removed == [("b", 2), ("c", 3), ("a", 1)]


def test_an_lru_is_bounded_by_weight() -> None:
    lru: LRU[str, bytes] = LRU(
        max_weight=10, weigh=lambda key, value: len(key) + len(value), largest_share=2
    )
    lru.put("a", b"1234")
    lru.put("b", b"1234")
    assert lru.weight == 10
    lru.put("c", b"12345")
    assert "c" not in lru, "it weighs more than a half"
    lru.put("c", b"1")
    assert (list(lru), lru.weight) == (["b", "c"], 7)
    lru.put("c", b"12")
    assert lru.weight == 8
    assert lru.pop("b") == b"1234"
    assert lru.weight == 3


def test_an_lru_weighs_a_value_again_after_a_change_in_place() -> None:
    lru: LRU[str, list[int]] = LRU(max_weight=8, weigh=lambda _, value: len(value), largest_share=2)
    for key in "abc":
        lru.put(key, [1])
    values = lru.get("a") or []
    values += [2, 3]
    lru.reweigh("a")
    assert lru.weight == 5
    values += [4, 5]
    lru.reweigh("a")
    assert ("a" in lru, lru.weight) == (False, 2)
    lru.reweigh("a")


def test_the_oldest_entries_of_a_dictionary_are_dropped() -> None:
    entries = {"a": 1, "b": 2, "c": 3}
    entries["a"] = 4
    drop_oldest(entries, 3)
    assert len(entries) == 3
    drop_oldest(entries, 1)
    assert entries == {"c": 3}


def test_values_and_missing_keys_are_loaded_once() -> None:
    table, streams = Table(), Streams()
    cache = cache_of(table, streams)
    table.rows["a"] = 1
    first = start(cache, "a", "b", "a")
    assert [keys for keys, _ in table.pending] == [("a", "b")]
    table.answer()
    assert result(first) == {"a": 1, "b": 0}
    assert result(start(cache, "b", "a")) == {"b": 0, "a": 1}
    assert result(Deferred.fromCoroutine(cache.get("b"))) == 0
    assert (cache.find("a"), cache.find("c"), len(cache)) == (1, None, 2)
    assert table.pending == []


def test_readers_share_a_load_of_the_same_key() -> None:
    table, streams = Table(), Streams()
    cache = cache_of(table, streams)
    first, second = start(cache, "a", "b"), start(cache, "b", "c")
    assert [keys for keys, _ in table.pending] == [("a", "b"), ("c",)]
    table.answer()
    assert result(first) == {"a": 0, "b": 0}
    assert result(second) == {"b": 0, "c": 0}


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_load_that_a_change_overtakes_is_repeated_for_the_changed_key(*, is_remote: bool) -> None:
    table, streams = Table(), Streams(10)
    cache = cache_of(table, streams)
    streams.set_remote_change_source(lambda _after, _upto: [change(11, "a")])
    reading = start(cache, "a", "b")
    if is_remote:
        streams.advance_to(11)
    else:
        streams.publish([change(11, "a")], 11)
    later = start(cache, "a")
    assert [keys for keys, _ in table.pending] == [("a", "b"), ("a",)], "it shares no older read"
    table.pending.pop(0)[1].callback(None)
    assert not reading.called
    assert cache.find("b") == 0
    assert cache.find("a") is None
    table.rows["a"] = 11
    table.answer()
    assert (result(reading), result(later)) == ({"a": 11, "b": 0}, {"a": 11})


def test_an_undescribed_write_of_another_node_drops_everything() -> None:
    table, streams = Table(), Streams(10)
    cache = cache_of(table, streams)
    start(cache, "a", "b")
    table.answer()
    streams.set_remote_change_source(
        lambda _after, _upto: [change(11, "a"), change(11, "b", Topic.PROFILE)]
    )
    streams.advance_to(11)
    assert (cache.find("a"), cache.find("b")) == (None, 0)
    streams.set_remote_change_source(lambda _after, _upto: None)
    reading = start(cache, "a")
    streams.advance_to(12)
    assert len(cache) == 0
    table.answer()
    assert not reading.called, "it may be older than what the other node wrote"
    table.answer()
    assert result(reading) == {"a": 0}


def test_a_change_of_unknown_keys_drops_everything() -> None:
    table, streams = Table(), Streams()
    cache = cache_of(table, streams)
    start(cache, "a", "b")
    table.answer()
    streams.publish([change(1, None)], 1)
    assert len(cache) == 0


def test_a_change_that_carries_the_value_updates_it_in_place() -> None:
    streams, loads = Streams(10), list[str]()

    async def load(keys: Sequence[str]) -> Mapping[str, list[int]]:
        loads.extend(keys)
        return {key: [] for key in keys}

    def update(value: list[int], change: Change) -> bool:
        if not isinstance(change.detail, int):
            return False
        value.append(change.detail)
        return True

    cache: StreamCache[str, list[int]] = StreamCache(
        streams,
        Topic.RECEIPT,
        load=load,
        keys_of=user_of,
        update=update,
        max_weight=4,
        weigh=lambda _, value: 1 + len(value),
    )
    assert result(Deferred.fromCoroutine(cache.get("a"))) == []
    streams.publish([Change(11, Topic.RECEIPT, user_id="a", detail=5)], 11)
    streams.publish([Change(12, Topic.RECEIPT, user_id="b", detail=6)], 12)
    assert (cache.find("a"), cache.find("b"), cache.weight) == ([5], None, 2)
    streams.publish([Change(13, Topic.RECEIPT, user_id="a")], 13)
    assert cache.find("a") is None
    assert result(Deferred.fromCoroutine(cache.get("a"))) == []
    streams.set_remote_change_source(
        lambda _after, _upto: [Change(14, Topic.RECEIPT, user_id="a", detail=7)]
    )
    streams.advance_to(14)
    assert cache.find("a") is None, "a change of another node only invalidates"
    assert result(Deferred.fromCoroutine(cache.get("a"))) == []
    streams.publish(
        [Change(number, Topic.RECEIPT, user_id="a", detail=1) for number in range(15, 19)], 18
    )
    assert (len(cache), cache.weight) == (0, 0), "it became too heavy"
    assert loads == ["a", "a", "a"]


def test_put_stores_a_value_unless_something_changed_since() -> None:
    table, streams = Table(), Streams()
    cache = cache_of(table, streams)
    before = cache.changes
    assert cache.put("a", 1, since=before)
    streams.publish([change(1, "b")], 1)
    assert not cache.put("a", 2, since=before)
    assert cache.find("a") == 1


def test_a_failed_load_fails_all_waiting_readers_and_is_not_cached() -> None:
    table, streams = Table(), Streams()
    cache = cache_of(table, streams)
    readers = [start(cache, "a"), start(cache, "a")]
    table.pending.pop()[1].errback(ValueError("the database is away"))
    for reader in readers:
        assert isinstance(result(reader).value, ValueError)
    repeated = start(cache, "a")
    table.answer()
    assert result(repeated) == {"a": 0}


def test_a_cancelled_reader_does_not_cancel_a_shared_load() -> None:
    table, streams = Table(), Streams()
    cache = cache_of(table, streams)
    first, second, third = start(cache, "a"), start(cache, "a"), start(cache, "a")
    second.cancel()
    assert isinstance(result(second).value, CancelledError)
    first.cancel()
    assert isinstance(result(first).value, CancelledError)
    assert not third.called
    table.pending.pop(0)
    table.answer()
    assert result(third) == {"a": 0}


def test_a_single_value_is_dropped_by_changes_that_concern_it() -> None:
    streams, loads = Streams(), list[int]()

    async def load() -> int:
        loads.append(1)
        return len(loads)

    value = StreamValue(
        streams, Topic.ERASURE, load=load, concerns=lambda change: change.user_id is not None
    )
    assert value.find() is None
    assert [result(Deferred.fromCoroutine(value.get())) for _ in range(2)] == [1, 1]
    streams.publish([change(1, None, Topic.ERASURE)], 1)
    assert value.find() == 1
    streams.publish([change(2, "a", Topic.ERASURE)], 2)
    assert value.find() is None
    assert result(Deferred.fromCoroutine(value.get())) == 2
    value.invalidate()
    assert value.find() is None


def test_caches_are_notified_before_other_subscribers() -> None:
    table, streams, seen = Table(), Streams(), list[int | None]()
    cache: StreamCache[str, int]
    streams.subscribe(lambda _: seen.append(cache.find("a")), stage=Stage.NOTIFY)
    streams.watch(lambda _after, _upto: seen.append(cache.find("a")), stage=Stage.NOTIFY)
    cache = cache_of(table, streams)
    for _ in range(2):
        start(cache, "a")
        table.answer()
        if streams.current() == 0:
            streams.publish([change(1, "a")], 1)
        else:
            streams.advance_to(2)
    assert seen == [None, None]


KEYS = st.sampled_from("abc")


class CacheMachine(RuleBasedStateMachine):
    """Runs reads, commits of this node and of others, and evictions in any order."""

    @initialize(
        max_entries=st.sampled_from([1, 2, 10]),
        max_weight=st.sampled_from([None, 5]),
        updates=st.booleans(),
    )
    def begin(self, max_entries: int, max_weight: int | None, updates: bool) -> None:
        self.streams = Streams()
        self.described: dict[tuple[int, int], list[Change] | None] = {}
        self.streams.set_remote_change_source(lambda after, upto: self.described[after, upto])
        self.committed: list[tuple[int, str]] = []
        """The content of the database: the position of each change, and its key."""
        self.unannounced: list[tuple[list[tuple[int, str]], bool, bool]] = []
        """Commits that are not announced yet, and whether another node made and described them."""
        self.reads: list[tuple[Deferred[dict[str, list[int]]], tuple[str, ...], int]] = []
        self.loads: list[tuple[tuple[str, ...], Deferred[Mapping[str, list[int]]]]] = []
        self.arrived: list[tuple[Deferred[Mapping[str, list[int]]], Mapping[str, list[int]]]] = []
        """Results of the database that have not reached the reader yet."""
        self.read_before: tuple[str, int, list[int]] | None = None
        self.cache: StreamCache[str, list[int]] = StreamCache(
            self.streams,
            Topic.PROFILE,
            load=self._load,
            keys_of=user_of,
            update=self._update if updates else None,
            max_entries=max_entries,
            max_weight=max_weight,
            weigh=lambda _, value: 1 + len(value) // 4,
        )

    def _load(self, keys: Sequence[str]) -> "Deferred[Mapping[str, list[int]]]":
        deferred: Deferred[Mapping[str, list[int]]] = Deferred()
        self.loads.append((tuple(keys), deferred))
        return deferred

    def _update(self, value: list[int], change: Change) -> bool:
        if change.position not in value:
            value.append(change.position)
            value.sort()
        return True

    def _value(self, key: str) -> list[int]:
        return [position for position, changed in self.committed if changed == key]

    def _announced(self, key: str, position: int) -> list[int]:
        return [each for each in self._value(key) if each <= position]

    @rule(keys=st.lists(KEYS, min_size=1, max_size=3), is_answered=st.booleans())
    def read(self, keys: list[str], is_answered: bool) -> None:
        position, waiting = self.streams.current(), len(self.loads)
        self.reads.append(
            (Deferred.fromCoroutine(self.cache.get_many(keys)), tuple(keys), position)
        )
        while is_answered and len(self.loads) > waiting:
            self.query(waiting)
        self.look()

    @precondition(lambda self: self.loads)
    @rule(which=st.integers(0, 9))
    def query(self, which: int) -> None:
        """Answer a read with everything that is committed now."""
        keys, deferred = self.loads.pop(which % len(self.loads))
        self.arrived.append((deferred, {key: self._value(key) for key in keys}))

    @precondition(lambda self: self.arrived)
    @rule(which=st.integers(0, 9))
    def receive(self, which: int) -> None:
        """Deliver a result of the database to its reader."""
        deferred, values = self.arrived.pop(which % len(self.arrived))
        deferred.callback(values)
        self.look()

    @rule(
        keys=st.lists(KEYS, min_size=1, max_size=2),
        origin=st.sampled_from(["here", "here", "described", "undescribed"]),
        is_announced=st.booleans(),
    )
    def commit(self, keys: list[str], origin: str, is_announced: bool) -> None:
        first = len(self.committed) + 1
        rows = list(enumerate(keys, first))
        self.committed += rows
        self.unannounced.append((rows, origin != "here", origin == "described"))
        while is_announced and self.unannounced:
            self.announce()

    @precondition(lambda self: self.unannounced)
    @rule()
    def announce(self) -> None:
        rows, is_remote, is_described = self.unannounced.pop(0)
        changes = [Change(position, Topic.PROFILE, user_id=key) for position, key in rows]
        after, upto = self.streams.current(), rows[-1][0]
        if is_remote:
            self.described[after, upto] = changes if is_described else None
            self.streams.advance_to(upto)
        else:
            self.streams.publish(changes, upto)
        self.look()

    @precondition(lambda self: len(self.reads) > 3)
    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        deferred, _, _ = self.reads.pop(which % len(self.reads))
        deferred.addErrback(lambda failure: failure.trap(CancelledError))
        deferred.cancel()
        self.loads = [each for each in self.loads if not each[1].called]
        self.arrived = [each for each in self.arrived if not each[0].called]
        self.look()

    @rule(key=KEYS)
    def read_elsewhere(self, key: str) -> None:
        """Read a value for another purpose."""
        self.read_before = (key, self.cache.changes, self._value(key))

    @precondition(lambda self: self.read_before is not None)
    @rule()
    def put(self) -> None:
        """Store a value that was read for another purpose."""
        if self.read_before is not None:
            key, since, value = self.read_before
            self.cache.put(key, value, since=since)
        self.read_before = None

    def look(self) -> None:
        """Check that no finished read returned a value older than its reader's position."""
        ended = [each for each in self.reads if each[0].called]
        self.reads = [each for each in self.reads if not each[0].called]
        for deferred, keys, position in ended:
            found = result(deferred)
            assert found.keys() == set(keys)
            for key in keys:
                assert set(self._announced(key, position)) <= set(found[key])

    @invariant()
    def no_cached_value_is_older_than_the_stream(self) -> None:
        if not hasattr(self, "cache"):
            return
        for key in "abc":
            value = self.cache.find(key)
            if value is not None:
                assert set(self._announced(key, self.streams.current())) <= set(value)

    def teardown(self) -> None:
        """Check that every read ends once the database has answered and nothing changes."""
        if not hasattr(self, "cache"):
            return
        while self.unannounced:
            self.announce()
        while self.loads or self.arrived:
            if self.loads:
                self.query(0)
            else:
                self.receive(0)
        assert self.reads == []


def test_a_read_never_returns_a_value_older_than_its_reader() -> None:
    run_machine(CacheMachine, 100, 30)
