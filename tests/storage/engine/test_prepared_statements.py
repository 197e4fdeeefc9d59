"""Repeated statements are prepared on PostgreSQL, without a change of meaning."""

from http import HTTPStatus
from typing import Any, cast

import psycopg2
import pytest

from storage.engine.database import (
    Database,
    PostgresConfig,
    SQLValue,
    Transaction,
    WriteTransaction,
    make_engine,
)
from storage.engine.interface import CUSTOM_PLAN, Connection
from storage.engine.prepared import Argument, PreparedStatements
from tests.helpers.databases import create_things_table

PREPARED = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE ?"


def run(prepared: PreparedStatements, sql: str, args: list[Argument]) -> tuple[str, str]:
    """Return the texts to run for a statement, and record that the preparation succeeded."""
    before, text = prepared.lookup(sql, args)
    if before:
        prepared.record(sql, args, text)
    return before, text


def test_a_statement_is_prepared_at_its_first_use() -> None:
    prepared = PreparedStatements()
    sql = "SELECT a FROM t WHERE b = ? AND c = ?"
    args: list[Argument] = [1, "x"]
    assert run(prepared, sql, args) == (
        "PREPARE s1 (bigint, text) AS SELECT a FROM t WHERE b = $1 AND c = $2",
        "EXECUTE s1 (%s, %s)",
    )
    assert run(prepared, sql, args) == ("", "EXECUTE s1 (%s, %s)")


def test_arguments_of_other_types_need_another_prepared_statement() -> None:
    prepared = PreparedStatements()
    shapes: list[list[Argument]] = [
        [1],
        ["x"],
        [None],
        [b"x"],
        [1.5],
        [[1, 2]],
        [["x"]],
        [[b"x"]],
        [[]],
    ]
    types = [
        "bigint",
        "text",
        "unknown",
        "bytea",
        "double precision",
        "bigint[]",
        "text[]",
        "bytea[]",
        "text[]",
    ]
    for args, expected in zip(shapes, types, strict=True):
        before, _ = run(prepared, "DELETE FROM t WHERE a = ?", args)
        if args == [[]]:  # treated as a list of text, which is already prepared
            assert before == ""
        else:
            assert f"({expected}) AS DELETE FROM t WHERE a = $1" in before


def test_the_least_recently_used_statement_is_deallocated() -> None:
    prepared = PreparedStatements(max_statements=2)
    for sql in ("SELECT 1", "SELECT 2", "SELECT 1"):
        run(prepared, sql, [])
    before, _ = run(prepared, "SELECT 3", [])
    assert before == "PREPARE s3 AS SELECT 3"
    before, _ = prepared.lookup("SELECT 4", [])
    assert before == "PREPARE s4 AS SELECT 4; DEALLOCATE s2"
    before, _ = run(prepared, "SELECT 4", [])
    assert before == "PREPARE s5 AS SELECT 4; DEALLOCATE s2", "a failed PREPARE deallocates nothing"
    assert run(prepared, "SELECT 3", []) == ("", "EXECUTE s3")
    assert run(prepared, "SELECT 2", [])[0] == "PREPARE s6 AS SELECT 2; DEALLOCATE s1"


def test_statements_that_cannot_be_prepared_run_unchanged() -> None:
    prepared = PreparedStatements()
    for _ in range(3):
        assert run(prepared, "CREATE TABLE t (a TEXT)", []) == ("", "CREATE TABLE t (a TEXT)")


def test_statements_that_need_a_custom_plan_are_not_prepared() -> None:
    prepared = PreparedStatements()
    custom = f"{CUSTOM_PLAN}SELECT a FROM t WHERE b = ?"
    few = "DELETE FROM t WHERE a IN\n (SELECT a FROM t WHERE b < ? ORDER BY b LIMIT ?) RETURNING a"
    for _ in range(2):
        assert run(prepared, custom, [1]) == ("", custom.replace("?", " %s"))
        assert run(prepared, few, [1, 2]) == ("", few.replace("?", " %s"))
    assert run(prepared, "DELETE FROM t WHERE a = ?", [1])[0].startswith("PREPARE")


