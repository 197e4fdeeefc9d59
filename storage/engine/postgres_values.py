"""Converts values to and from PostgreSQL: in statements, in rows for COPY, and in results."""

from collections.abc import Iterable, Sequence
from struct import Struct

import psycopg2
from psycopg2.extensions import QuotedString, cursor, new_type, register_adapter

from storage.engine.interface import SQLValue
from storage.engine.postgres_statements import NUL_SUBSTITUTE
from storage.engine.prepared import NumberArray, TextArray

_COPY_BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_COUNT, _LENGTH, _INT, _FLOAT = Struct(">h"), Struct(">i"), Struct(">iq"), Struct(">id")
_NULL = _LENGTH.pack(-1)


def _bytes_of(value: str | bytes | None, _: cursor) -> bytes | None:
    # Always text in the `hex` format (`bytea_output` in `postgres_config.describe`).
    return bytes.fromhex(value[2:]) if isinstance(value, str) else value


class _QuotedBytes:
    """Bytes as an SQL literal. Plain ASCII, which most JSON is, is written as text. That is half as
    long as the driver's form. A backslash in a literal is one character
    (`standard_conforming_strings`)."""

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
