"""Migrations: the steps run once and in order, or leave the database as it was."""

import re
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
from twisted.logger import capturedLogs, formatEvent

from storage.engine.database import PostgresConfig, SQLiteConfig, make_engine
from storage.engine.interface import DatabaseUnavailable, Engine, UnsuitableDatabase
from storage.engine.migrate import SCHEMA, MigrationFailed, SchemaTooNew, find_migrations, migrate
from tests.helpers.databases import PostgresTemplates

REAL_STEPS = [(step.version, step.name) for step in find_migrations("sqlite", "BLOB")]
"""Version and name of each step of the real schema."""
LAST = len(REAL_STEPS)
NEXT = f"{LAST + 1:04}_nicknames"
"""The made-up step after the last real one."""
COUNTERS = "CREATE TABLE counters (name TEXT NOT NULL PRIMARY KEY, value BIGINT NOT NULL);\n"


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    """A folder of schema files with two steps, the second of which differs between the
    databases."""
    folder = tmp_path / "schema"
    folder.mkdir()
    (folder / "0001_initial.sql").write_text(
        COUNTERS
        + "CREATE TABLE things (raw BYTES); -- BYTES; 100%\nINSERT INTO things VALUES ('a;b');"
    )
    for name in ("sqlite", "postgres"):
        (folder / f"0002_more.{name}.sql").write_text(
            f"INSERT INTO counters VALUES ('{name}', 7);\n"
        )
    return folder


def ask(engine: Engine, sql: str) -> list[tuple[object, ...]]:
    connection = engine.connect_reader()
    try:
        return connection.query(sql, ())
    finally:
        connection.close()


def test_the_steps_are_run_once_and_in_order(engine: Engine, schema: Path) -> None:
    for _ in range(2):
        assert migrate(engine, schema) == 0
    assert ask(engine, "SELECT name, value FROM counters") == [(engine.name, 7)]
    assert ask(engine, "SELECT version, name FROM schema_version ORDER BY version") == [
        (1, "initial"),
        (2, "more"),
    ]


def test_the_log_has_one_line_for_a_new_database_and_one_a_step_for_an_old_one(
    empty_sqlite: SQLiteConfig, schema: Path
) -> None:
    engine = make_engine(empty_sqlite)
    with capturedLogs() as received:
        migrate(engine, schema)
    assert [formatEvent(event) for event in received] == [
        "The database is new, and has schema version 2."
    ]
    (schema / "0003_third.sql").write_text("CREATE TABLE third (id BIGINT);")
    with capturedLogs() as received:
        migrate(engine, schema)
    assert [formatEvent(event) for event in received][1:] == [
        "The database now has schema version 3 (third)."
    ]


def test_a_failed_step_is_rolled_back(engine: Engine, schema: Path) -> None:
    (schema / "0003_broken.sql").write_text(
        "CREATE TABLE half (id BIGINT);\nINSERT INTO nowhere VALUES (1);"
    )
    with pytest.raises(MigrationFailed, match="0003_broken"):
        migrate(engine, schema)
    assert ask(engine, "SELECT MAX(version) FROM schema_version") == [(2,)]
    (schema / "0003_broken.sql").write_text("CREATE TABLE half (id BIGINT);")
    migrate(engine, schema)
    assert ask(engine, "SELECT id FROM half") == []


def test_a_newer_database_is_refused_with_both_versions(engine: Engine, schema: Path) -> None:
    migrate(engine, schema)
    for path in schema.glob("0002*"):
        path.unlink()
    with pytest.raises(SchemaTooNew, match=r"version 2.*up to 1.*newer one"):
        migrate(engine, schema)


def test_a_file_with_data_is_copied_first(empty_sqlite: SQLiteConfig, schema: Path) -> None:
    second = [(path, path.read_text()) for path in schema.glob("0002*")]
    for path, _ in second:
        path.unlink()
    engine = make_engine(empty_sqlite)
    migrate(engine, schema)
    copies = Path(empty_sqlite.path).parent
    assert list(copies.glob("*.before-*")) == []
    for path, text in second:
        path.write_text(text)
    migrate(engine, schema)
    (copy,) = copies.glob("*.before-*")
    assert copy.stat().st_mode & 0o777 == 0o600, "all messages are in the copy"
    before = sqlite3.connect(copy)
    assert before.execute("SELECT MAX(version) FROM schema_version").fetchall() == [(1,)]
    assert before.execute("SELECT COUNT(*) FROM things").fetchall() == [(1,)]
    before.close()


def test_an_unsuitable_database_is_refused(
    postgres_templates: PostgresTemplates, schema: Path
) -> None:
    config = postgres_templates.create(empty=True, encoding="SQL_ASCII")
    with pytest.raises(UnsuitableDatabase, match=r"has encoding SQL_ASCII.*CREATE DATABASE"):
        migrate(make_engine(config), schema)
    postgres_templates.drop(config)


