"""Full-text indexes: which texts have certain keys in them.

SQLite has FTS5 for it, PostgreSQL `tsvector` with GIN. What a word is decides who gives the keys:
both are told of keys that are ready, take them as they are, and answer the same. A text is a string
of keys, with a space before and after each; two spaces stand where what comes after does not follow
what comes before (`" one two  three "`).

The room that a text is in is one more key, so that a search in few rooms does not read what was
said in others.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

import msgspec

from storage.engine.interface import SQLValue
from storage.engine.transaction import WriteTransaction

MOST_ROOM_KEYS: Final = 64
"""A search in more rooms than so many looks at their texts instead."""
ROOM_MARK: Final = "\ue000"
"""Begins the key of a room; no key of a word has it."""


class Term(msgspec.Struct, frozen=True):
    """One thing that has to be in a text: one of its alternatives."""

    alternatives: tuple[tuple[str, ...], ...]
    """Keys that follow each other in the text."""
    is_prefix: bool = False
    """The last key may be the beginning of one. Only of alternatives with a single key."""


class IndexedText(msgspec.Struct, frozen=True):
    """A text in the index."""

    event_nid: int
    room_nid: int
    words: str


class TextIndex(Protocol):
    """What the two have in common."""

    def add(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        """Index texts that were just written to `searchable_events`."""

    def remove(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        """Forget texts, as they were added, that are about to leave `searchable_events`."""

    def settle(self, txn: WriteTransaction, pages: int, *, anew: bool) -> bool:
        """Go on to take out of the database's file what is left there of texts that were forgotten,
        about so many pages; whether there is more to do. `anew`: texts were forgotten since it was
        begun."""

    def clear(self, txn: WriteTransaction) -> None:
        """Forget all, and empty `searchable_events`."""

    def select(
        self,
        columns: str,
        terms: Sequence[Term],
        rooms: Collection[int] | None,
        conditions: str,
        args: Sequence[SQLValue],
    ) -> tuple[str, list[SQLValue]]:
        """A statement, and its arguments, for the rows of `searchable_events` (as `s`) with all of
        the terms.

        `rooms`: a hint that only these matter. `conditions` begin with AND; an ORDER BY and a LIMIT
        may follow them.
        """


SQLITE_TABLE: Final = "searchable_text"
"""With the tables that FTS5 makes for it, whose names begin so."""
SQLITE_REBUILD: Final = (
    f"INSERT INTO {SQLITE_TABLE} (rowid, words)"
    " SELECT event_nid, words || char(57344) || room_nid FROM searchable_events"
)
"""Fills an empty index from the texts."""


class SQLiteTextIndex:
    """A table of FTS5 that keeps no text of its own, nor the places of keys in it."""

    def add(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        txn.execute_many(
            "INSERT INTO searchable_text (rowid, words) VALUES (?, ?)",
            [(text.event_nid, _keyed(text)) for text in texts],
        )

    def remove(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        txn.execute_many(
            "INSERT INTO searchable_text (searchable_text, rowid, words) VALUES ('delete', ?, ?)",
            [(text.event_nid, _keyed(text)) for text in texts],
        )

    def settle(self, txn: WriteTransaction, pages: int, *, anew: bool) -> bool:
        # FTS5 notes what is deleted beside the words, which stay until all parts of the index have
        # become one. spec: https://www.sqlite.org/fts5.html#the_merge_command (what is less than
        # two changes was nothing)
        before = _total_changes(txn)
        txn.execute(
            "INSERT INTO searchable_text (searchable_text, rank) VALUES ('merge', ?)",
            (-pages if anew else pages,),
        )
        return _total_changes(txn) - before >= 2

    def clear(self, txn: WriteTransaction) -> None:
        txn.execute("INSERT INTO searchable_text (searchable_text) VALUES ('delete-all')")
        txn.execute("DELETE FROM searchable_events")

    def select(
        self,
        columns: str,
        terms: Sequence[Term],
        rooms: Collection[int] | None,
        conditions: str,
        args: Sequence[SQLValue],
    ) -> tuple[str, list[SQLValue]]:
        match = _expression(
            terms, rooms, " AND ", " OR ", lambda key, more: f'"{key}"{"*" if more else ""}'
        )
        sequences, sequence_args = _sequences(terms, "instr")
        # CROSS JOIN: the index is to be read first, in the order of its numbers, and no further
        # than the limit
        sql = (
            f"SELECT {columns} FROM searchable_text AS t CROSS JOIN searchable_events AS s ON s.event_nid = t.rowid"
            f" WHERE t.searchable_text MATCH ?{sequences}{conditions}"
        )
        return sql.replace("{nid}", "t.rowid"), [match, *sequence_args, *args]


_VECTOR: Final = "array_to_tsvector(array_remove(string_to_array(words || chr(57344) || CAST(room_nid AS TEXT), ' '), ''))"
"""As in the definition of the index: the keys, and the room's (57344 is ROOM_MARK)."""


