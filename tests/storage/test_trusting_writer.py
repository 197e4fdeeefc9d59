"""What a writer on PostgreSQL sends together, and takes for granted while it is alone; and what
becomes of it where it is not so."""

from collections.abc import Callable
from typing import Final

import pytest
from msgspec.structs import replace

from storage.engine.database import WriteTransaction
from storage.engine.streams import Change, Topic
from storage.engine.writer import LONG_ENOUGH
from storage.rooms.sent_transactions import AlreadySent, SentTransaction, add_transaction
from tests.storage.test_steady_writer import (
    INSERT,
    MOVE,
    CountingCursor,
    move,
    nodes,
    put_later,
    settle,
    write,
)
from tests.storage.test_writer import Stepped, put, stepped

__all__ = ["nodes", "stepped"]

INSERT_ONE: Final = f"{INSERT} ON CONFLICT DO NOTHING"


def test_many_writes_that_ask_nothing_are_one_message(nodes: tuple[Stepped, Stepped]) -> None:
    node, _ = nodes
    settle(node)
    for number in range(3):
        CountingCursor.messages = 0
        for each in range(4):
            node.queue(f"{number}.{each}", put_later(f"{number}.{each}"))
        node.queue(f"fails{number}", fail_later)
        head = node.database.streams.current()
        node.step()
        assert [node.results[f"{number}.{each}"] for each in range(4)] == [
            *range(head + 1, head + 5)
        ]
        assert node.results[f"fails{number}"] is ValueError
    assert CountingCursor.messages == 1
    assert CountingCursor.last.count(b"EXECUTE") == 5, "the lock with the position; the rows"
    node.queue("later", put_later("later"))
    node.queue("asks", put("asks"))
    node.step()
    assert len(node.names()) == 14


def fail_later(txn: WriteTransaction) -> None:
    put_later("undone")(txn)
    raise ValueError


@pytest.mark.parametrize("company", [False, True], ids=["alone", "among others"])
@pytest.mark.parametrize("sql", [INSERT_ONE, MOVE], ids=["insert", "update"])
def test_what_is_taken_for_granted_is_asked_where_it_is_not_so(
    stepped: Stepped, sql: str, *, company: bool
) -> None:
    """On PostgreSQL as on SQLite, which always knows."""
    settle(stepped, LONG_ENOUGH + 1)
    write(stepped, "there", put_later("there"))
    tries: list[str] = []
    undone: list[str] = []

    def change(name: str) -> Callable[[WriteTransaction], bool]:
        def fn(txn: WriteTransaction) -> bool:
            tries.append(name)
            txn.when_undone(lambda: undone.append(name))
            position = txn.next_position()
            args = (name, "here") if sql == INSERT_ONE else ("moved", name, "here")
            is_changed = txn.change_one(sql, args, name.encode())
            if is_changed:
                txn.announce(Change(position, Topic.PROFILE, user_id=name))
            return is_changed

        return fn

    trusts = stepped.database.engine.name == "postgres"
    hit, miss = ("new", "there") if sql == INSERT_ONE else ("there", "new")
    heard: list[str | None] = []
    stepped.database.streams.subscribe(
        lambda told: heard.extend([change.user_id for change in told])
    )
    for name, is_changed, runs in (
        (hit, True, 1),
        (miss, False, 2 if trusts else 1),
        (miss, False, 1),
    ):
        tries.clear()
        undone.clear()
        if company:
            stepped.queue("before", move("nobody", "here", "there"))
            stepped.queue("after", lambda txn: txn.next_position())
        stepped.queue("one", change(name))
        stepped.step()
        assert stepped.results["one"] is is_changed
        assert (len(tries), len(undone)) == (runs, runs - 1), (
            "what came lately is asked for at once"
        )
    assert [user for user in heard if user in (hit, miss)] == [hit]
    assert stepped.names() == (["new", "there"] if sql == INSERT_ONE else ["there"])


def test_a_request_that_was_repeated_is_found_to_be_by_whichever_process(
    nodes: tuple[Stepped, Stepped],
) -> None:
    """Each message of a client notes its request, and that costs no question."""
    here, there = nodes
    request = SentTransaction("@a:b", "A", "PUT /send", "1")
    settle(here)

    def note(named: SentTransaction) -> Callable[[WriteTransaction], int]:
        def fn(txn: WriteTransaction) -> int:
            add_transaction(txn, named, None, b'{"one":1}', 0)
            return txn.next_position()

        return fn

    for number in range(3):
        CountingCursor.messages = 0
        assert isinstance(
            write(here, f"first{number}", note(replace(request, txn_id=f"{number}"))), int
        )
    assert CountingCursor.messages == 1
    settle(there)
    for node in (here, there, there):
        assert write(node, "again", note(request)) is AlreadySent