@pytest.fixture
def newer_schema(tmp_path: Path) -> Path:
    """The real schema and a made-up step after it, which changes tables, rows and indexes."""
    folder = tmp_path / "newer"
    shutil.copytree(SCHEMA, folder)
    (folder / f"{NEXT}.sql").write_text(
        "-- Name by which friends call the user. NULL: none.\n"
        "ALTER TABLE accounts ADD COLUMN nickname TEXT;\n"
        "UPDATE accounts SET nickname = 'n' || user_id;\n"
        "CREATE TABLE friends (user_id TEXT NOT NULL PRIMARY KEY, picture BYTES) CLUSTERED;\n"
        "INSERT INTO friends (user_id) SELECT user_id FROM accounts;\n"
    )
    (folder / f"{NEXT}.postgres.sql").write_text(
        "CREATE INDEX accounts_by_nickname ON accounts (nickname);\n"
    )
    (folder / f"{NEXT}.sqlite.sql").write_text(
        "CREATE INDEX accounts_by_nickname ON accounts (nickname);\n"
    )
    return folder


def add_account(engine: Engine, user_id: str) -> None:
    connection = engine.connect_writer()
    connection.begin_write()
    connection.execute(
        "INSERT INTO accounts (user_id, created_ts, position) VALUES (?, 1, 1)", (user_id,)
    )
    connection.commit({})
    connection.close()


def test_the_real_steps_are_run_once_and_in_order(engine: Engine) -> None:
    assert REAL_STEPS[0] == (1, "initial")
    for _ in range(2):
        migrate(engine)
    assert ask(engine, "SELECT version, name FROM schema_version ORDER BY 1") == REAL_STEPS


def test_the_next_step_changes_a_database_with_data(engine: Engine, newer_schema: Path) -> None:
    migrate(engine)
    add_account(engine, "@a:t")
    for _ in range(2):
        migrate(engine, newer_schema)
    assert ask(engine, "SELECT version, name FROM schema_version ORDER BY 1") == [
        *REAL_STEPS,
        (LAST + 1, "nicknames"),
    ]
    assert ask(engine, "SELECT nickname FROM accounts") == [("n@a:t",)]
    assert ask(engine, "SELECT user_id, picture FROM friends") == [("@a:t", None)]


def test_a_database_that_was_migrated_is_refused_by_the_old_program(
    engine: Engine, newer_schema: Path
) -> None:
    migrate(engine, newer_schema)
    add_account(engine, "@a:t")
    with pytest.raises(SchemaTooNew, match=rf"version {LAST + 1}.*up to {LAST}\b.*newer one"):
        migrate(engine)
    assert ask(engine, "SELECT user_id, nickname FROM accounts") == [("@a:t", None)]


def test_a_failed_next_step_changes_nothing(engine: Engine, newer_schema: Path) -> None:
    migrate(engine)
    add_account(engine, "@a:t")
    before = dump(engine)
    step = newer_schema / f"{NEXT}.sql"
    step.write_text(step.read_text() + "INSERT INTO nowhere VALUES (1);\n")
    with pytest.raises(MigrationFailed, match=NEXT):
        migrate(engine, newer_schema)
    assert dump(engine) == before
    assert ask(engine, "SELECT version, name FROM schema_version ORDER BY 1") == REAL_STEPS
    migrate(engine)
    assert ask(engine, "SELECT user_id FROM accounts") == [("@a:t",)]


@pytest.mark.parametrize("is_new", [True, False])
def test_nodes_that_start_at_once_migrate_once(
    engine: Engine, newer_schema: Path, *, is_new: bool
) -> None:
    if not is_new:
        migrate(engine)
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def run_node() -> None:
        try:
            start.wait(60)
            migrate(engine, newer_schema)
        except BaseException as error:
            failures.append(error)

    nodes = [threading.Thread(target=run_node) for _ in range(4)]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join(60)
    assert failures == []
    versions = [(version,) for version in range(1, LAST + 2)]
    assert ask(engine, "SELECT version FROM schema_version ORDER BY 1") == versions


def test_sqlite_in_memory_is_refused() -> None:
    with pytest.raises(UnsuitableDatabase, match="needs a file"):
        make_engine(SQLiteConfig(":memory:"))


def test_an_unreachable_database_is_named_in_the_error(tmp_path: Path) -> None:
    for config, name in (
        (SQLiteConfig(str(tmp_path / "nowhere" / "homeserver.db")), "nowhere/homeserver.db"),
        (
            PostgresConfig(
                {"host": str(tmp_path), "dbname": "town", "user": "me", "password": "secret"}
            ),
            "dbname=town",
        ),
    ):
        with pytest.raises(DatabaseUnavailable, match=name) as raised:
            migrate(make_engine(config))
        assert "secret" not in str(raised.value)


def test_a_new_file_is_readable_by_its_owner_only(empty_sqlite: SQLiteConfig) -> None:
    migrate(make_engine(empty_sqlite))
    assert Path(empty_sqlite.path).stat().st_mode & 0o077 == 0


