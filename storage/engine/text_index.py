"""Full-text indexes: find the texts that contain certain words.

SQLite uses FTS5, PostgreSQL `tsvector` with GIN. The caller splits each text into words. It passes
a normalized form of each word, the *key* (`homeserver/services/text/text_folding.py`). Both
databases index the keys unchanged, so they give the same results.

The caller passes the keys of a text as one string, such as `" one two  three "`. It begins and ends
with a space. One space separates the keys of adjacent words, and two spaces separate the keys of
words that are not adjacent.

The room of a text is indexed as one more key. So a search in a few rooms reads only the index
entries of these rooms.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

import msgspec

from storage.engine.interface import SQLValue
from storage.engine.transaction import WriteTransaction

MAX_ROOM_KEYS: Final = 64
"""The most rooms that a search puts into the index query. A search in more rooms filters the
rows."""
ROOM_MARK: Final = "\ue000"
"""Prefix of the key of a room. No key of a word contains it."""


class SearchTerm(msgspec.Struct, frozen=True):
    """A search term. The text must contain one of its alternatives."""

    alternatives: tuple[tuple[str, ...], ...]
    """Sequences of keys that follow each other in the text."""
    is_prefix: bool = False
    """The last key matches as a prefix. Only for alternatives of a single key."""


class IndexedText(msgspec.Struct, frozen=True):
    """A text in the index."""

    event_nid: int
    room_nid: int
    words: str


class TextIndex(Protocol):
    """The full-text index of either database."""

    def add(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        """Index texts that were just written to `searchable_events`."""

    def remove(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        """Remove texts, as they were added, that are about to leave `searchable_events`."""

    def merge_deleted(self, txn: WriteTransaction, pages: int, *, restart: bool) -> bool:
        """Continue to remove the remains of deleted texts from the database file, about this many
        pages. Return whether there is more to do. `restart`: texts were deleted since the removal
        began."""

    def clear(self, txn: WriteTransaction) -> None:
        """Empty the index and `searchable_events`."""

    def select(
        self,
        columns: str,
        terms: Sequence[SearchTerm],
        rooms: Collection[int] | None,
        conditions: str,
        args: Sequence[SQLValue],
    ) -> tuple[str, list[SQLValue]]:
        """Return a statement, and its arguments, for the rows of `searchable_events` (as `s`) with
        all of the terms.

        `rooms` is a hint that only these matter. `conditions` begin with AND; an ORDER BY and a
        LIMIT may follow.
        """


SQLITE_TABLE: Final = "searchable_text"
"""The FTS5 table. The names of its shadow tables begin with the same text."""
SQLITE_REBUILD: Final = (
    f"INSERT INTO {SQLITE_TABLE} (rowid, words)"
    " SELECT event_nid, words || char(57344) || room_nid FROM searchable_events"
)
"""Fills an empty index from the texts."""


class SQLiteTextIndex:
    """An FTS5 table that stores neither the texts nor the positions of keys in them."""

    def add(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        txn.execute_many(
            "INSERT INTO searchable_text (rowid, words) VALUES (?, ?)",
            [(text.event_nid, _with_room_key(text)) for text in texts],
        )

    def remove(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        txn.execute_many(
            "INSERT INTO searchable_text (searchable_text, rowid, words) VALUES ('delete', ?, ?)",
            [(text.event_nid, _with_room_key(text)) for text in texts],
        )

    def merge_deleted(self, txn: WriteTransaction, pages: int, *, restart: bool) -> bool:
        # FTS5 records deletions separately; the words stay until all segments of the index are
        # merged. spec: https://www.sqlite.org/fts5.html#the_merge_command (fewer than two changes
        # means that there was nothing to do)
        before = _total_changes(txn)
        txn.execute(
            "INSERT INTO searchable_text (searchable_text, rank) VALUES ('merge', ?)",
            (-pages if restart else pages,),
        )
        return _total_changes(txn) - before >= 2

    def clear(self, txn: WriteTransaction) -> None:
        txn.execute("INSERT INTO searchable_text (searchable_text) VALUES ('delete-all')")
        txn.execute("DELETE FROM searchable_events")

    def select(
        self,
        columns: str,
        terms: Sequence[SearchTerm],
        rooms: Collection[int] | None,
        conditions: str,
        args: Sequence[SQLValue],
    ) -> tuple[str, list[SQLValue]]:
        match = _index_query(
            terms, rooms, " AND ", " OR ", lambda key, more: f'"{key}"{"*" if more else ""}'
        )
        sequences, sequence_args = _sequence_condition(terms, "instr")
        # CROSS JOIN makes SQLite read the index first, in the order of its numbers, and no further
        # than the limit
        sql = (
            f"SELECT {columns} FROM searchable_text AS t"
            " CROSS JOIN searchable_events AS s ON s.event_nid = t.rowid"
            f" WHERE t.searchable_text MATCH ?{sequences}{conditions}"
        )
        return sql.replace("{nid}", "t.rowid"), [match, *sequence_args, *args]


_VECTOR: Final = (
    "array_to_tsvector(array_remove("
    "string_to_array(words || chr(57344) || CAST(room_nid AS TEXT), ' '), ''))"
)
"""The expression of the index: the keys, and the key of the room (57344 is ROOM_MARK)."""


class PostgresTextIndex:
    """A GIN index on `searchable_events.words`, which PostgreSQL maintains itself."""

    def add(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        """Do nothing: PostgreSQL updates the index."""

    def remove(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        """Do nothing: PostgreSQL updates the index."""

    def merge_deleted(self, txn: WriteTransaction, pages: int, *, restart: bool) -> bool:
        """Do nothing: VACUUM removes deleted texts."""
        return False

    def clear(self, txn: WriteTransaction) -> None:
        txn.execute("TRUNCATE searchable_events")

    def select(
        self,
        columns: str,
        terms: Sequence[SearchTerm],
        rooms: Collection[int] | None,
        conditions: str,
        args: Sequence[SQLValue],
    ) -> tuple[str, list[SQLValue]]:
        match = _index_query(
            terms, rooms, " & ", " | ", lambda key, more: f"'{key}'{':*' if more else ''}"
        )
        sequences, sequence_args = _sequence_condition(terms, "strpos")
        # MATERIALIZED makes PostgreSQL read the index before it sorts; otherwise it may scan all
        # rows in their order
        sql = (
            "WITH found AS MATERIALIZED"
            f" (SELECT * FROM searchable_events WHERE {_VECTOR} @@ ?::tsquery)"
            f" SELECT {columns} FROM found AS s WHERE TRUE{sequences}{conditions}"
        )
        return sql.replace("{nid}", "s.event_nid"), [match, *sequence_args, *args]


def make_text_index(engine: str) -> TextIndex:
    """Return the full-text index of this database engine."""
    return SQLiteTextIndex() if engine == "sqlite" else PostgresTextIndex()


def _total_changes(txn: WriteTransaction) -> int:
    row = txn.query_one("SELECT total_changes()")
    assert row is not None
    return int(row[0])


def _with_room_key(text: IndexedText) -> str:
    return f"{text.words}{ROOM_MARK}{text.room_nid}"


def _index_query(
    terms: Sequence[SearchTerm],
    rooms: Collection[int] | None,
    and_sign: str,
    or_sign: str,
    format_key: Callable[[str, bool], str],
) -> str:
    """Return the index query in the language of the database. All keys of a sequence have to be in
    the text."""
    clauses = [
        [
            and_sign.join(format_key(_check_key(key), term.is_prefix) for key in keys)
            for keys in term.alternatives
        ]
        for term in terms
    ]
    if rooms is not None and len(rooms) <= MAX_ROOM_KEYS:
        clauses.append([format_key(f"{ROOM_MARK}{room_nid}", False) for room_nid in rooms])
    return and_sign.join(
        f"({or_sign.join(f'({each})' for each in alternatives)})" for alternatives in clauses
    )


def _check_key(key: str) -> str:
    if not key or any(sign in key for sign in "\"'\\ ") or ROOM_MARK in key:
        raise ValueError(f"not a valid index key: {key!r}")
    return key


def _sequence_condition(terms: Sequence[SearchTerm], find: str) -> tuple[str, list[SQLValue]]:
    """Return the condition that the keys of a sequence follow each other in the text."""
    conditions, args = "", list[SQLValue]()
    for term in terms:
        if any(len(keys) > 1 for keys in term.alternatives):
            conditions += (
                f" AND ({' OR '.join([f'{find}(s.words, ?) > 0'] * len(term.alternatives))})"
            )
            args += [f" {' '.join(keys)} " for keys in term.alternatives]
    return conditions, args
