"""Statements that a session of PostgreSQL has prepared: to parse and plan one costs it several
times what it does.

A statement is prepared when it first comes on its connection, and planned once, for whatever
arguments come (`PostgresEngine.open`). What is prepared outlives a transaction that is rolled back.

Laws:
- What says so (`FOR_ITS_ARGUMENTS`) is not prepared, and so planned for the arguments that come;
  nor is what deletes so many rows at most: not knowing how many that are, the server would take
  them for a tenth of the table, and go through all of it.
- Arguments have the types that literals of them would have, so that a statement means the same
  before and after.
- What a session keeps is bounded: what was not used for longest is given up first.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from storage.engine.interface import SQLValue


class TextArray(str):
    """An array of text as PostgreSQL reads it: one literal, where a list would be an expression
    with a constant for each."""

    __slots__ = ()


class NumberArray(str):
    """An array of whole numbers, likewise."""

    __slots__ = ()


NUMBERS: Final = frozenset({int, NumberArray})

Argument = SQLValue | list[SQLValue]

MOST_PREPARED: Final = 200
"""Of a session: each takes some thirty kilobytes of the server."""

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
    type(None): "unknown",  # of what it stands beside
}

_Key = tuple[str, tuple[str, ...]]
"""A statement, and the types of its arguments."""


def array_of(values: Sequence[SQLValue]) -> Argument:
    """Many values as one argument."""
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


class Prepared:
    """The statements that one session has prepared.

    No `LRU`: it is below `storage.cache`, and an eviction has to end a statement in the session.
    """

    __slots__ = ("_calls", "_given_up", "_last", "_most")

    def __init__(self, most: int = MOST_PREPARED) -> None:
        self._most = most
        self._calls: OrderedDict[_Key, tuple[str, str]] = OrderedDict()
        """Its name on the server, and the text that runs it."""
        self._given_up = ""
        """What ends the statement that was given up last, to travel behind the next preparation: it
        is done if that is."""
        self._last = 0

    def find(self, sql: str, args: Sequence[Argument]) -> tuple[str, str]:
        """What has to be run before, if anything, and the text that then runs the statement, with
        `%s` for its arguments.

        Once what comes before was run, tell `keep`.
        """
        key = (sql, tuple(map(_type_of, args)))
        call = self._calls.get(key)
        if call is not None:
            self._calls.move_to_end(key)
            return "", call[1]
        if not _PREPARABLE.match(sql):
            return "", with_places(sql)
        self._last += 1
        name = f"s{self._last}"
        return f"{_preparation(name, *key)}{self._given_up}", _call(name, len(args))

    def keep(self, sql: str, args: Sequence[Argument], text: str) -> None:
        """The statement that `find` was asked for last is prepared now, and `text` runs it."""
        key = (sql, tuple(map(_type_of, args)))
        self._given_up = ""
        self._calls[key] = (f"s{self._last}", text)
        if len(self._calls) > self._most:
            _, (name, _) = self._calls.popitem(last=False)
            self._given_up = f"; DEALLOCATE {name}"


@lru_cache(maxsize=4096)
def with_places(sql: str) -> str:
    """The statement with the driver's `%s` for arguments. Before each is a space: a minus before a
    number that has one too would begin a comment."""
    return sql.replace("%", "%%").replace("?", " %s")


def _type_of(value: Argument) -> str:
    known = _TYPES.get(type(value))
    if known is not None:
        return known
    if isinstance(value, list):
        return f"{_type_of(value[0])}[]" if value else "text[]"
    # a kind of text or number of its own
    return next((name for kind, name in _TYPES.items() if isinstance(value, kind)), "unknown")


def _call(name: str, count: int) -> str:
    return f"EXECUTE {name} ({', '.join(['%s'] * count)})" if count else f"EXECUTE {name}"


def _preparation(name: str, sql: str, types: Sequence[str]) -> str:
    first, *rest = sql.split("?")
    text = first + "".join(f"${at}{part}" for at, part in enumerate(rest, start=1))
    declared = f" ({', '.join(types)})" if types else ""
    return f"PREPARE {name}{declared} AS {text}"
