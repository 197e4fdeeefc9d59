"""The write-ahead log of SQLite is extended before the first write, without changing its
content."""

import resource
import shutil
import sqlite3
from pathlib import Path

from storage.engine.sqlite import WAL_BYTES, SQLiteConfig, SQLiteConnection, SQLiteEngine


def make_database(path: Path) -> Path:
    """Create a database for a writer. Return the path of the log."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "CREATE TABLE counters (name TEXT NOT NULL PRIMARY KEY, value BIGINT NOT NULL)"
        )
        connection.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY, filling BLOB)")
    connection.close()
    return path.with_name(f"{path.name}-wal")


def connect(path: Path) -> SQLiteConnection:
    connection = SQLiteEngine(SQLiteConfig(str(path))).connect_writer()
    assert isinstance(connection, SQLiteConnection)
    return connection


def write(connection: SQLiteConnection, number: int, size: int = 10) -> None:
    connection.begin_write()
    connection.execute("INSERT INTO kept VALUES (?, randomblob(?))", (number, size))
    connection.commit({"position": number})


def numbers(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [
            number for (number,) in connection.execute("SELECT number FROM kept ORDER BY number")
        ]
    finally:
        connection.close()


def test_committed_writes_survive_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    log = make_database(path)
    connection = connect(path)
    for number in range(50):
        write(connection, number)
        if number % 7 == 0:
            crashed = tmp_path / f"crashed{number}.db"
            shutil.copy(path, crashed)
            shutil.copy(log, crashed.with_name(f"{crashed.name}-wal"))
            assert numbers(crashed) == list(range(number + 1))
    assert log.stat().st_size == WAL_BYTES + -WAL_BYTES % 4096
    connection.close()
    assert numbers(path) == list(range(50))


def test_writes_of_another_connection_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    make_database(path)
    other = sqlite3.connect(path, isolation_level=None)
    for number in range(20):
        other.execute("INSERT INTO kept VALUES (?, randomblob(5000))", (number,))
    connection = connect(path)
    write(connection, 20)
    assert other.execute("SELECT count(*), sum(length(filling)) FROM kept").fetchone() == (
        21,
        100_010,
    )
    connection.close()
    other.close()
    assert numbers(path) == list(range(21))


def test_the_log_does_not_grow_further(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    log = make_database(path)
    connection = connect(path)
    write(connection, 0)
    length = log.stat().st_size
    for number in range(1, 500):
        write(connection, number, 20_000)
    assert log.stat().st_size == length
    connection.close()
    assert numbers(path) == list(range(500))


def test_a_longer_log_is_not_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    log = make_database(path)
    other = sqlite3.connect(path)
    other.execute("INSERT INTO kept VALUES (0, randomblob(?))", (2 * WAL_BYTES,))
    other.commit()
    length = log.stat().st_size
    connection = connect(path)
    write(connection, 1)
    assert log.stat().st_size == length
    connection.close()
    other.close()
    assert numbers(path) == [0, 1]


def test_the_log_is_not_extended_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    log = make_database(path)
    connection = connect(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1 << 20, before[1])
    )  # further writes fail, as on a full disk
    try:
        write(connection, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.stat().st_size < 100_000
    connection.close()
    assert numbers(path) == [0]
