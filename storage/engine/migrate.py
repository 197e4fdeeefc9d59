"""Migrates a database to the schema of this program, by numbered SQL files, forward only.

Each step runs once, in order, in a transaction that also records it in `schema_version`. A step is
`schema/NNNN_name.sql` for both databases, or `NNNN_name.sqlite.sql` and `NNNN_name.postgres.sql`,
or all three. In the last case the common file runs first. Some words in these files stand for SQL
that differs between the databases:

- `BYTES`: the type for bytes.
- `ROWID`: the type of a primary key that is one number of 64 bits. SQLite then stores the rows by
  this number, its rowid, and needs no index for it.
- `CLUSTERED` (after a table): SQLite stores the rows in the index of the primary key. For tables
  with short rows.
- `LOW_FILLFACTOR` (after a table): PostgreSQL leaves free space in each page, so that rows that
  change often stay in their page and need no new index entries.

Laws:
- A released file never changes.
- An SQLite file that holds data is copied before it is changed.
- A database with a newer schema is refused and not changed.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
from twisted.logger import Logger

from storage.engine.interface import Connection, DatabaseUnavailable, Engine
from storage.engine.transaction import POSITION

SCHEMA = Path(__file__).parents[1] / "schema"

_FILE = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]+)(\.(?P<engine>sqlite|postgres))?\.sql")
_WORD = re.compile(r"\b(BYTES|ROWID)\b|[ ](CLUSTERED|LOW_FILLFACTOR)\b(?=;)")
_WORDS: Mapping[str, Mapping[str, str]] = {
    "sqlite": {"ROWID": "INTEGER", "CLUSTERED": " WITHOUT ROWID", "LOW_FILLFACTOR": ""},
    "postgres": {"ROWID": "BIGINT", "CLUSTERED": "", "LOW_FILLFACTOR": " WITH (fillfactor = 70)"},
}

_TOO_NEW = (
    "the database has schema version {version}, and this program knows versions up to {known}."
    " Start the version of Mahalla that last used this database, or a newer one;"
    " or restore a copy of the database made before the upgrade"
)

_log = Logger()


class SchemaTooNew(Exception):
    """The database was written by a newer program."""


class MigrationFailed(Exception):
    """A migration step failed. The database is as it was before that step. The cause is in
    `__cause__`."""


class Migration(msgspec.Struct, frozen=True):
    """One migration step: its SQL for one of the databases."""

    version: int
    name: str
    sql: str


def find_migrations(engine: str, bytes_type: str, schema: Path = SCHEMA) -> list[Migration]:
    """Return the steps for a database, in order.

    Raises ValueError if numbers are missing or duplicate, or a step has no file for this database.
    """
    found: dict[int, Migration] = {}
    numbers: set[int] = set()
    # a common file sorts first: "0001_a.sql" before "0001_a.sqlite.sql"
    for path in sorted(schema.glob("*.sql"), key=lambda path: path.stem):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise ValueError(
                f"{path.name} is not named NNNN_name.sql, NNNN_name.sqlite.sql"
                " or NNNN_name.postgres.sql"
            )
        version, name = int(match["version"]), match["name"]
        numbers.add(version)
        if match["engine"] not in (None, engine):
            continue
        sql = _adapt_sql(engine, bytes_type, path.read_text("utf-8"))
        if version in found:
            if found[version].name != name:
                raise ValueError(
                    f"there are two schema files with the number {version}:"
                    f" {found[version].name}, {name}"
                )
            sql = f"{found[version].sql}\n{sql}"
        found[version] = Migration(version, name, sql)
    steps = [found[version] for version in sorted(found)]
    if [step.version for step in steps] != list(range(1, len(numbers) + 1)):
        raise ValueError(
            f"the numbers of the schema files for {engine} are not 1, 2, 3, …: {sorted(found)}"
        )
    return steps


def _adapt_sql(engine: str, bytes_type: str, sql: str) -> str:
    words = {"BYTES": bytes_type, **_WORDS[engine]}
    return _WORD.sub(lambda word: words[word[0].strip()], sql)


def migrate(engine: Engine, schema: Path = SCHEMA) -> int:
    """Migrate the database. Return the latest position of its stream. Blocks.

    Several processes may start at once: one migrates and the others wait for it. Raises
    DatabaseUnavailable if the database cannot be reached, UnsuitableDatabase, SchemaTooNew,
    MigrationFailed.
    """
    steps = find_migrations(engine.name, engine.bytes_type, schema)
    try:
        connection = engine.connect_writer()
    except engine.errors as error:
        raise DatabaseUnavailable(f"cannot open {engine.location}: {str(error).strip()}") from error
    try:
        engine.check(connection)
        connection.begin_migration()
        version = _version(connection)
        connection.commit({})
        if version > len(steps):
            raise SchemaTooNew(_TOO_NEW.format(version=version, known=len(steps)))
        if 0 < version < len(steps):
            copy = engine.backup_before_migration(version)
            if copy is not None:
                _log.info("The database was copied to {copy} before its migration.", copy=copy)
        for step in steps[version:]:
            _run_step(engine, connection, step, is_new=version == 0)
        if version == 0:
            _log.info("The database is new, and has schema version {version}.", version=len(steps))
        row = connection.query_one("SELECT value FROM counters WHERE name = ?", (POSITION,))
        return int(row[0]) if row else 0
    finally:
        connection.close()


def _version(connection: Connection) -> int:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_version"
        " (version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL)",
        (),
    )
    row = connection.query_one("SELECT COALESCE(MAX(version), 0) FROM schema_version", ())
    return int(row[0]) if row else 0


def _run_step(engine: Engine, connection: Connection, step: Migration, *, is_new: bool) -> None:
    try:
        connection.begin_migration()
        if _version(connection) < step.version:  # else another process migrated first
            connection.execute_script(step.sql)
            connection.execute(
                "INSERT INTO schema_version (version, name) VALUES (?, ?)",
                (step.version, step.name),
            )
        connection.commit({})
    except engine.errors as error:
        connection.rollback()
        raise MigrationFailed(
            f"the migration step {step.version:04}_{step.name} failed: {error}"
        ) from error
    if not is_new:
        _log.info(
            "The database now has schema version {version} ({name}).",
            version=step.version,
            name=step.name,
        )
