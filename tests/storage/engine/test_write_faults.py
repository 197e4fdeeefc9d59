"""Faults at any statement of a batch: an acknowledged write is stored once; a refused write is not
stored, and fails for its own reason. No write is answered because of another write of the batch
that was undone."""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import psycopg2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.errors import RaiseException

from storage.engine.database import DatabaseUnavailable, Transaction, WriteTransaction
from storage.engine.postgres import ROWS_PER_MESSAGE
from storage.engine.streams import Change, Stage, Topic
from tests.conftest import run_coroutine
from tests.helpers.stepped_database import SteppedDatabase
from tests.helpers.write_faults import FAULTS, UNNOTICED_FAULTS, Faults, UnexpectedError

INSERT: Final = "INSERT INTO jobs (name, progress) VALUES (?, '0')"
INSERT_ONE: Final = f"{INSERT} ON CONFLICT DO NOTHING"
MOVE: Final = "UPDATE jobs SET progress = ? WHERE name = 'head' AND progress = ?"
COUNT: Final = (
    "UPDATE jobs SET progress = CAST(CAST(progress AS INTEGER) + 1 AS TEXT) WHERE name = 'count'"
)


GOOD: Final = ["asks", "later", "later asked", "many", "copies", "once", "counts"]
BAD: Final = [
    "raises",
    "raises asked",
    "raises oddly",
    "breaks",
    "breaks later",
    "breaks asked",
    "breaks many",
    "nonsense",
    "swallows",
]
CHECKED: Final = ["same", "there", "moves", "raises checked"]
"""Writes that depend on stored rows, which another write of the batch may have changed."""


class Repeated(Exception):
    """The request was carried out before. For its caller that counts as success."""


class Moved(Exception):
    """The head has another version than the one that was read."""


def make_write(kind: str, name: str, version: str) -> Callable[[WriteTransaction], str]:
    """Return a write of this kind that stores a row with its name. `version`: the version of the
    head that was read."""

    def fn(txn: WriteTransaction) -> str:
        position = txn.next_position()
        match kind:
            case "asks" | "raises asked":
                txn.execute(INSERT, (name,))
            case "later" | "raises" | "raises oddly":
                txn.execute_later(INSERT, (name,))
            case "later asked":
                txn.allocate("room")
                txn.query("SELECT 1")
                txn.execute_later(INSERT, (name,))
            case "many" | "breaks many":
                last = "there" if kind == "breaks many" else name
                names = [(f"{name} {number}",) for number in range(ROWS_PER_MESSAGE)]
                txn.execute_many(INSERT, [*names, (last,)])
                txn.execute_many("DELETE FROM jobs WHERE name = ?", names)
            case "copies":
                rows = [(f"{name} {number}", "") for number in range(4)]
                txn.insert_rows("jobs", ("name", "progress"), [*rows, (name, "0")])
                txn.execute_many("DELETE FROM jobs WHERE name = ?", [row[:1] for row in rows])
            case "once":
                assert txn.execute(INSERT_ONE, (name,))
            case "counts":
                txn.execute_later(COUNT)
                txn.execute_later(INSERT, (name,))
            case "same":
                if not txn.execute(INSERT_ONE, ("same",)):
                    raise Repeated
                txn.execute_later(INSERT, (name,))
            case "there" | "raises checked":
                if not txn.execute(INSERT_ONE, ("there",)):
                    raise Repeated
                txn.execute_later(INSERT, (name,))
                if kind == "raises checked":
                    raise ValueError
            case "moves":
                if not txn.execute(MOVE, (str(int(version) + 1), version)):
                    raise Moved
                txn.execute_later(INSERT, (name,))
            case "breaks":
                txn.execute(INSERT, (name,))
                txn.execute(INSERT, ("there",))
            case "breaks later":
                txn.execute_later(INSERT, (name,))
                txn.execute_later(INSERT, ("there",))
            case "breaks asked":
                txn.execute(INSERT, (name,))
                txn.execute_later(INSERT, ("there",))
            case "nonsense":
                txn.execute(INSERT, (name,))
                txn.query("SELEC 1")
            case "swallows":
                txn.execute(INSERT, (name,))
                with suppress(psycopg2.Error, sqlite3.Error):
                    txn.execute(INSERT, ("there",))
        if kind.startswith("raises"):
            raise UnexpectedError if kind == "raises oddly" else ValueError
        txn.announce(Change(position, Topic.PROFILE, user_id=name))
        return name

    return fn


