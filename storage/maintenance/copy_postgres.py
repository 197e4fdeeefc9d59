"""PostgreSQL as the source or target of a copy.

A copy is refused while a Mahalla server uses the database, that is, while another session has
Mahalla's application name. The copy holds the lock for write transactions (`WRITE_LOCK`) to its
end, so that a server that starts during the copy has to wait. Rows are added by COPY, all in one
transaction.
"""

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO

import psycopg2

from storage.engine.interface import Row, SQLValue
from storage.engine.postgres import PostgresEngine
from storage.engine.postgres_statements import NUL_SUBSTITUTE, WRITE_LOCK
from storage.maintenance.copy_interface import BATCH, SCHEMA_VERSION_TABLE, CannotCopy

MAX_ATTEMPTS = 10
"""How often to look for other sessions, every tenth of a second."""

_ESCAPES = str.maketrans(
    {"\0": NUL_SUBSTITUTE, "\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
)


class PostgresSide:
    """The `storage.maintenance.copy_interface.CopySide` of a PostgreSQL database."""

    def __init__(self, *, engine: PostgresEngine, writes: bool) -> None:
        """Raises CannotCopy while a server uses the database."""
        try:
            self._connection = engine.open(
                {"statement_timeout": 0, "idle_in_transaction_session_timeout": 0}
            )
        except psycopg2.OperationalError as error:
            raise CannotCopy(f"cannot open {engine.location}: {str(error).strip()}") from error
        self._cursor = self._connection.cursor()
        if not self._is_alone():
            self._connection.close()
            raise CannotCopy(f"another process uses {engine.location}: stop the server first")
        # The lock belongs to the session; the first query after it takes the snapshot.
        self._cursor.execute(
            "BEGIN" if writes else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        )

    def get_schema_version(self) -> int:
        if self._query(f"SELECT to_regclass('{SCHEMA_VERSION_TABLE}')") == [(None,)]:
            return 0
        ((version,),) = self._query("SELECT COALESCE(MAX(version), 0) FROM schema_version")
        return int(version)

    def get_tables(self) -> Mapping[str, Sequence[str]]:
        tables: dict[str, list[str]] = {}
        for table, column in self._query(
            "SELECT table_name::text, column_name::text FROM information_schema.tables "
            "JOIN information_schema.columns USING (table_schema, table_name) "
            "WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'"
            " ORDER BY table_name, ordinal_position"
        ):
            if table != SCHEMA_VERSION_TABLE:
                tables.setdefault(table, []).append(column)
        return tables

    def count_rows(self, table: str) -> int:
        ((count,),) = self._query(f'SELECT COUNT(*) FROM "{table}"')
        return int(count)

    def read_rows(self, table: str, columns: Sequence[str]) -> Iterator[Sequence[Row]]:
        self._cursor.execute(
            f'DECLARE copied NO SCROLL CURSOR FOR SELECT {_quoted(columns)} FROM "{table}"'
        )
        while rows := self._query(f"FETCH {BATCH} FROM copied"):
            yield rows
        self._cursor.execute("CLOSE copied")

    def add_rows(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        text = "".join("\t".join(map(_field, row)) + "\n" for row in rows)
        self._cursor.copy_expert(
            f'COPY "{table}" ({_quoted(columns)}) FROM STDIN', BytesIO(text.encode())
        )

    def commit(self) -> None:
        self._cursor.execute("COMMIT")
        # so that the first queries are not planned for empty tables
        self._cursor.execute("ANALYZE")

    def close(self) -> None:
        self._connection.close()

    def _is_alone(self) -> bool:
        for _ in range(MAX_ATTEMPTS):  # a session outlives its client for a moment
            ((locked, others),) = self._query(
                f"SELECT pg_try_advisory_lock({WRITE_LOCK}), (SELECT COUNT(*) FROM pg_stat_activity"
                " WHERE datname = "
                "current_database() AND pid <> pg_backend_pid() AND application_name = "
                "current_setting('application_name'))"
            )
            if locked and not others:
                return True
            self._query("SELECT pg_sleep(0.1)")
        return False

    def _query(self, sql: str) -> list[Row]:
        self._cursor.execute(sql)
        return self._cursor.fetchall()


def _field(value: SQLValue) -> str:
    """Return a value in COPY's text format."""
    match value:
        case None:
            return "\\N"
        case str():
            return value.translate(_ESCAPES)
        case bytes():
            return "\\\\x" + value.hex()
        case bool():
            return str(int(value))
    return repr(value)


def _quoted(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
