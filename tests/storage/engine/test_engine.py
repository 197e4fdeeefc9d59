"""One SQL text on both databases: the operations behave the same."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.engine.database import Database, SQLValue, Transaction, WriteTransaction
from storage.engine.interface import MAX_CHUNK
from tests.helpers.databases import create_things_table


def add(txn: WriteTransaction, rows: list[tuple[SQLValue, ...]]) -> None:
    txn.execute_many("INSERT INTO things (id, text, raw) VALUES (?, ?, ?)", rows)


def everything(txn: Transaction) -> list[tuple[Any, ...]]:
    return txn.query("SELECT id, text, raw FROM things ORDER BY id")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.dictionaries(
        st.integers(-(2**63), 2**63 - 1),
        st.tuples(st.none() | texts, st.none() | st.binary(max_size=300)),
        max_size=6,
    )
)
async def test_values_are_returned_unchanged(
    database: Database, rows: dict[int, tuple[str | None, bytes | None]]
) -> None:
    await create_things_table(database)
    expected: list[tuple[SQLValue, ...]] = [(key, *rows[key]) for key in sorted(rows)]
    await database.write("add", add, expected)
    assert await database.read("everything", everything) == expected
    for row in expected:

        def find(txn: Transaction, row: tuple[SQLValue, ...] = row) -> list[tuple[Any, ...]]:
            return txn.query(
                "SELECT raw FROM things WHERE id = ? AND (text = ? OR text IS NULL)", row[:2]
            )

        assert await database.read_quickly("find", find) == [(row[2],)]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.dictionaries(
        st.integers(-(2**63), 2**63 - 1),
        st.tuples(st.none() | texts, st.none() | st.binary(max_size=300)),
        max_size=9,
    )
)
async def test_bulk_inserted_rows_are_returned_unchanged(
    database: Database, rows: dict[int, tuple[str | None, bytes | None]]
) -> None:
    await create_things_table(database)
    expected: list[tuple[SQLValue, ...]] = [(key, *rows[key]) for key in sorted(rows)]

    def insert(txn: WriteTransaction) -> None:
        txn.insert_rows("things", ("id", "text", "raw"), expected)

    await database.write("insert", insert)
    assert await database.read("everything", everything) == expected


@pytest.mark.parametrize("number", [2, 20])
async def test_a_bulk_insert_of_an_existing_row_undoes_the_whole_write(
    database: Database, number: int
) -> None:
    await create_things_table(database)
    await database.write("add", add, [(0, "first", None)])

    def insert(txn: WriteTransaction) -> None:
        txn.insert_rows("things", ("id", "text"), [(nid, "a\0b") for nid in range(number)])

    with pytest.raises(database.engine.errors):
        await database.write("insert", insert)
    assert await database.read("everything", everything) == [(0, "first", None)]
    await database.write("add", add, [(1, "the connection still works", None)])


@pytest.mark.parametrize("number", [1, 3, MAX_CHUNK + 1])
async def test_a_query_can_join_a_table_of_argument_rows(database: Database, number: int) -> None:
    await create_things_table(database)
    await database.write("add", add, [(nid, f"t{nid}", None) for nid in range(number)])

    def find(txn: Transaction) -> list[tuple[Any, ...]]:
        rows = [(nid, f"t{nid}") for nid in range(0, number, 2)] + [(1, "another"), (0, "t0")]
        sql = (
            "SELECT DISTINCT t.id FROM wanted AS w"
            " JOIN things AS t ON t.id = w.nid AND t.text = w.text"
        )
        return sorted(set(txn.query_with("wanted", ("nid", "text"), rows, sql)))

    assert await database.read("find", find) == [(nid,) for nid in range(0, number, 2)]
    assert (
        await database.read("none", lambda txn: txn.query_with("wanted", ("nid",), [], "SELECT 1"))
        == []
    )


async def test_booleans_are_stored_as_integers(database: Database) -> None:
    await create_things_table(database, "id INTEGER NOT NULL, text TEXT, raw INTEGER")
    await database.write("add", add, [(True, "a", False)])
    await database.write(
        "add", lambda txn: txn.execute("INSERT INTO things (id, raw) VALUES (?, ?)", (2, True))
    )
    assert await database.read("everything", everything) == [(1, "a", 0), (2, None, 1)]


async def test_text_with_a_null_character_can_be_looked_up(database: Database) -> None:
    await create_things_table(database)
    await database.write("add", add, [(1, "a\0b", b"\0")])

    def find(txn: Transaction) -> tuple[Any, ...]:
        args: tuple[SQLValue, ...] = ("a\0b",)
        return (
            txn.query_one("SELECT id, raw FROM things WHERE text = ?", args),
            txn.query_in("SELECT id FROM things WHERE text IN {keys}", args),
            txn.query("SELECT id FROM things WHERE text = ?", ("ab",)),
        )

    assert await database.read("find", find) == ((1, b"\0"), [(1,)], [])


async def test_percent_signs_in_sql_and_arguments_are_literal(database: Database) -> None:
    await create_things_table(database)
    await database.write("add", add, [(1, "100% of it", None), (2, "half", None)])

    def find(txn: Transaction) -> tuple[Any, ...]:
        return (
            txn.query("SELECT id FROM things WHERE text LIKE '%of%'"),
            txn.query("SELECT id FROM things WHERE text LIKE '%of%' AND id = ?", (1,)),
            txn.query("SELECT id FROM things WHERE text LIKE ?", ("%al%",)),
        )

    assert await database.read("find", find) == ([(1,)], [(1,)], [(2,)])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, MAX_CHUNK, MAX_CHUNK + 1, 3 * MAX_CHUNK])
async def test_many_keys_are_looked_up_in_chunks(database: Database, count: int) -> None:
    await create_things_table(database)
    await database.write(
        "add", add, [(number, str(number), bytes([number % 256])) for number in range(count + 3)]
    )

    def find(txn: Transaction) -> tuple[list[Any], int]:
        keys = [*range(count), *range(count)]
        rows = txn.query_in(
            "SELECT id FROM things WHERE id > ? AND id IN {keys} AND id < ?", keys, (-1,), (10**6,)
        )
        return sorted(number for (number,) in rows), txn.queries

    found, queries = await database.read("find", find)
    assert found == list(range(count))
    assert queries == -(-count // MAX_CHUNK)


async def test_keys_may_be_text_or_bytes(database: Database) -> None:
    await create_things_table(database)
    await database.write("add", add, [(1, "x", b"\x00\xff"), (2, "y", b"")])

    def find(txn: Transaction) -> tuple[Any, ...]:
        return (
            txn.query_in("SELECT id FROM things WHERE text IN {keys}", {"y", "z", "%s"}),
            txn.query_in(
                "SELECT id FROM things WHERE raw IN {keys} ORDER BY id", [b"\x00\xff", b"", b"?"]
            ),
        )

    assert await database.read("find", find) == ([(2,)], [(1,), (2,)])


async def test_execute_many_applies_rows_with_the_same_key_in_order(database: Database) -> None:
    await create_things_table(database)

    def upsert(txn: WriteTransaction) -> None:
        txn.execute_many(
            "INSERT INTO things (id, text) VALUES (?, ?) ON CONFLICT (id)"
            " DO UPDATE SET text = excluded.text",
            [(1, "first"), (2, "other"), (1, "last")],
        )
        txn.execute_many(
            "INSERT INTO things (id, text) VALUES (?, 'kept') ON CONFLICT DO NOTHING",
            [(2,), (3,), (3,)],
        )
        txn.execute_many("UPDATE things SET raw = ? WHERE id = ?", [(b"1", 1), (b"2", 2)])
        txn.execute_many("DELETE FROM things WHERE id = ?", [])

    await database.write("upsert", upsert)
    assert await database.read("everything", everything) == [
        (1, "last", b"1"),
        (2, "other", b"2"),
        (3, "kept", None),
    ]


async def test_execute_returns_the_row_count_and_returning_returns_rows(database: Database) -> None:
    await create_things_table(database)
    await database.write("add", add, [(number, "x", None) for number in range(5)])

    def change(txn: WriteTransaction) -> tuple[Any, ...]:
        return (
            txn.execute("UPDATE things SET text = ? WHERE id >= ?", ("y", 2)),
            txn.execute("UPDATE things SET text = ? WHERE id = ?", ("y", 99)),
            txn.query("DELETE FROM things WHERE id = ? RETURNING id, text", (4,)),
            txn.query_one("SELECT COUNT(*) FROM things"),
            txn.query_one("SELECT id FROM things WHERE id = 99"),
        )

    assert await database.write("change", change) == (3, 0, [(4, "y")], (4,), None)


async def test_a_read_cannot_write(database: Database) -> None:
    await create_things_table(database)

    def cheat(txn: Transaction) -> None:
        txn.query("INSERT INTO things (id) VALUES (1) RETURNING id")

    for read in (database.read, database.read_quickly):
        with pytest.raises(database.engine.errors):
            await read("cheat", cheat)
    assert await database.read("everything", everything) == []


async def test_a_read_after_a_failed_read_succeeds(database: Database) -> None:
    def wrong(txn: Transaction) -> None:
        txn.query("SELECT nonsense FROM nowhere")

    for read in (database.read, database.read_quickly):
        with pytest.raises(database.engine.errors):
            await read("wrong", wrong)
        assert await read("right", lambda txn: txn.query_one("SELECT 1")) == (1,)


async def test_query_each_returns_the_rows_for_each_row_of_arguments(database: Database) -> None:
    await create_things_table(database)
    people = ["a%", "b?", "c"]
    rows: list[tuple[SQLValue, ...]] = [(at, people[at % 3], bytes([at % 256])) for at in range(30)]
    await database.write("add", add, rows)
    asked = [
        (text, after, limit)
        for text in (*people, "nobody")
        for after in (-1, 10)
        for limit in (2, 100)
    ]

    def find(txn: Transaction) -> list[list[tuple[Any, ...]]]:
        assert txn.query_each("SELECT id FROM things WHERE id = ?", []) == []
        return txn.query_each(
            "SELECT id, raw FROM things WHERE text = ? AND id > ? ORDER BY id DESC LIMIT ?", asked
        )

    expected = [
        [
            (id, raw)
            for id, name, raw in reversed(rows)
            if name == text and isinstance(id, int) and id > after
        ][:limit]
        for text, after, limit in asked
    ]
    assert await database.read("find", find) == expected


async def test_query_each_changing_returns_rows_as_before_the_change(
    database: Database,
) -> None:
    await create_things_table(database)
    await database.write("add", add, [(at, f"p{at % 4}", b"%d" % at) for at in range(12)])
    least = "SELECT id AS found_key, raw FROM things WHERE text = ? ORDER BY id LIMIT 1"
    change = "UPDATE things SET raw = ? WHERE id IN {keys}"

    def take(txn: WriteTransaction, *people: str) -> list[list[tuple[Any, ...]]]:
        before = txn.queries
        found = txn.query_each_and_change(least, [(each,) for each in people], change, (b"taken",))
        assert txn.queries == before + bool(people)
        return found

    assert await database.write("take", take, "p3", "nobody", "p1") == [
        [(3, b"3")],
        [],
        [(1, b"1")],
    ]
    assert await database.write("take", take, "p1") == [[(1, b"taken")]], (
        "it sees the row before this change, but after the last one"
    )
    assert await database.write("take", take, "nobody") == [[]]
    assert await database.write("take", take) == []
    changed = await database.read(
        "changed", lambda txn: txn.query("SELECT id FROM things WHERE raw = ?", (b"taken",))
    )
    assert sorted(changed) == [(1,), (3,)]


async def test_query_each_changing_is_undone_with_its_write(database: Database) -> None:
    await create_things_table(database)
    await database.write("add", add, [(1, "a", b"as it was")])

    def take(txn: WriteTransaction) -> None:
        txn.query_each_and_change(
            "SELECT id AS found_key FROM things WHERE text = ?",
            [("a",)],
            "UPDATE things SET raw = ? WHERE id IN {keys}",
            (b"x",),
        )
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write("take", take)
    assert await database.read("read", lambda txn: txn.query("SELECT raw FROM things")) == [
        (b"as it was",)
    ]


async def test_query_each_runs_in_bounded_chunks(database: Database) -> None:
    await create_things_table(database)
    count = 2 * MAX_CHUNK + 3
    await database.write("add", add, [(at, "x", b"") for at in range(count)])

    def find(txn: Transaction) -> list[list[tuple[Any, ...]]]:
        return txn.query_each(
            "SELECT id FROM things WHERE id = ? AND text = ?", [(at, "x") for at in range(count)]
        )

    assert await database.read("find", find) == [[(at,)] for at in range(count)]