def expect(kinds: list[str], errors: type[Exception], *, swallows: bool) -> list[object]:
    """Return the results of the writes in one batch without faults; None for success."""
    seen: set[str] = set()
    expected: list[object] = []
    for kind in kinds:
        outcome: object = None
        if kind in ("there", "raises checked") or (kind == "same" and kind in seen):
            outcome = Repeated
        elif kind == "moves" and kind in seen:
            outcome = Moved
        elif kind.startswith("raises"):
            outcome = UnexpectedError if kind == "raises oddly" else ValueError
        elif kind.startswith(("breaks", "nonsense")) or (kind == "swallows" and not swallows):
            outcome = errors
        seen.add(kind)
        expected.append(outcome)
    return expected


def select_all(txn: Transaction) -> dict[str, str]:
    return dict(txn.query("SELECT name, progress FROM jobs"))


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(
        st.tuples(
            st.lists(st.sampled_from([*GOOD, *BAD, *CHECKED, *CHECKED]), min_size=1, max_size=7),
            st.dictionaries(st.integers(1, 8), st.sampled_from(FAULTS), max_size=2),
        ),
        min_size=1,
        max_size=2,
    )
)
def test_acknowledged_writes_are_stored_and_all_others_are_not(
    faulty: tuple[SteppedDatabase, Faults | None], batches: list[tuple[list[str], dict[int, str]]]
) -> None:
    stepped, faults = faulty
    errors = stepped.database.engine.errors

    def run(name: str, fn: Callable[[WriteTransaction], Any]) -> None:
        stepped.queue(name, fn)
        stepped.step()

    def find_all() -> dict[str, str]:
        found: dict[str, str] = {}

        async def read() -> None:
            found.update(await stepped.database.read("all", select_all))

        run_coroutine(read(), None)
        return found

    stepped.results.clear()
    run("clear", lambda txn: txn.execute("DELETE FROM jobs"))
    run("there", lambda txn: txn.execute_many(INSERT, [("there",), ("head",), ("count",)]))
    received: list[Change] = []
    end = stepped.database.streams.subscribe(received.extend, stage=Stage.NOTIFY)
    done: set[str] = set()
    for at, (kinds, plan) in enumerate(batches):
        before = find_all()
        names = [f"{at}.{number} {kind}" for number, kind in enumerate(kinds)]
        for name, kind in zip(names, kinds, strict=True):
            stepped.queue(name, make_write(kind, name, before["head"]))
        if faults is not None:
            faults.begin(plan)
        stepped.step()
        is_unknown = faults is not None and faults.is_unknown
        happened = (
            {fault for at, fault in plan.items() if at <= faults.sent}
            if faults is not None
            else set()
        )
        if faults is not None:
            faults.begin({})
        after = find_all()
        outcomes = [
            None if stepped.results[name] == name else stepped.results[name] for name in names
        ]
        expected = expect(kinds, errors, swallows=faults is None)
        if "same" in before:
            expected = [
                Repeated if kind == "same" else each
                for kind, each in zip(kinds, expected, strict=True)
            ]
        for name, kind, outcome, wanted in zip(names, kinds, outcomes, expected, strict=True):
            if outcome is None:
                assert name in after, "an acknowledged write is stored"
                done.add(name)
            else:
                is_there = name in after
                assert not is_there or (outcome is DatabaseUnavailable and is_unknown), (
                    name,
                    outcome,
                )
            if outcome is Repeated:
                assert ("same" if kind == "same" else "there") in after, (
                    "the repeated write is stored"
                )
            if outcome is Moved:
                assert after["head"] != before["head"], "the head has moved"
            if happened <= UNNOTICED_FAULTS:
                assert outcome is wanted or _is_a(outcome, wanted), (name, outcome, wanted)
            elif outcome is not None:
                assert (
                    outcome in (DatabaseUnavailable, RaiseException)
                    or _is_a(outcome, wanted)
                    or kind in CHECKED
                )
        for what, kind in (("head", "moves"), ("count", "counts")):
            written = [
                name
                for name, each in zip(names, kinds, strict=True)
                if each == kind and name in after
            ]
            assert int(after[what]) - int(before[what]) == len(written), "each write counts once"
        run("next", lambda txn: txn.next_position())
        assert stepped.results["next"] == stepped.database.streams.current()
    assert [change.user_id for change in received if change.user_id in done] == [
        change.user_id for change in received
    ]
    assert sorted(done) == sorted([str(change.user_id) for change in received]), (
        "of each that was done all hear once"
    )
    positions = [change.position for change in received]
    assert positions == sorted(set(positions))
    end()


def _is_a(outcome: object, wanted: object) -> bool:
    return isinstance(outcome, type) and isinstance(wanted, type) and issubclass(outcome, wanted)
