"""The schema files describe every table and column that they create."""

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from storage.engine.migrate import SCHEMA, find_migrations

ROOT = Path(__file__).parents[2]
MAX_COLUMNS = 100

NULLABLE = "{column}: the comment does not say what NULL means"
MISSING = "{column}: there is no comment"

_TABLE = re.compile(r"CREATE (?:VIRTUAL )?TABLE (?P<table>\w+)")
_ADDED = re.compile(r"ALTER TABLE (?P<table>\w+) ADD COLUMN (?P<column>\w+) (?P<rest>.*)")
_COLUMN = re.compile(r"    (?P<column>[a-z]\w*) (?P<rest>[A-Z].*)")


def describe(sql: str) -> Iterator[tuple[str, str, bool]]:
    """Yield each table and each `table.column`, its comment, and whether it may be NULL."""
    comment: list[str] = []
    table = ""
    for line in sql.splitlines():
        if line.strip().startswith("--"):
            comment.append(line.strip().strip("-").strip())
            continue
        text = " ".join(comment).strip()
        if found := _TABLE.match(line):
            table = found["table"]
            yield table, text, False
        elif found := _ADDED.match(line):
            yield f"{found['table']}.{found['column']}", text, "NOT NULL" not in found["rest"]
        elif table and (found := _COLUMN.match(line)):
            yield f"{table}.{found['column']}", text, "NOT NULL" not in found["rest"]
        elif line.startswith(")"):
            table = ""
        comment = []


def find_faults(sql: str) -> list[str]:
    faults: list[str] = []
    for name, comment, is_nullable in describe(sql):
        if not re.search(r"\w", comment):
            faults.append(MISSING.format(column=name))
        elif is_nullable and "NULL" not in comment:
            faults.append(NULLABLE.format(column=name))
    return faults


@pytest.mark.parametrize("path", sorted(SCHEMA.glob("*.sql")), ids=lambda path: str(path.name))
def test_every_table_and_column_has_a_comment(path: Path) -> None:
    assert find_faults(path.read_text("utf-8")) == []


def test_comments_belong_to_existing_tables_and_columns() -> None:
    """`describe` finds exactly the tables and columns that SQLite creates."""
    database = sqlite3.connect(":memory:")
    names: set[str] = set()
    for step in find_migrations("sqlite", "BLOB"):
        database.executescript(step.sql)
        names |= {name for name, _, _ in describe(step.sql)}
    created: set[str] = set()
    for (table,) in database.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table'"
    ).fetchall():
        if table.startswith("searchable_text_"):
            continue  # SQLite makes these for the full-text index
        created.add(table)
        if table != "searchable_text":
            created |= {
                f"{table}.{row[1]}" for row in database.execute(f"PRAGMA table_info({table})")
            }
    database.close()
    assert len(created) > 800
    assert created == names


def test_files_that_the_comments_name_exist() -> None:
    named = {
        path
        for file in SCHEMA.glob("*.sql")
        for path in re.findall(
            r"\b(?:homeserver|federation|storage)/[\w/]+\.py\b", file.read_text("utf-8")
        )
    }
    assert len(named) > 50
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_lines_of_the_schema_are_short() -> None:
    long = [
        f"{path.name}:{number}"
        for path in SCHEMA.glob("*.sql")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > MAX_COLUMNS
    ]
    assert long == []


EXAMPLES: Mapping[str, Sequence[str]] = {
    "-- Things.\nCREATE TABLE t (\n    -- Its name.\n    a TEXT NOT NULL\n);": [],
    "CREATE TABLE t (\n    -- Its name.\n    a TEXT NOT NULL\n);": [MISSING.format(column="t")],
    "-- Things.\nCREATE TABLE t (\n    a TEXT NOT NULL,\n"
    "    -- Its age.\n    b BIGINT NOT NULL\n);": [MISSING.format(column="t.a")],
    "-- Things.\nCREATE TABLE t (\n    -- Its name.\n    a TEXT\n);": [
        NULLABLE.format(column="t.a")
    ],
    "-- Things.\nCREATE TABLE t (\n    -- Its name. NULL: none.\n    a TEXT\n);": [],
    "-- Things.\nCREATE TABLE t (\n    --\n    a TEXT NOT NULL\n);": [MISSING.format(column="t.a")],
    "ALTER TABLE t ADD COLUMN a TEXT;": [MISSING.format(column="t.a")],
    "-- Its name. NULL: none.\nALTER TABLE t ADD COLUMN a TEXT;": [],
    "-- ------\n\nCREATE TABLE t (\n);": [MISSING.format(column="t")],
}


@pytest.mark.parametrize(("sql", "faults"), EXAMPLES.items())
def test_missing_comments_are_found(sql: str, faults: Sequence[str]) -> None:
    assert find_faults(sql) == faults
