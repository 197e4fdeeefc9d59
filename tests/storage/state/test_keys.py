"""The numbering of a room's (type, state_key) pairs, by two nodes on one database."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.engine.database import PostgresConfig, WriteTransaction
from storage.state.keys import StateKey, StateKeys
from tests.conftest import run_coroutine
from tests.helpers.stepped_database import SteppedDatabase, write_now


@pytest.fixture
def nodes(postgresql: PostgresConfig) -> Iterator[tuple[SteppedDatabase, SteppedDatabase]]:
    """Two processes."""
    pair = SteppedDatabase(postgresql), SteppedDatabase(postgresql)
    yield pair
    for each in pair:
        run_coroutine(each.database.close(), None)


NUMBERED: Final = [("t", name) for name in "abcdef"]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    batches=st.lists(
        st.tuples(
            st.sampled_from([0, 1]),
            st.lists(
                st.tuples(
                    st.lists(st.lists(st.sampled_from(NUMBERED), max_size=3), max_size=3),
                    st.booleans(),
                ),
                min_size=1,
                max_size=3,
            ),
        ),
        max_size=8,
    ),
    forgetful=st.booleans(),
)
def test_two_nodes_give_each_pair_one_number(
    nodes: tuple[SteppedDatabase, SteppedDatabase],
    batches: list[tuple[int, list[tuple[list[list[StateKey]], bool]]]],
    forgetful: bool,
) -> None:
    """For any order of writes, and whichever writes of a batch fail."""
    write_now(nodes[0], "clear", lambda txn: txn.execute("DELETE FROM state_keys"))
    known = [StateKeys(0 if forgetful else 1000) for _ in nodes]
    given: dict[StateKey, int] = {}

    def number(
        keys: StateKeys, parts: list[list[StateKey]], fails: bool
    ) -> Callable[[WriteTransaction], Any]:
        def fn(txn: WriteTransaction) -> dict[StateKey, int]:
            found: dict[StateKey, int] = {}
            for pairs in parts:
                found.update(keys.intern(txn, 1, pairs))
                numbering = keys.get(txn, 1, 1 + max(found.values(), default=-1))
                assert all(numbering.pair_of(nid) == pair for pair, nid in found.items())
            if fails:
                raise ValueError
            return found

        return fn

    for which, writes in batches:
        node = nodes[which]
        for at, (parts, fails) in enumerate(writes):
            node.queue(str(at), number(known[which], parts, fails))
        node.step()
        for at, (_, fails) in enumerate(writes):
            result = node.results[str(at)]
            assert fails == (result is ValueError)
            if isinstance(result, dict):
                assert {**given, **result} == {**result, **given}, "a number never changes"
                given.update(result)
    assert sorted(given.values()) == list(range(len(given)))
    rows = write_now(
        nodes[0], "rows", lambda txn: txn.query("SELECT type, state_key, key_nid FROM state_keys")
    )
    assert isinstance(rows, list)
    assert {(kind, key): nid for kind, key, nid in rows} == given