def test_subclasses_of_str_and_int_have_the_type_of_their_base() -> None:
    class Address(str):
        __slots__ = ()

    prepared = PreparedStatements()
    before, _ = run(prepared, "SELECT ?, ?, ?", [Address("x"), HTTPStatus.OK, [Address("x")]])
    assert before == "PREPARE s1 (text, bigint, text[]) AS SELECT $1, $2, $3"
    assert run(prepared, "SELECT ?, ?, ?", ["y", 2, ["y"]]) == ("", "EXECUTE s1 (%s, %s, %s)")


async def test_results_are_the_same_before_and_after_preparation(database: Database) -> None:
    await create_things_table(database)
    rows: list[tuple[SQLValue, ...]] = [
        (1, "a%s", b"\0\xff"),
        (2, None, None),
        (-(2**63), "'\\", b""),
    ]

    def add_one_by_one(txn: WriteTransaction) -> int:
        sql = (
            "INSERT INTO things (id, text, raw) VALUES (?, ?, ?) ON CONFLICT (id)"
            " DO UPDATE SET text = excluded.text"
        )
        return sum(txn.execute(sql, row) for row in rows)

    def look(txn: Transaction) -> list[Any]:
        return [
            txn.query(
                "SELECT id, text, raw FROM things WHERE text = ? OR text LIKE '''%'"
                " ORDER BY text DESC",
                (rows[0][1],),
            ),
            txn.query_in("SELECT id FROM things WHERE id IN {keys} ORDER BY id", [1, 2, 3]),
            txn.query_in("SELECT id FROM things WHERE raw IN {keys} ORDER BY id", [b"", b"x"]),
            txn.query_each(
                "SELECT raw FROM things WHERE id = ? AND text = ?",
                [(1, "a%s"), (2, "a"), (1, "a%s")],
            ),
            txn.query_one(
                "SELECT coalesce(?, text), id + ? FROM things WHERE id > ?", (None, 5, 1)
            ),
            txn.query("SELECT id FROM things WHERE raw = ? AND id < ?", (b"\0\xff", True)),
        ]

    first = None
    for _ in range(3):
        assert await database.write("add", add_one_by_one) == len(rows)
        found = await database.read("look", look)
        first = found if first is None else first
        assert found == first
    assert first == [
        [(1, "a%s", b"\0\xff"), (-(2**63), "'\\", b"")],
        [(1,), (2,)],
        [(-(2**63),)],
        [[(b"\0\xff",)], [], [(b"\0\xff",)]],
        (None, 7),
        [],
    ]


async def test_upserts_of_many_rows_apply_in_order(database: Database) -> None:
    await create_things_table(database)
    sql = (
        "INSERT INTO things (id, text) VALUES (?, ?) ON CONFLICT (id)"
        " DO UPDATE SET text = excluded.text"
    )
    rows: list[tuple[SQLValue, ...]] = [
        (at % 700, f"{at}" if at % 3 else None) for at in range(1500)
    ]
    await database.write("many", lambda txn: txn.execute_many(sql, rows))
    last = {row[0]: row[1] for row in rows}
    found = await database.read("all", lambda txn: txn.query("SELECT id, text FROM things"))
    assert dict(found) == last


async def test_a_prepared_statement_survives_a_rollback(postgres_database: Database) -> None:
    await create_things_table(postgres_database)

    def fail(txn: WriteTransaction) -> None:
        for number in (1, 2, 1):
            txn.execute("INSERT INTO things (id) VALUES (?)", (number,))

    for _ in range(3):
        with pytest.raises(psycopg2.errors.UniqueViolation):
            await postgres_database.write("fail", fail)
    await postgres_database.write(
        "add", lambda txn: txn.execute("INSERT INTO things (id) VALUES (?)", (9,))
    )
    find = "SELECT id FROM things WHERE id = ?"

    def look(txn: Transaction) -> int:
        for _ in range(2):
            assert txn.query(find, (9,)) == [(9,)]
        row = txn.query_one(PREPARED, ("%FROM things WHERE id%",))
        assert row is not None
        return int(row[0])

    assert await postgres_database.read("look", look) == 1


