"""Who is told that a write failed, and why, where many share a transaction."""

import pytest

from storage.engine.database import DatabaseUnavailable, WriteTransaction
from storage.engine.writer import LONG_ENOUGH
from storage.rooms.sent_transactions import AlreadySent, SentTransaction, add_transaction
from tests.storage.test_steady_writer import INSERT, nodes, put_later, settle, write
from tests.storage.test_trusting_writer import INSERT_ONE
from tests.storage.test_writer import Stepped, put, stepped

__all__ = ["nodes", "stepped"]


@pytest.mark.parametrize("breaks", ["a rule", "the grammar"])
def test_a_write_that_fails_at_its_end_or_before_its_begin_is_the_one_that_is_undone(
    stepped: Stepped, breaks: str
) -> None:
    """What it had asked before was answered; and of a message that makes no sense the server does
    nothing at all."""
    settle(stepped)
    write(stepped, "there", put("there"))

    def fn(txn: WriteTransaction) -> None:
        if breaks == "the grammar":
            txn.query("SELEC 1")
        txn.query("SELECT 1")
        txn.execute_later(INSERT, ("there", ""))

    for name in ("before", "breaks", "after"):
        stepped.queue(name, fn if name == "breaks" else put(name))
    stepped.queue("breaks last", fn)
    stepped.step()
    head = stepped.database.streams.current()
    assert (stepped.results["before"], stepped.results["after"]) == (head - 1, head)
    for name in ("breaks", "breaks last"):
        assert issubclass(stepped.results[name], stepped.database.engine.errors)  # type: ignore[arg-type]
    assert stepped.names() == ["after", "before", "there"]


@pytest.mark.parametrize("company", [False, True], ids=["alone", "among others"])
def test_who_fails_after_what_was_taken_for_granted_fails_for_what_is_so(
    stepped: Stepped, *, company: bool
) -> None:
    """A request that would be refused today is answered as before where it is a repeated one."""
    settle(stepped, LONG_ENOUGH + 1)
    write(stepped, "there", put_later("there"))

    def fn(txn: WriteTransaction) -> None:
        if not txn.change_one(INSERT_ONE, ("there", ""), b"there"):
            raise LookupError
        raise ValueError

    if company:
        stepped.queue("before", put_later("before"))
        stepped.queue("after", put_later("after"))
    stepped.queue("one", fn)
    stepped.step()
    assert stepped.results["one"] is LookupError
    assert stepped.names() == (["after", "before", "there"] if company else ["there"])


def test_who_fails_once_it_is_known_that_all_is_so_is_not_run_again(stepped: Stepped) -> None:
    settle(stepped, LONG_ENOUGH + 1)
    tries: list[int] = []

    def fn(txn: WriteTransaction) -> None:
        tries.append(1)
        assert txn.change_one(INSERT_ONE, ("new", ""), b"new")
        txn.query("SELECT 1")
        raise ValueError

    stepped.queue("before", put_later("before"))
    stepped.queue("one", fn)
    stepped.step()
    assert (stepped.results["one"], len(tries), stepped.names()) == (ValueError, 1, ["before"])


def test_a_request_is_not_answered_for_what_another_of_a_lost_batch_had_done(
    nodes: tuple[Stepped, Stepped],
) -> None:
    """The second found it done by the first, which nobody knows to be there."""
    node, _ = nodes
    settle(node)
    request = SentTransaction("@a:b", "A", "PUT /send", "1")

    def note(txn: WriteTransaction) -> None:
        add_transaction(txn, request, None, b"{}", 0)

    node.queue("first", note)
    node.queue("again", note)
    node.queue(
        "lose", lambda txn: txn.execute_later("SELECT pg_terminate_backend(pg_backend_pid())")
    )
    node.step()
    assert (
        node.results["first"]
        is node.results["again"]
        is node.results["lose"]
        is DatabaseUnavailable
    )
    assert write(node, "later", note) is None, "it was not done"
    assert write(node, "later again", note) is AlreadySent
