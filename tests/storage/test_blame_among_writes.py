"""Which write fails, and with which error, when many share a transaction."""

from typing import Any, cast

import pytest

from storage.engine.database import DatabaseUnavailable, WriteTransaction
from storage.rooms.sent_transactions import AlreadySent, SentTransaction, add_transaction
from tests.storage.test_postgres_writer import INSERT, nodes, write
from tests.storage.test_writer import Stepped, put, stepped

__all__ = ["nodes", "stepped"]


@pytest.mark.parametrize("breaks", ["a rule", "the grammar"])
def test_a_write_that_fails_at_its_end_or_before_its_begin_is_the_one_that_is_undone(
    stepped: Stepped, breaks: str
) -> None:
    """What it had asked before was answered; and of a message that makes no sense the server does
    nothing at all."""
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


def test_a_request_is_not_answered_for_what_another_of_a_lost_batch_had_done(
    nodes: tuple[Stepped, Stepped],
) -> None:
    """The second found it done by the first, which nobody knows to be there."""
    node, _ = nodes
    request = SentTransaction("@a:b", "A", "PUT /send", "1")

    def note(txn: WriteTransaction) -> None:
        add_transaction(txn, request, None, b"{}", 0)

    node.queue("first", note)
    node.queue("again", note)
    node.queue(
        "lose", lambda txn: txn.execute_later("SELECT pg_terminate_backend(pg_backend_pid())")
    )
    cast(Any, node.database)._writer._pause = lambda _seconds: None
    node.step()
    assert (
        node.results["first"]
        is node.results["again"]
        is node.results["lose"]
        is DatabaseUnavailable
    )
    assert write(node, "later", note) is None, "it was not done"
    assert write(node, "later again", note) is AlreadySent