async def test_discarded_prepared_statements_are_prepared_again(
    postgres_database: Database,
) -> None:
    await create_things_table(postgres_database)
    find, add = "SELECT id FROM things WHERE id = ?", "INSERT INTO things (id) VALUES (?)"

    def discard(connection: Connection) -> None:
        connection.execute("DISCARD ALL", ())

    def write(txn: WriteTransaction, number: int) -> int:
        return txn.execute(add, (number,))

    for number in (1, 2):
        assert await postgres_database.write("add", write, number) == 1
        assert await postgres_database.read_without_snapshot(
            "find", lambda txn: txn.query(find, (1,))
        ) == [(1,)]
        # private: `DISCARD ALL` runs outside a transaction
        discard(cast(Connection, postgres_database._writer._connection))
        for reader in postgres_database._idle:  # private: as above
            discard(reader)


async def test_a_changed_table_under_a_prepared_statement_needs_a_new_connection(
    postgresql: PostgresConfig,
) -> None:
    engine = make_engine(postgresql)
    connection = engine.connect_writer()
    connection.execute("CREATE TABLE things (id BIGINT, other BIGINT)", ())
    find = "SELECT id, other FROM things WHERE id > ?"
    assert connection.query(find, (0,)) == []
    connection.execute("ALTER TABLE things ALTER COLUMN other TYPE TEXT", ())
    with pytest.raises(psycopg2.errors.FeatureNotSupported) as failed:
        connection.query(find, (0,))
    assert engine.is_retryable(failed.value)
    connection.close()
    connection = engine.connect_reader()
    assert connection.query(find, (0,)) == []
    connection.close()


ODD = [
    "",
    "a",
    'b"c',
    "d\\e",
    '\\"',
    "it's",
    "{x,y}",
    "NULL",
    "null",
    " ü\n",
    "%s",
    "?",
    "$1",
    '","',
    "'); --",
]


async def test_lists_with_special_characters_are_passed_unchanged(
    postgres_database: Database,
) -> None:
    """A list of text or numbers is one literal."""
    rows = [(text, number * (2**59 - 1)) for number, text in enumerate(ODD, -7)]
    for _ in range(2):
        found = await postgres_database.read(
            "read", lambda txn: txn.query_with("given", ("a", "b"), rows, "SELECT a, b FROM given")
        )
        assert found == rows
        found = await postgres_database.read(
            "read",
            lambda txn: txn.query_in(
                "SELECT a FROM unnest(?::text[]) AS g (a) WHERE a IN {keys}",
                ODD,
                ['{"it\'s","d\\\\e"}'],
            ),
        )
        assert found == [("it's",), ("d\\e",)]
        each = await postgres_database.read(
            "read", lambda txn: txn.query_each("SELECT ?::text, ?::bigint", rows)
        )
        assert each == [[row] for row in rows]


@pytest.mark.parametrize("manner", ["", CUSTOM_PLAN])
async def test_negative_numbers_behind_a_deferred_statement_are_passed_unchanged(
    database: Database, manner: str
) -> None:
    """A minus before a negative number must not begin a comment."""

    def ask(txn: WriteTransaction) -> object:
        txn.execute_later("UPDATE jobs SET progress = ? WHERE name = ?", ("here", "nobody"))
        return txn.query_one(
            f"{manner}SELECT 5-?, CAST(? AS BIGINT), ? IS NULL", (-1, -(2**63), 2**63 - 1)
        )

    assert await database.write("ask", ask) == (6, -(2**63), False)