def test_schema_words_are_replaced_for_each_database(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_text(
        "CREATE TABLE a (n ROWID, b BYTES) CLUSTERED; CREATE TABLE r (n BIGINT) LOW_FILLFACTOR;"
    )
    sqlite, postgres = (
        find_migrations(engine, "X", tmp_path)[0].sql for engine in ("sqlite", "postgres")
    )
    assert sqlite == "CREATE TABLE a (n INTEGER, b X) WITHOUT ROWID; CREATE TABLE r (n BIGINT);"
    assert (
        postgres
        == "CREATE TABLE a (n BIGINT, b X); CREATE TABLE r (n BIGINT) WITH (fillfactor = 70);"
    )


def test_the_common_file_of_a_step_runs_before_the_file_of_the_database(tmp_path: Path) -> None:
    for name in (
        "0001_a.sql",
        "0001_a.sqlite.sql",
        "0001_a.postgres.sql",
        "0002_b.sql",
        "0001_z.txt",
    ):
        (tmp_path / name).write_text(f"-- {name}")
    for engine in ("sqlite", "postgres"):
        found = [
            (step.version, step.name, step.sql) for step in find_migrations(engine, "X", tmp_path)
        ]
        assert found == [
            (1, "a", f"-- 0001_a.sql\n-- 0001_a.{engine}.sql"),
            (2, "b", "-- 0002_b.sql"),
        ]


def find_both(folder: Path) -> list[object]:
    return [find_migrations(engine, "X", folder) for engine in ("sqlite", "postgres")]


@pytest.mark.parametrize(
    "names",
    [
        ["0002_a.sql"],
        ["0001_a.sql", "0003_c.sql"],
        ["0001_a.sql", "0001_b.sql"],
        ["0001_a.sql", "0001_b.sqlite.sql", "0001_b.postgres.sql"],
        ["1_a.sql"],
        ["0001_a.sqlite.sql"],
    ],
)
def test_wrongly_numbered_files_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(ValueError, match=r"schema files|is not named"):
        find_both(tmp_path)


def test_both_databases_get_the_same_schema(
    empty_sqlite: SQLiteConfig, empty_postgres: PostgresConfig
) -> None:
    dumps = []
    for config in (empty_sqlite, empty_postgres):
        engine = make_engine(config)
        migrate(engine)
        dumps.append(dump(engine))
    assert len(dumps[0]) > 1000
    assert dumps[0] == dumps[1]


TYPES = {"BYTEA": "BLOB"}

Entry = tuple[object, ...]


def dump(engine: Engine) -> set[Entry]:
    """Columns and indexes of the database, in the same form for both kinds.

    The full-text index is left out: each database has its own kind.
    """
    return dump_sqlite(engine) if engine.name == "sqlite" else dump_postgres(engine)


def dump_sqlite(engine: Engine) -> set[Entry]:
    found: set[Entry] = set()
    texts = {name: sql for name, sql in ask(engine, "SELECT name, sql FROM sqlite_master")}
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    for (table,) in ask(engine, tables):
        if str(table).startswith("searchable_text"):
            continue
        columns = ask(engine, f"PRAGMA table_info({table})")
        for _, name, kind, not_null, default, _ in columns:
            found.add((table, name, kind, bool(not_null), default))
        indexes = ask(engine, f"PRAGMA index_list({table})")
        keys = [name for _, name, *_, part in columns if part]
        if keys and not any(origin == "pk" for *_, origin, _ in indexes):
            # SQLite stores the rows by this key, so it has no index
            found.remove((table, *keys, "INTEGER", True, None))
            found.add((table, *keys, "BIGINT", True, None))
            found.add((table, "index", None, tuple(keys), True, None))
        for _, index, unique, origin, _ in indexes:
            names = tuple(row[2] for row in ask(engine, f"PRAGMA index_info({index})"))
            where = find_condition(str(texts.get(index) or ""))
            named = index if origin == "c" else None
            found.add((table, "index", named, names, bool(unique), where))
    return found


def dump_postgres(engine: Engine) -> set[Entry]:
    found: set[Entry] = set()
    columns = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_schema = 'public'"
    )
    for table, name, kind, nullable, default in ask(engine, columns):
        type = TYPES.get(str(kind).upper(), str(kind).upper())
        value = default and str(default).removesuffix("::text")
        found.add((table, name, type, nullable == "NO", value))
    indexes = (
        "SELECT tablename, indexname, indexdef, EXISTS (SELECT 1 FROM pg_constraint"
        " WHERE conindid = (quote_ident(indexname))::regclass)"
        " FROM pg_indexes WHERE schemaname = 'public' AND indexname <> 'searchable_text'"
    )
    for table, index, definition, is_constraint in ask(engine, indexes):
        match = re.search(r"\(([^)]*)\)", str(definition))
        assert match is not None
        names = tuple(part.strip().strip('"') for part in match[1].split(","))
        named = None if is_constraint else index
        unique = " UNIQUE " in str(definition)
        found.add((table, "index", named, names, unique, find_condition(str(definition))))
    return found


def find_condition(index: str) -> str | None:
    """Return the condition of a partial index without what PostgreSQL adds to its text."""
    _, _, condition = index.partition(" WHERE ")
    if not condition:
        return None
    condition = re.sub(r"::\w+(\[\])?|\bARRAY\b", "", condition)
    condition = condition.replace("<> ALL", "NOT IN").replace("= ANY", "IN")
    return re.sub(r"[\s()\[\]\"]+", "", condition)
