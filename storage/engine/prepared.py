"""Prepared statements of a PostgreSQL session.

Parsing and planning a statement costs several times its execution. So a statement is prepared when
it is first used on a connection. It is planned once, for any arguments (`plan_cache_mode` in
`postgres_config.py`). Prepared statements survive a rollback to a savepoint, so a failed write does
not cost the others their statements.

Laws:
- A statement with `CUSTOM_PLAN` is not prepared, so it is planned for its arguments. The same holds
  for a DELETE that has a subquery with `LIMIT ?`. In a prepared statement the limit is unknown, so
  PostgreSQL would expect a tenth of the table, and scan all of it.
- Arguments have the types that literals would have, so that a prepared statement means the same as
  the statement with literals.
- The number of prepared statements in a session is bounded. The least recently used one is
  deallocated first.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from storage.engine.interface import SQLValue


class TextArray(str):
    """An array of text in PostgreSQL's literal form. It is one literal. A list would be an
    expression with one constant for each value."""

    __slots__ = ()


class NumberArray(str):
    """An array of integers in PostgreSQL's literal form."""

    __slots__ = ()


NUMERIC_TYPES: Final = frozenset({int, NumberArray})

Argument = SQLValue | list[SQLValue]

MAX_PREPARED: Final = 200
"""The most prepared statements in a session. Each takes about 30 KB on the server."""

_PREPARABLE = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|WITH|DELETE(?!.*\bLIMIT \?.*\)))\b", re.IGNORECASE | re.DOTALL
)
_TYPES: Final[dict[type, str]] = {
    str: "text",
    int: "bigint",
    float: "double precision",
    bytes: "bytea",
    TextArray: "text[]",
    NumberArray: "bigint[]",
    type(None): "unknown",  # the server infers it
}

_Key = tuple[str, tuple[str, ...]]
"""A statement and the types of its arguments."""


def make_array(values: Sequence[SQLValue]) -> Argument:
    """Return several values as one argument."""
    kinds = set(map(type, values))
    if kinds == {str}:
        joined = '","'.join(values)  # type: ignore[arg-type]
        if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
            joined = '","'.join(
                [str(each).replace("\\", "\\\\").replace('"', '\\"') for each in values]
            )
        return TextArray(f'{{"{joined}"}}')
    if kinds == {int}:
        return NumberArray(f"{{{','.join(map(str, values))}}}")
    return list(values)


class PreparedStatements:
    """The prepared statements of one session.

    It is no `LRU`, because `storage.cache` is a higher layer, and an eviction has to deallocate a
    statement.
    """

    __slots__ = ("_calls", "_deallocation", "_last", "_max_statements")

    def __init__(self, max_statements: int = MAX_PREPARED) -> None:
        self._max_statements = max_statements
        self._calls: OrderedDict[_Key, tuple[str, str]] = OrderedDict()
        """For each prepared statement: its name on the server, and the text that executes it."""
        self._deallocation = ""
        """The DEALLOCATE of the statement that was dropped last. It is sent behind the next
        PREPARE, and is done if that succeeds."""
        self._last = 0

    def lookup(self, sql: str, args: Sequence[Argument]) -> tuple[str, str]:
        """Return the text to run before, or an empty string, and the text that executes the
        statement, with `%s` for its arguments.

        Once the first text was run, call `record`.
        """
        key = (sql, tuple(map(_type_of, args)))
        call = self._calls.get(key)
        if call is not None:
            self._calls.move_to_end(key)
            return "", call[1]
        if not _PREPARABLE.match(sql):
            return "", with_placeholders(sql)
        self._last += 1
        name = f"s{self._last}"
        return f"{_preparation(name, *key)}{self._deallocation}", _call(name, len(args))

    def record(self, sql: str, args: Sequence[Argument], text: str) -> None:
        """Record that the statement that `lookup` returned last is prepared, and that `text`
        executes it."""
        key = (sql, tuple(map(_type_of, args)))
        self._deallocation = ""
        self._calls[key] = (f"s{self._last}", text)
        if len(self._calls) > self._max_statements:
            _, (name, _) = self._calls.popitem(last=False)
            self._deallocation = f"; DEALLOCATE {name}"


@lru_cache(maxsize=4096)
def with_placeholders(sql: str) -> str:
    """Return the statement with the driver's `%s` for arguments. A space precedes each: a minus
    before a negative number would begin a comment."""
    return sql.replace("%", "%%").replace("?", " %s")


def _type_of(value: Argument) -> str:
    known = _TYPES.get(type(value))
    if known is not None:
        return known
    if isinstance(value, list):
        return f"{_type_of(value[0])}[]" if value else "text[]"
    # a subclass of one of these types
    return next((name for kind, name in _TYPES.items() if isinstance(value, kind)), "unknown")


def _call(name: str, count: int) -> str:
    return f"EXECUTE {name} ({', '.join(['%s'] * count)})" if count else f"EXECUTE {name}"


def _preparation(name: str, sql: str, types: Sequence[str]) -> str:
    first, *rest = sql.split("?")
    text = first + "".join(f"${at}{part}" for at, part in enumerate(rest, start=1))
    declared = f" ({', '.join(types)})" if types else ""
    return f"PREPARE {name}{declared} AS {text}"
