"""Copies a whole database into an empty one. Each of the two may be SQLite or PostgreSQL.

Laws:
- No other process uses the two databases during the copy. If a server uses one of them, the copy is
  refused.
- The names of tables and columns come from the database, not from a list in the code. So no table
  can be forgotten.
- The target is written in one transaction, and read back and compared before its commit. If the
  copy fails, the target stays empty, and the copy can be started again. The source is never
  changed.
- Memory is bounded by `BATCH` rows.
- PostgreSQL stores text with U+0000 in another form (`storage/engine/interface.py`). The comparison
  treats both forms as equal.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Literal

import msgspec

from storage.engine.interface import Row
from storage.engine.migrate import find_migrations, migrate
from storage.engine.postgres import PostgresEngine
from storage.engine.postgres_statements import NUL_SUBSTITUTE
from storage.engine.sqlite import SQLiteEngine
from storage.maintenance.copy_interface import CannotCopy, CopySide
from storage.maintenance.copy_postgres import PostgresSide
from storage.maintenance.copy_sqlite import SQLiteSide

__all__ = ["CannotCopy", "CopyProgress", "CopyResult", "ProgressLines", "copy_database"]

REPORT_INTERVAL = 1.0
_MODULUS = 1 << 128
_encode = msgspec.msgpack.Encoder().encode


class CopyProgress(msgspec.Struct, frozen=True):
    """The progress of a copy, reported at the start of each table and after each batch."""

    phase: Literal["copying", "comparing"]
    table: str
    rows: int
    """Rows of this table that are done."""
    rows_of_table: int
    rows_done: int
    """Rows of all tables that are done, copied and compared."""
    rows_total: int
    """Twice the rows of the source: each is copied and compared."""


class ProgressLines:
    """Prints the progress of a copy: table, rows, rate, and the remaining time.

    Writes a line for each finished table, except empty ones, and one each second in between.
    """

    def __init__(self, *, write: Callable[[str], object], clock: Callable[[], float]) -> None:
        """`clock` returns seconds, from any starting point."""
        self._write = write
        self._clock = clock
        self._began = clock()
        self._reported_at = self._began

    def report(self, step: CopyProgress) -> None:
        now = self._clock()
        done = 0 < step.rows == step.rows_of_table
        if not done and now - self._reported_at < REPORT_INTERVAL:
            return
        self._reported_at = now
        rate = step.rows_done / max(now - self._began, 0.001)
        left = (step.rows_total - step.rows_done) / rate if rate else 0.0
        self._write(
            f"{step.phase} {step.table}: {step.rows:,} of {step.rows_of_table:,} rows; "
            f"{rate:,.0f} rows/s in all, about {_duration(left)} left\n"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


class CopyResult(msgspec.Struct, frozen=True):
    """The number of copied rows by table, including empty tables."""

    tables: Mapping[str, int]


class RowChecksum:
    """A checksum of rows. It does not depend on their order, which databases do not guarantee."""

    def __init__(self) -> None:
        self.rows = 0
        self.digest = 0

    def add(self, rows: Sequence[Row]) -> None:
        digest = self.digest
        for row in rows:
            encoded = _encode(row)
            if b"\0" in encoded:
                encoded = _encode([_as_stored(value) for value in row])
            digest += int.from_bytes(blake2b(encoded, digest_size=16).digest(), "big")
        self.digest = digest % _MODULUS
        self.rows += len(rows)


def copy_database(
    source: SQLiteEngine | PostgresEngine,
    target: SQLiteEngine | PostgresEngine,
    report: Callable[[CopyProgress], None],
) -> CopyResult:
    """Copy everything. Blocks.

    Creates the schema of the target if it has none. Raises CannotCopy, and the errors of
    `storage.engine.migrate.migrate` for the target. After any error the target has no rows.
    """
    if source.location == target.location:
        raise CannotCopy(f"source and target are the same: {source.location}")
    reading = _open(source, writes=False)
    try:
        version = len(find_migrations(source.name, source.bytes_type))
        found = reading.get_schema_version()
        if found != version:
            raise CannotCopy(
                f"{source.location} has schema version {found}, and this program has {version}:"
                " start the server on it once with this version of Mahalla, stop it, and copy again"
            )
        migrate(target)
        writing = _open(target, writes=True)
        try:
            return _copy(reading, writing, target.location, report)
        finally:
            writing.close()
    finally:
        reading.close()


def _open(engine: SQLiteEngine | PostgresEngine, *, writes: bool) -> CopySide:
    if isinstance(engine, SQLiteEngine):
        return SQLiteSide(engine=engine, writes=writes)
    return PostgresSide(engine=engine, writes=writes)


def _copy(
    source: CopySide, target: CopySide, where: str, report: Callable[[CopyProgress], None]
) -> CopyResult:
    tables = source.get_tables()
    _check_target(tables, target, where)
    counts = {table: source.count_rows(table) for table in tables}
    total = 2 * sum(counts.values())
    done = 0
    sums: dict[str, RowChecksum] = {}
    for table, columns in tables.items():
        sums[table] = copied = RowChecksum()
        report(CopyProgress("copying", table, 0, counts[table], done, total))
        for rows in source.read_rows(table, columns):
            target.add_rows(table, columns, rows)
            copied.add(rows)
            done += len(rows)
            report(CopyProgress("copying", table, copied.rows, counts[table], done, total))
    for table, columns in tables.items():
        compared = RowChecksum()
        report(CopyProgress("comparing", table, 0, counts[table], done, total))
        for rows in target.read_rows(table, columns):
            compared.add(rows)
            done += len(rows)
            report(CopyProgress("comparing", table, compared.rows, counts[table], done, total))
        if (compared.rows, compared.digest) != (sums[table].rows, sums[table].digest):
            raise CannotCopy(
                f"{where} returned other rows of {table} than were written"
                f" ({sums[table].rows} written, {compared.rows} read); nothing was stored"
            )
    target.commit()
    return CopyResult({table: copied.rows for table, copied in sums.items()})


def _check_target(tables: Mapping[str, Sequence[str]], target: CopySide, where: str) -> None:
    present = target.get_tables()
    if {name: set(columns) for name, columns in present.items()} != {
        name: set(tables[name]) for name in tables
    }:
        different = sorted(
            name
            for name in {*present, *tables}
            if set(present.get(name, ())) != set(tables.get(name, ()))
        )
        raise CannotCopy(
            f"{where} does not have the same tables as the source ({', '.join(different)}):"
            " use a new, empty database"
        )
    filled = [name for name in present if target.count_rows(name)]
    if filled:
        raise CannotCopy(
            f"{where} is not empty (there are rows in {', '.join(filled)}): use a new,"
            " empty database; existing data is never overwritten"
        )


def _as_stored(value: object) -> object:
    return value.replace("\0", NUL_SUBSTITUTE) if isinstance(value, str) else value
