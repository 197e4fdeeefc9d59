"""Converts SQL for PostgreSQL, so that one statement handles many keys or many rows of arguments.
It also converts values: in statements, in rows for COPY, and in results.

SQLite runs the same SQL unchanged, once for each row. See `storage/engine/interface.py`.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import Struct

import psycopg2
from psycopg2.extensions import QuotedString, cursor, new_type, register_adapter

from storage.engine.interface import SQLValue
from storage.engine.prepared import (
    Argument,
    NumberArray,
    TextArray,
    make_array,
    with_placeholders,
)

WRITE_LOCK = 0x4D61_6861_6C6C_61
"""Key of the advisory lock that a writer holds from begin to commit ("Mahalla" in ASCII)."""

NUL_SUBSTITUTE = "\U0010ffff"
"""Replaces U+0000, which PostgreSQL's text cannot hold. It is a code point that Unicode never
assigns to a character."""

_VALUES = re.compile(r"\bVALUES\s*(\([^()]*\))", re.IGNORECASE)

_KEYS = re.compile(r"\bIN\s*\{keys\}", re.IGNORECASE)

_COPY_BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_COUNT, _LENGTH, _INT, _FLOAT = Struct(">h"), Struct(">i"), Struct(">iq"), Struct(">id")
_NULL = _LENGTH.pack(-1)


def _with_any(sql: str) -> str:
    """Return the statement with one array argument for its list of keys."""
    return _with_keys(sql, "= ANY(?)")


def _with_one(sql: str) -> str:
    """Return the statement for a single key. For an array the planner would assume a long list, and
    plan a prepared statement again each time."""
    return _with_keys(sql, "= ?")


@lru_cache(maxsize=1024)
def _with_keys(sql: str, keys: str) -> str:
    replaced, count = _KEYS.subn(keys, sql)
    if count != 1:
        raise ValueError(f"the statement must have 'IN {{keys}}' once: {sql}")
    return replaced


def expand_keys(
    sql: str, keys: Sequence[SQLValue], before: Sequence[SQLValue], after: Sequence[SQLValue]
) -> tuple[str, Sequence[Argument]]:
    """Return the statement for a list of keys, and its arguments."""
    if len(keys) == 1:
        return _with_one(sql), (*adapt(before), *adapt(keys), *adapt(after))
    return _with_any(sql), (*adapt(before), make_array(_adapt_column(keys)), *adapt(after))


@lru_cache(maxsize=1024)
def make_lateral_query(sql: str, types: tuple[str, ...], before: int = 0) -> str:
    """Return one statement for many rows of arguments, which are passed as columns. Its first
    result column is the number of the row. After the columns come the `before` arguments, which
    precede those of each row."""
    parts = sql.split("?")
    each = "?".join(parts[: before + 1])
    each += "".join(f"wanted.a{at}{part}" for at, part in enumerate(parts[before + 1 :]))
    names = ", ".join(f"a{at}" for at in range(len(types)))
    return (
        f"SELECT wanted.nr, found.* FROM unnest({array_parameters(types)})"
        f" WITH ORDINALITY AS wanted ({names}, nr)"
        f" CROSS JOIN LATERAL ({each}) AS found"
    )


@lru_cache(maxsize=1024)
def make_lateral_change(sql: str, types: tuple[str, ...], change: str) -> str:
    """Return a statement as from `make_lateral_query` that also changes the rows it finds. All
    parts of a statement see the tables as they were before it."""
    changed = _with_keys(change, "IN (SELECT found_key FROM found)")
    found = make_lateral_query(sql, types)
    return f"WITH found AS MATERIALIZED ({found}), changed AS ({changed}) SELECT * FROM found"


def array_parameters(types: Iterable[str]) -> str:
    return ", ".join(f"?::{type}[]" for type in types)


def column_types(row: Sequence[SQLValue]) -> tuple[str, ...]:
    return tuple(["text" if isinstance(value, str) else "bigint" for value in row])


def transpose(rows: Iterable[Sequence[SQLValue]]) -> list[Argument]:
    return [make_array(_adapt_column(column)) for column in zip(*rows, strict=True)]


@lru_cache(maxsize=1024)
def split_values(sql: str) -> tuple[bytes, str, bytes] | None:
    """Split an INSERT statement at its VALUES: the text before them, the template of a row, and the
    text after. Return None if the statement has to run row by row.

    `DO UPDATE` runs row by row, because one statement cannot change the same row twice.
    """
    match = _VALUES.search(sql)
    if (
        match is None
        or "?" in sql[: match.start()] + sql[match.end() :]
        or "DO UPDATE" in sql.upper()
    ):
        return None
    return sql[: match.start(1)].encode(), with_placeholders(match[1]), sql[match.end(1) :].encode()


def adapt(args: Sequence[SQLValue]) -> Sequence[SQLValue]:
    """Return arguments in the form that PostgreSQL takes: truth values as 0 and 1, U+0000 in text
    replaced."""
    for value in args:
        kind = type(value)
        if kind is bool or (kind is str and "\0" in value):  # type: ignore[operator]
            return [_adapt_value(value) for value in args]
    return args


def _adapt_column(values: Sequence[SQLValue]) -> Sequence[SQLValue]:
    """Like `adapt`, but without a look at each value if all are of one type."""
    kinds = {*map(type, values)}
    if kinds == {int} or (kinds == {str} and "\0" not in "".join(values)):  # type: ignore[arg-type]
        return values
    return adapt(values)


def _adapt_value(value: SQLValue) -> SQLValue:
    if isinstance(value, bool):
        return int(value)
    return value.replace("\0", NUL_SUBSTITUTE) if isinstance(value, str) else value


def _bytes_of(value: str | bytes | None, _: cursor) -> bytes | None:
    # Always text in the `hex` format (`bytea_output` in `postgres_config.make_connection_string`).
    return bytes.fromhex(value[2:]) if isinstance(value, str) else value


class _QuotedBytes:
    """Bytes as an SQL literal. Plain ASCII, which most JSON is, is written as text: half as long as
    the driver's form. A backslash in a literal is one character (`standard_conforming_strings`)."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def getquoted(self) -> bytes:
        """Return the literal."""
        value = self._value
        if value.isascii() and b"\\" not in value and b"\0" not in value:
            return b"'%b'::bytea" % value.replace(b"'", b"''")
        return b"'\\x%b'::bytea" % value.hex().encode()


for _kind in (TextArray, NumberArray):
    register_adapter(_kind, QuotedString)
register_adapter(bytes, _QuotedBytes)

BYTES = new_type(psycopg2.BINARY.values, "BYTES", _bytes_of)


def encode_rows(width: int, rows: Iterable[Sequence[SQLValue]]) -> bytes:
    """Encode rows in PostgreSQL's binary COPY format, which needs no formatting or parsing of
    text."""
    begin = _COUNT.pack(width)
    parts = [_COPY_BEGIN]
    for row in rows:
        parts.append(begin)
        for value in row:
            if type(value) is int:  # the most frequent type first
                parts.append(_INT.pack(8, value))
            elif isinstance(value, bytes):
                parts += (_LENGTH.pack(len(value)), value)
            elif isinstance(value, str):
                encoded = (value.replace("\0", NUL_SUBSTITUTE) if "\0" in value else value).encode()
                parts += (_LENGTH.pack(len(encoded)), encoded)
            elif value is None:
                parts.append(_NULL)
            elif isinstance(value, float):
                parts.append(_FLOAT.pack(8, value))
            else:
                parts.append(_INT.pack(8, value))
    parts.append(_COPY_END)
    return b"".join(parts)
