"""Proves which write of a batch fails, and with which error."""

import pytest

from storage.engine import writer
from storage.engine.database import DatabaseUnavailable, WriteTransaction
from storage.rooms.sent_transactions import AlreadySent, SentTransaction, add_transaction
from tests.helpers.stepped_database import INSERT_JOB, SteppedDatabase, insert_job, write_now


@pytest.mark.parametrize("breaks", ["constraint", "syntax"])
def test_only_the_failing_write_of_a_batch_is_undone(stepped: SteppedDatabase, breaks: str) -> None:
    """Its earlier queries succeeded. The server executes nothing of a message with a syntax
    error."""
    write_now(stepped, "there", insert_job("there"))

    def fn(txn: WriteTransaction) -> None:
        if breaks == "syntax":
            txn.query("SELEC 1")
        txn.query("SELECT 1")
        txn.execute_later(INSERT_JOB, ("there", ""))

    for name in ("before", "breaks", "after"):
        stepped.queue(name, fn if name == "breaks" else insert_job(name))
    stepped.queue("breaks last", fn)
    stepped.step()
    head = stepped.database.streams.current()
    assert (stepped.results["before"], stepped.results["after"]) == (head - 1, head)
    for name in ("breaks", "breaks last"):
        assert issubclass(stepped.results[name], stepped.database.engine.errors)  # type: ignore[arg-type]
    assert stepped.names() == ["after", "before", "there"]


def test_a_duplicate_request_in_a_lost_batch_is_not_reported_as_sent(
    nodes: tuple[SteppedDatabase, SteppedDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second request found the row of the first, which was never committed."""
    node, _ = nodes
    request = SentTransaction("@a:b", "A", "PUT /send", "1")

    def record(txn: WriteTransaction) -> None:
        add_transaction(txn, request, None, b"{}", 0)

    node.queue("first", record)
    node.queue("again", record)
    node.queue(
        "lose", lambda txn: txn.execute_later("SELECT pg_terminate_backend(pg_backend_pid())")
    )
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0)
    node.step()
    assert (
        node.results["first"]
        is node.results["again"]
        is node.results["lose"]
        is DatabaseUnavailable
    )
    assert write_now(node, "later", record) is None, "it was not committed"
    assert write_now(node, "later again", record) is AlreadySent