class PostgresTextIndex:
    """A GIN index upon `searchable_events.words`, which PostgreSQL keeps up by itself."""

    def add(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        """There is nothing to do."""

    def remove(self, txn: WriteTransaction, texts: Sequence[IndexedText]) -> None:
        """There is nothing to do."""

    def settle(self, txn: WriteTransaction, pages: int, *, anew: bool) -> bool:
        """VACUUM does it."""
        return False

    def clear(self, txn: WriteTransaction) -> None:
        txn.execute("TRUNCATE searchable_events")

    def select(
        self,
        columns: str,
        terms: Sequence[Term],
        rooms: Collection[int] | None,
        conditions: str,
        args: Sequence[SQLValue],
    ) -> tuple[str, list[SQLValue]]:
        match = _expression(
            terms, rooms, " & ", " | ", lambda key, more: f"'{key}'{':*' if more else ''}"
        )
        sequences, sequence_args = _sequences(terms, "strpos")
        # the index is read before anything is sorted: else PostgreSQL may prefer to go through all
        # rows in their order
        sql = (
            f"WITH found AS MATERIALIZED (SELECT * FROM searchable_events WHERE {_VECTOR} @@ ?::tsquery)"
            f" SELECT {columns} FROM found AS s WHERE TRUE{sequences}{conditions}"
        )
        return sql.replace("{nid}", "s.event_nid"), [match, *sequence_args, *args]


def make_text_index(engine: str) -> TextIndex:
    """The one of this database."""
    return SQLiteTextIndex() if engine == "sqlite" else PostgresTextIndex()


def _total_changes(txn: WriteTransaction) -> int:
    row = txn.query_one("SELECT total_changes()")
    assert row is not None
    return int(row[0])


def _keyed(text: IndexedText) -> str:
    return f"{text.words}{ROOM_MARK}{text.room_nid}"


def _expression(
    terms: Sequence[Term],
    rooms: Collection[int] | None,
    both: str,
    either: str,
    spell: Callable[[str, bool], str],
) -> str:
    """What the index is asked, in the language of the database. The keys of a sequence are all to
    be in the text."""
    asked = [
        [
            both.join(spell(_checked(key), term.is_prefix) for key in keys)
            for keys in term.alternatives
        ]
        for term in terms
    ]
    if rooms is not None and len(rooms) <= MOST_ROOM_KEYS:
        asked.append([spell(f"{ROOM_MARK}{room_nid}", False) for room_nid in rooms])
    return both.join(
        f"({either.join(f'({each})' for each in alternatives)})" for alternatives in asked
    )


def _checked(key: str) -> str:
    if not key or any(sign in key for sign in "\"'\\ ") or ROOM_MARK in key:
        raise ValueError(f"not a key: {key!r}")
    return key


def _sequences(terms: Sequence[Term], find: str) -> tuple[str, list[SQLValue]]:
    """The condition that keys follow each other, where a term says so."""
    conditions, args = "", list[SQLValue]()
    for term in terms:
        if any(len(keys) > 1 for keys in term.alternatives):
            conditions += (
                f" AND ({' OR '.join([f'{find}(s.words, ?) > 0'] * len(term.alternatives))})"
            )
            args += [f" {' '.join(keys)} " for keys in term.alternatives]
    return conditions, args
