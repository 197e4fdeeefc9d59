"""A complete database is copied to the other kind, and the server runs on the copy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from homeserver.__main__ import main
from storage.engine.database import (
    Database,
    PostgresConfig,
    SQLiteConfig,
    Transaction,
    WriteTransaction,
    make_engine,
)
from storage.maintenance.copy import CannotCopy, CopyProgress, ProgressLines, copy_database
from tests.conftest import run_coroutine
from tests.helpers.databases import open_inline, write_config_file
from tests.helpers.event_search import found, index
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User, move_user

Config = SQLiteConfig | PostgresConfig


@pytest.fixture(params=["sqlite to postgresql", "postgresql to sqlite"])
def source_and_target(
    request: pytest.FixtureRequest, sqlite: SQLiteConfig, postgresql: PostgresConfig
) -> tuple[Config, Config]:
    return (sqlite, postgresql) if request.param.startswith("sqlite") else (postgresql, sqlite)


def copy(
    source: Config, target: Config, on_progress: Callable[[CopyProgress], None] = lambda _: None
) -> dict[str, int]:
    return dict(copy_database(make_engine(source), make_engine(target), on_progress).tables)


def close(database: Database) -> None:
    run_coroutine(database.close(), None)


def create_conversation(server: TestServer) -> tuple[User, User, str, str]:
    """Create two users and a room with messages. Return the last message."""
    alice, bob = server.register("alice"), server.register("bob")
    room = alice.post(
        "/_matrix/client/v3/createRoom", {"name": "Tea", "invite": [bob.user_id]}
    ).json["room_id"]
    assert bob.post(f"/_matrix/client/v3/join/{room}").status == 200
    sent = ""
    for number in range(3):
        content = {"msgtype": "m.text", "body": f"№ {number}\t\\ \n \N{TEACUP WITHOUT HANDLE}"}
        answer = alice.put(
            f"/_matrix/client/v3/rooms/{room}/send/m.room.message/t{number}", content
        )
        sent = answer.json["event_id"]
    assert bob.post(f"/_matrix/client/v3/rooms/{room}/receipt/m.read/{sent}").status == 200
    tag = f"/_matrix/client/v3/user/{bob.user_id}/rooms/{room}/tags/u.work"
    assert bob.put(tag, {"order": 0.5}).status == 200
    return alice, bob, room, sent


def sync_room(user: User, room: str) -> dict[str, Any]:
    """Return what an initial sync shows of the room."""
    answer = user.get("/_matrix/client/v3/sync")
    assert answer.status == 200, answer.body
    joined: dict[str, Any] = answer.json["rooms"]["join"][room]
    return joined


def test_the_server_runs_on_the_copy(
    source_and_target: tuple[Config, Config], tmp_path: Path
) -> None:
    source, target = source_and_target
    database = open_inline(source)
    server = TestServer(tmp_path, database)
    alice, bob, room, last = create_conversation(server)
    run_coroutine(index(server), None)
    before = [sync_room(user, room) for user in (alice, bob)]
    since = bob.get("/_matrix/client/v3/sync").json["next_batch"]
    close(database)

    copied = copy(source, target)
    assert copied["accounts"] == 2
    assert copied["receipts"] >= 1

    moved = open_inline(target)
    server = TestServer(tmp_path, moved, seed=2)
    alice, bob = (move_user(server, u) for u in (alice, bob))
    assert [sync_room(user, room) for user in (alice, bob)] == before
    assert found(bob, "№ 2") == [last]
    repeated = alice.put(
        f"/_matrix/client/v3/rooms/{room}/send/m.room.message/t2",
        {"msgtype": "m.text", "body": "sent again"},
    )
    assert repeated.json == {"event_id": last}, (
        "a retried request finds the event that it created before the copy"
    )
    new = alice.put(
        f"/_matrix/client/v3/rooms/{room}/send/m.room.message/t3",
        {"msgtype": "m.text", "body": "moved"},
    )
    assert new.status == 200, new.body
    later = bob.get(f"/_matrix/client/v3/sync?since={since}").json["rooms"]["join"][room][
        "timeline"
    ]["events"]
    assert [event["content"]["body"] for event in later] == ["moved"], (
        "a sync token is valid after the copy"
    )
    body = password_auth("bob")
    assert server.post("/_matrix/client/v3/login", body).status == 200
    close(moved)


async def fill(database: Database, tables: dict[str, list[tuple[str, str]]]) -> None:
    """Write a row of arbitrary values into every table."""

    def add(txn: WriteTransaction) -> None:
        for table, columns in tables.items():
            values = [
                7
                if kind in ("BIGINT", "INTEGER")
                else b"\0\xff\\"
                if kind in ("BLOB", "BYTEA")
                else "a\0\\N\t\n\r\\"
                for _, kind in columns
            ]
            names = ", ".join(name for name, _ in columns)
            txn.execute(
                f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})", values
            )

    await database.write("fill", add)


async def columns_of(database: Database) -> dict[str, list[tuple[str, str]]]:
    """Return every column of every table of an SQLite database, as the schema files declare
    them."""
    rows = await database.read(
        "columns",
        lambda txn: txn.query(
            "SELECT t.name, c.name, c.type FROM sqlite_master t JOIN pragma_table_info(t.name) c "
            "WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'"
            " AND t.name NOT LIKE 'searchable_text%' "
            "AND t.name <> 'schema_version' ORDER BY t.name, c.cid"
        ),
    )
    tables: dict[str, list[tuple[str, str]]] = {}
    for table, column, kind in rows:
        tables.setdefault(table, []).append((column, kind))
    return tables


async def everything(
    database: Database, tables: dict[str, list[tuple[str, str]]]
) -> dict[str, list[Any]]:
    def read(txn: Transaction) -> dict[str, list[Any]]:
        return {
            table: txn.query(f"SELECT {', '.join(name for name, _ in columns)} FROM {table}")
            for table, columns in tables.items()
        }

    return await database.read("everything", read)


async def test_every_table_of_the_schema_is_copied(
    sqlite: SQLiteConfig, postgresql: PostgresConfig, tmp_path: Path
) -> None:
    database = open_inline(sqlite)
    tables = await columns_of(database)
    await fill(database, tables)
    before = await everything(database, tables)
    await database.close()
    assert len(tables) > 25
    assert copy(sqlite, postgresql) == dict.fromkeys(tables, 1)
    copied = open_inline(postgresql)
    after = await everything(copied, tables)
    await copied.close()
    as_postgres_has_it = {
        table: [
            tuple(v.replace("\0", "\U0010ffff") if isinstance(v, str) else v for v in row)
            for row in rows
        ]
        for table, rows in before.items()
    }
    assert after == as_postgres_has_it
    back = SQLiteConfig(str(tmp_path / "back.db"), synchronous="OFF")
    assert copy(postgresql, back) == dict.fromkeys(tables, 1)
    returned = open_inline(back)
    assert await everything(returned, tables) == as_postgres_has_it
    await returned.close()


def count_accounts(database: Database, count: int) -> None:
    def add(txn: WriteTransaction) -> None:
        txn.execute_many(
            "INSERT INTO accounts (user_id, created_ts, position) VALUES (?, ?, ?)",
            [(f"@user{number}:example.org", number, number) for number in range(count)],
        )

    run_coroutine(write_only(database, add), None)


async def write_only(database: Database, add: Callable[[WriteTransaction], None]) -> None:
    await database.write("fill", add)


def test_many_rows_are_copied_in_batches_with_progress(
    sqlite: SQLiteConfig, empty_postgres: PostgresConfig
) -> None:
    database = open_inline(sqlite)
    count_accounts(database, 1234)
    close(database)
    lines: list[str] = []
    seconds = iter(range(10_000))
    progress = ProgressLines(write=lines.append, clock=lambda: float(next(seconds)))
    steps: list[CopyProgress] = []

    def on_progress(step: CopyProgress) -> None:
        steps.append(step)
        progress.report(step)

    assert copy(sqlite, empty_postgres, on_progress)["accounts"] == 1234
    copying = [step.rows for step in steps if step.table == "accounts" and step.phase == "copying"]
    assert copying == [0, 500, 1000, 1234]
    assert steps[-1].rows_done == steps[-1].rows_total == 2 * 1234
    assert any(line.startswith("copying accounts: 1,000 of 1,234 rows; ") for line in lines)
    assert lines[-1].endswith("about 0 s left\n")


def test_an_interrupted_copy_leaves_nothing_and_can_be_restarted(
    source_and_target: tuple[Config, Config],
) -> None:
    source, target = source_and_target
    database = open_inline(source)
    count_accounts(database, 1234)
    close(database)

    def interrupt(step: CopyProgress) -> None:
        if step.phase == "comparing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(source, target, interrupt)
    assert copy(source, target)["accounts"] == 1234


def test_a_target_with_rows_is_refused(source_and_target: tuple[Config, Config]) -> None:
    source, target = source_and_target
    database = open_inline(target)
    count_accounts(database, 1)
    close(database)
    with pytest.raises(CannotCopy, match=r"is not empty \(there are rows in accounts\)"):
        copy(source, target)


def test_a_source_that_is_in_use_is_refused(
    source_and_target: tuple[Config, Config],
) -> None:
    source, target = source_and_target
    database = open_inline(source)
    run_coroutine(look(database), None)
    with pytest.raises(CannotCopy, match="stop the server first"):
        copy(source, target)
    close(database)
    assert copy(source, target)["accounts"] == 0


async def look(database: Database) -> None:
    await database.read("look", lambda txn: txn.query("SELECT 1 FROM accounts"))


def test_a_target_that_is_in_use_is_refused(
    sqlite: SQLiteConfig, postgresql: PostgresConfig
) -> None:
    database = open_inline(postgresql)
    run_coroutine(look(database), None)
    with pytest.raises(CannotCopy, match="stop the server first"):
        copy(sqlite, postgresql)
    close(database)


def forget_version(txn: WriteTransaction) -> None:
    txn.execute("DELETE FROM schema_version")


def test_a_source_of_another_version_is_refused(
    sqlite: SQLiteConfig, postgresql: PostgresConfig
) -> None:
    database = open_inline(sqlite)
    run_coroutine(write_only(database, forget_version), None)
    close(database)
    with pytest.raises(CannotCopy, match="has schema version 0, and this program has"):
        copy(sqlite, postgresql)


def test_a_missing_source_is_not_created(sqlite: SQLiteConfig, tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    with pytest.raises(CannotCopy, match="there is no database at"):
        copy(SQLiteConfig(str(missing)), sqlite)
    assert not missing.exists()
    with pytest.raises(CannotCopy, match="source and target are the same"):
        copy(sqlite, sqlite)


def test_the_command_copies_and_prints_progress(
    sqlite: SQLiteConfig, postgresql: PostgresConfig, tmp_path: Path
) -> None:
    database = open_inline(sqlite)
    count_accounts(database, 2)
    close(database)
    old, new = (
        write_config_file(tmp_path, "old.yaml", sqlite),
        write_config_file(tmp_path, "new.yaml", postgresql),
    )
    other = write_config_file(tmp_path, "other.yaml", postgresql, "example.com")

    def run(target: Path) -> Any:
        return CliRunner().invoke(main, ["copy-database", "--from", str(old), "--to", str(target)])

    assert "is for example.org, but" in run(other).stderr
    done = run(new)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("copied 2 rows in ")
    assert "copying accounts: 2 of 2 rows" in done.stderr
    retried = run(new)
    assert retried.exit_code == 1
    assert "nothing was copied" in retried.stderr
    assert "is not empty" in retried.stderr
