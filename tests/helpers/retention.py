"""A server with retention, and common operations of its tests."""

from collections.abc import Sequence
from typing import Any

from storage.engine.database import Database
from storage.engine.transaction import Transaction
from tests.helpers.room_actions import set_state
from tests.helpers.server import TestServer, User

DAY = 86_400
RULES = """retention: {enabled: true, allowed_lifetime_min: 1h, allowed_lifetime_max: 30d}
media_deletion: {grace_period: 1h}
"""
SECRET = "zanjabil"


def keep_for(user: User, room_id: str, seconds: float | None) -> None:
    set_state(
        user,
        room_id,
        "m.room.retention",
        {} if seconds is None else {"max_lifetime": int(seconds * 1000)},
    )


def purge(server: TestServer) -> int:
    """Run the job; return the number of purged messages."""
    return sum(server.run(expiry.do_step(1000)) for expiry in server.app.retention.expiries)


def damage(server: TestServer, event_id: str) -> None:
    """Make the stored content of an event unreadable."""
    sql = "UPDATE events SET pdu = ? WHERE event_id = ?"
    server.run(
        server.app.database.write("damage", lambda txn: txn.execute(sql, (b"{bad", event_id)))
    )


def settle(server: TestServer) -> None:
    while server.run(server.app.retention.record.do_clean_index(100)):
        pass


def track_references(server: TestServer) -> None:
    """Record which files the events refer to."""
    server.clock.advance(61)  # backfilled events are looked for only now and then
    while server.run(server.app.media.maintenance.references.do_track(1000)):
        pass


def index(server: TestServer) -> None:
    while server.run(server.app.search.indexing.do_step(1000)):
        pass


async def find_tables(database: Database, word: str) -> list[str]:
    """Return the tables with the word in any column."""
    return await database.read("find_tables", _find_tables, database.engine.name, word)


def _find_tables(txn: Transaction, engine: str, word: str) -> list[str]:
    if engine == "sqlite":
        names = (
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
        )
    else:
        names = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    tables = [name for (name,) in txn.query(names)]
    assert len(tables) > 100
    return [
        name
        for name in tables
        if word in repr([_plain(row) for row in txn.query(f"SELECT * FROM {name}")])
    ]


def _plain(row: Sequence[Any]) -> list[Any]:
    return [bytes(value) if isinstance(value, memoryview) else value for value in row]
