"""Counters of an SQLite database: no number is used twice, whichever connection counts."""

import sqlite3
from pathlib import Path

import pytest

from storage.engine.sqlite import SQLiteConfig, SQLiteConnection, SQLiteEngine


@pytest.fixture
def engine(tmp_path: Path) -> SQLiteEngine:
    return SQLiteEngine(SQLiteConfig(str(tmp_path / "x.db"), synchronous="OFF"))


def connect(engine: SQLiteEngine) -> SQLiteConnection:
    connection = engine.connect_writer()
    assert isinstance(connection, SQLiteConnection)
    return connection


def test_numbers_taken_by_another_connection_are_seen(engine: SQLiteEngine) -> None:
    one = connect(engine)
    one.execute_script(
        "CREATE TABLE counters (name TEXT NOT NULL PRIMARY KEY, value BIGINT NOT NULL)"
    )
    other = connect(engine)
    expected: dict[str, int] = {}
    for number, connection in enumerate((one, one, other, one, other, other, one)):
        assert connection.begin_write() == expected
        changed = {"position": number, f"c{number}": 1}
        connection.commit(changed)
        expected |= changed
    assert other.begin_write() == expected
    other.execute("UPDATE counters SET value = 100 WHERE name = 'position'", ())
    other.rollback()
    for connection in (other, one):
        assert connection.begin_write() == expected
        connection.rollback()
    one.begin_migration()
    one.execute_script("UPDATE counters SET value = 7 WHERE name = 'c0';")
    one.commit({})
    for connection in (one, other):
        assert connection.begin_write() == {**expected, "c0": 7}
        connection.rollback()
        connection.close()


def test_uncommitted_numbers_are_not_counted(engine: SQLiteEngine) -> None:
    connection = connect(engine)
    connection.execute_script(
        "CREATE TABLE counters (name TEXT NOT NULL PRIMARY KEY, value BIGINT NOT NULL);\n"
        "CREATE TABLE parents (id INTEGER PRIMARY KEY);\n"
        "CREATE TABLE children (parent REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED);\n"
    )
    connection.begin_write()
    connection.commit({"position": 1})
    assert connection.begin_write() == {"position": 1}
    connection.execute("INSERT INTO children (parent) VALUES (5)", ())
    with pytest.raises(sqlite3.IntegrityError):
        connection.commit({"position": 2})
    connection.rollback()
    assert connection.begin_write() == {"position": 1}
    connection.close()
