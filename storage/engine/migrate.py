"""Brings a database to the schema of this program: numbered files, forward only.

`schema/NNNN_name.sql` is run once, in order, each in one transaction with the note in
`schema_version` that it was. Where a step cannot be one text for both databases,
`NNNN_name.sqlite.sql` and `NNNN_name.postgres.sql` stand in its place. Words of a file that each
database says in its own way:

- `BYTES`: the type for bytes.
- `ROW_NUMBER`: the type of a primary key that is one number of 64 bits. SQLite then finds a row by
  it in one tree and not in two.
- `CLUSTERED` (after a table): SQLite keeps the rows in the order of the primary key, in one tree
  and not in two. For tables with short rows.
- `ROOMY` (after a table): PostgreSQL leaves room in each page, so that a row that changes all the
  time stays in its page and no index has to hear of it.

Laws:
- A file that was released never changes.
- An SQLite file that holds data is copied before it is changed.
- A database that is newer than the program is left alone.
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
_WORD = re.compile(r"\b(BYTES|ROW_NUMBER)\b|[ ](CLUSTERED|ROOMY)\b(?=;)")
_WORDS: Mapping[str, Mapping[str, str]] = {
    "sqlite": {"ROW_NUMBER": "INTEGER", "CLUSTERED": " WITHOUT ROWID", "ROOMY": ""},
    "postgres": {"ROW_NUMBER": "BIGINT", "CLUSTERED": "", "ROOMY": " WITH (fillfactor = 70)"},
}

_TOO_NEW = (
    "the database has schema version {version}, and this program knows versions up to {known}. Start the version of "
    "Mahalla that last used this database, or a newer one; or restore a copy of the database made before the upgrade"
)

_log = Logger()


class SchemaTooNew(Exception):
    """The database was written by a newer program."""


class MigrationFailed(Exception):
    """A step of the migration failed; the database is as it was before that step. The cause is in
    `__cause__`."""


class Migration(msgspec.Struct, frozen=True):
    """One step, as text for one of the databases."""

    version: int
    name: str
    sql: str


def find_migrations(engine: str, bytes_type: str, schema: Path = SCHEMA) -> list[Migration]:
    """The steps for a database, in order. Raises ValueError when numbers are missing, doubled, or
    lack this database."""
    found: dict[int, Migration] = {}
    numbers: set[int] = set()
    for path in sorted(schema.glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise ValueError(
                f"{path.name} is not named NNNN_name.sql, NNNN_name.sqlite.sql or NNNN_name.postgres.sql"
            )
        version = int(match["version"])
        numbers.add(version)
        if match["engine"] not in (None, engine):
            continue
        if version in found:
            raise ValueError(
                f"there are two schema files with the number {version}: {found[version].name}, {path.name}"
            )
        sql = _say_for(engine, bytes_type, path.read_text("utf-8"))
        found[version] = Migration(version, match["name"], sql)
    steps = [found[version] for version in sorted(found)]
    if [step.version for step in steps] != list(range(1, len(numbers) + 1)):
        raise ValueError(
            f"the numbers of the schema files for {engine} are not 1, 2, 3, …: {sorted(found)}"
        )
    return steps


def _say_for(engine: str, bytes_type: str, sql: str) -> str:
    words = {"BYTES": bytes_type, **_WORDS[engine]}
    return _WORD.sub(lambda word: words[word[0].strip()], sql)


def migrate(engine: Engine, schema: Path = SCHEMA) -> int:
    """Bring the database up to date; the position of its one sequence. Blocks.

    Several processes may start at once: one migrates and the others wait for it. Raises
    DatabaseUnavailable when the database cannot be reached, UnsuitableDatabase, SchemaTooNew,
    MigrationFailed.
    """
    steps = find_migrations(engine.name, engine.bytes_type, schema)
    try:
        connection = engine.connect_writer()
    except engine.errors as error:
        raise DatabaseUnavailable(f"cannot open {engine.where}: {str(error).strip()}") from error
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
        "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL)",
        (),
    )
    row = connection.query_one("SELECT COALESCE(MAX(version), 0) FROM schema_version", ())
    return int(row[0]) if row else 0


def _run_step(engine: Engine, connection: Connection, step: Migration, *, is_new: bool) -> None:
    try:
        connection.begin_migration()
        if _version(connection) < step.version:  # else another process did it while this one waited
            connection.execute_script(step.sql)
            connection.execute(
                "INSERT INTO schema_version (version, name) VALUES (?, ?)",
                (step.version, step.name),
            )
        connection.commit({})
    except engine.errors as error:
        connection.rollback()
        raise MigrationFailed(
            f"the step {step.version:04}_{step.name} of the migration failed: {error}"
        ) from error
    if not is_new:
        _log.info(
            "The database now has schema version {version} ({name}).",
            version=step.version,
            name=step.name,
        )
