"""Values on their way to PostgreSQL and back: in statements, in rows that are copied, in
results."""

from collections.abc import Iterable, Sequence
from struct import Struct

import psycopg2
from psycopg2.extensions import QuotedString, cursor, new_type, register_adapter

from storage.engine.interface import SQLValue
from storage.engine.postgres_statements import NOT_TEXT
from storage.engine.prepared import NumberArray, TextArray

_COPY_BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_COUNT, _LENGTH, _WHOLE, _BROKEN = Struct(">h"), Struct(">i"), Struct(">iq"), Struct(">id")
_NULL = _LENGTH.pack(-1)


def _bytes_of(value: str | bytes | None, _: cursor) -> bytes | None:
    # Always text in the format `hex`, which `_connect` asks for.
    return bytes.fromhex(value[2:]) if isinstance(value, str) else value


class _QuotedBytes:
    """Bytes as a literal. Those that are plain text, as JSON mostly is, stand in it as they are:
    the driver's own form is twice as long. A backslash in a literal is one: `PostgresEngine.open`
    asks for that."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def getquoted(self) -> bytes:
        """What stands in the statement."""
        value = self._value
        if value.isascii() and b"\\" not in value and b"\0" not in value:
            return b"'%b'::bytea" % value.replace(b"'", b"''")
        return b"'\\x%b'::bytea" % value.hex().encode()


for _kind in (TextArray, NumberArray):
    register_adapter(_kind, QuotedString)
register_adapter(bytes, _QuotedBytes)

BYTES = new_type(psycopg2.BINARY.values, "BYTES", _bytes_of)


def encode_rows(width: int, rows: Iterable[Sequence[SQLValue]]) -> bytes:
    """Rows in PostgreSQL's binary format: no text to write, none to read."""
    begin = _COUNT.pack(width)
    parts = [_COPY_BEGIN]
    for row in rows:
        parts.append(begin)
        for value in row:
            if type(value) is int:  # what is asked first is most usual
                parts.append(_WHOLE.pack(8, value))
            elif isinstance(value, bytes):
                parts += (_LENGTH.pack(len(value)), value)
            elif isinstance(value, str):
                encoded = (value.replace("\0", NOT_TEXT) if "\0" in value else value).encode()
                parts += (_LENGTH.pack(len(encoded)), encoded)
            elif value is None:
                parts.append(_NULL)
            elif isinstance(value, float):
                parts.append(_BROKEN.pack(8, value))
            else:
                parts.append(_WHOLE.pack(8, value))
    parts.append(_COPY_END)
    return b"".join(parts)
