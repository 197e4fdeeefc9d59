"""Summaries of rooms: the data that the room directory shows, and that clients need to name a room.

This module also searches the directory. The write that changes a room's state also updates its
summary.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.interface import Row, SQLValue
from storage.engine.transaction import Transaction, WriteTransaction
from storage.rooms.memberships import MembershipRow, select_first_members


class SummaryRow(msgspec.Struct, frozen=True, gc=False):
    """A room as a directory shows it."""

    room_nid: int
    room_id: str
    version: str
    joined_count: int
    name: str | None
    topic: str | None
    canonical_alias: str | None
    avatar_url: str | None
    join_rule: str | None
    history_visibility: str | None
    guest_access: str | None
    room_type: str | None
    encryption: str | None
    federates: bool
    allowed_rooms: Sequence[str]
    """The rooms whose members a restricted join rule lets in."""


class RoomNaming(msgspec.Struct, frozen=True, gc=False):
    """The data from which clients name a room: its name or alias, or else some of its members."""

    name: str | None
    canonical_alias: str | None
    joined_count: int
    invited_count: int
    heroes: Sequence[MembershipRow]
    """For a room without name and alias: the first few other joined or invited members, or else
    former members."""


SUMMARY_COLUMNS = frozenset(
    {
        "name",
        "topic",
        "canonical_alias",
        "avatar_url",
        "join_rule",
        "history_visibility",
        "guest_access",
        "room_type",
        "encryption",
        "federates",
        "allowed_rooms",
    }
)
"""The columns that a state event may set."""

SEARCH_BATCH = 500
INLINE_ROOMS = 20
"""At most this many rooms are read on the calling thread, if the database allows that: the first
window of a sliding sync client has as many."""

_COLUMNS = (
    "r.room_nid, r.room_id, r.version, r.joined_count, s.name, s.topic, s.canonical_alias,"
    " s.avatar_url, s.join_rule,"
    " s.history_visibility, s.guest_access, s.room_type, s.encryption, s.federates, s.allowed_rooms"
)
_FROM = "FROM rooms AS r JOIN room_summaries AS s ON s.room_nid = r.room_nid"


class RoomSummaryStore:
    """Reads the table `room_summaries`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_namings(
        self, user_id: str, room_nids: Iterable[int], heroes: int
    ) -> Mapping[int, RoomNaming]:
        """Return for each room the data that names it to the user, with at most `heroes` heroes."""
        nids = list(room_nids)
        read = self._database.read_quickly if len(nids) <= INLINE_ROOMS else self._database.read
        return await read("get_rosters", _select_namings, user_id, nids, heroes)

    async def get_summaries(self, room_nids: Iterable[int]) -> Mapping[int, SummaryRow]:
        """Return summaries by room."""
        return await self._database.read("get_summaries", _select_summaries, list(room_nids))

    async def get_summaries_by_id(self, room_ids: Iterable[str]) -> Mapping[str, SummaryRow]:
        """Return summaries of known rooms by ID."""
        return await self._database.read(
            "get_summaries_by_id", _select_summaries_by_id, list(room_ids)
        )

    async def get_public_rooms(
        self,
        *,
        term: str | None,
        room_types: Iterable[str | None] | None,
        before: tuple[int, int] | None,
        limit: int,
        only_federating: bool,
        after: tuple[int, int] | None = None,
        made_by: str | None = None,
    ) -> list[SummaryRow]:
        """Return a page of this server's public directory, the largest rooms first.

        `made_by`: a shadow-banned user, who also sees their own changes of the directory
        (`shadow_room_listings`).

        `term` is a case-insensitive search in name, topic and alias. `room_types` None means all
        types; a None in it means rooms without a type. `before` is (joined_count, room_nid) of the
        last room of the previous page. `after` is that of the first room of the following page, to
        page backwards.
        """
        types = None if room_types is None else list(room_types)
        return await self._database.read(
            "get_public_rooms",
            _select_public,
            term,
            types,
            before,
            after,
            limit,
            only_federating,
            made_by,
        )

    async def count_public_rooms(self, made_by: str | None = None) -> int:
        """Count the rooms in this server's public directory. `made_by`: as in
        `get_public_rooms`."""
        return await self._database.read("count_public_rooms", _count_public, made_by)


def set_summary_fields(
    txn: WriteTransaction, room_nid: int, fields: Mapping[str, SQLValue]
) -> None:
    """Set some columns of a room's summary. Raises ValueError for an unknown column."""
    if unknown := fields.keys() - SUMMARY_COLUMNS:
        raise ValueError(f"not columns of room_summaries: {sorted(unknown)}")
    names = sorted(fields)
    assignments = ", ".join(f"{name} = ?" for name in names)
    txn.execute_later(
        f"UPDATE room_summaries SET {assignments} WHERE room_nid = ?",
        (*(fields[name] for name in names), room_nid),
    )


def _row(row: Row) -> SummaryRow:
    *fields, federates, allowed = row
    columns = (
        *fields,
        bool(federates),
        () if allowed is None else tuple(msgspec.json.decode(allowed)),
    )
    return SummaryRow(*columns)


def _select_summaries(txn: Transaction, room_nids: list[int]) -> dict[int, SummaryRow]:
    rows = txn.query_in(f"SELECT {_COLUMNS} {_FROM} WHERE r.room_nid IN {{keys}}", room_nids)
    return {row[0]: _row(row) for row in rows}


def _select_summaries_by_id(txn: Transaction, room_ids: list[str]) -> dict[str, SummaryRow]:
    rows = txn.query_in(f"SELECT {_COLUMNS} {_FROM} WHERE r.room_id IN {{keys}}", room_ids)
    return {row[1]: _row(row) for row in rows}


def _select_public(
    txn: Transaction,
    term: str | None,
    room_types: list[str | None] | None,
    before: tuple[int, int] | None,
    after: tuple[int, int] | None,
    limit: int,
    only_federating: bool,
    made_by: str | None,
) -> list[SummaryRow]:
    is_listed, args = _listed(made_by)
    conditions = [is_listed, "r.joined_count > 0"]
    if only_federating:
        conditions.append("s.federates = 1")
    if room_types is not None:
        named = [room_type for room_type in room_types if room_type is not None]
        choices = ["s.room_type IS NULL"] if None in room_types else []
        if named:
            choices.append(f"s.room_type IN ({', '.join('?' * len(named))})")
            args += named
        conditions.append("(" + " OR ".join(choices or ["1 = 0"]) + ")")
    # no database folds the case of all scripts (SQLite never, PostgreSQL by its locale), so the
    # term is matched in Python
    folded_term = term.casefold() if term else None
    page_size = limit if folded_term is None else max(limit, SEARCH_BATCH)
    last, side, order = (before, "<", "DESC") if after is None else (after, ">", "ASC")
    found: list[SummaryRow] = []
    while len(found) < limit:
        bound = [] if last is None else [f"(r.joined_count, r.room_nid) {side} (?, ?)"]
        rows = txn.query(
            f"SELECT {_COLUMNS} {_FROM} WHERE {' AND '.join(conditions + bound)}"
            f" ORDER BY r.joined_count {order}, r.room_nid {order} LIMIT ?",
            (*args, *(last or ()), page_size),
        )
        summaries = [_row(row) for row in rows]
        found += [row for row in summaries if folded_term is None or _matches(row, folded_term)]
        if len(rows) < page_size:
            break
        last = (summaries[-1].joined_count, summaries[-1].room_nid)
    del found[limit:]
    return found if after is None else found[::-1]


def _matches(row: SummaryRow, folded_term: str) -> bool:
    return any(
        text is not None and folded_term in text.casefold()
        for text in (row.name, row.topic, row.canonical_alias)
    )


def _listed(made_by: str | None) -> tuple[str, list[SQLValue]]:
    """Return the SQL condition that a room is in the directory, and its arguments."""
    if made_by is None:
        return "r.is_public = 1", []
    made = "SELECT u.room_nid FROM shadow_room_listings u WHERE u.user_id = ? AND u.is_public ="
    return f"(r.is_public = 1 OR r.room_nid IN ({made} 1)) AND r.room_nid NOT IN ({made} 0)", [
        made_by,
        made_by,
    ]


def _count_public(txn: Transaction, made_by: str | None) -> int:
    is_listed, args = _listed(made_by)
    row = txn.query_one(
        f"SELECT count(*) FROM rooms AS r WHERE {is_listed} AND r.joined_count > 0", args
    )
    assert row is not None
    count: int = row[0]
    return count


def _select_namings(
    txn: Transaction, user_id: str, room_nids: list[int], limit: int
) -> dict[int, RoomNaming]:
    rows = txn.query_in(
        "SELECT r.room_nid, s.name, s.canonical_alias, r.joined_count, r.invited_count"
        " FROM rooms AS r JOIN room_summaries AS s ON s.room_nid = r.room_nid"
        " WHERE r.room_nid IN {keys}",
        room_nids,
    )
    nameless = [room_nid for room_nid, name, alias, _, _ in rows if not name and not alias]
    heroes = _select_heroes(txn, user_id, nameless, ("join", "invite"), limit)
    without_members = [room_nid for room_nid in nameless if not heroes[room_nid]]
    heroes |= _select_heroes(txn, user_id, without_members, ("leave", "ban"), limit)
    return {
        room_nid: RoomNaming(name, alias, joined, invited, heroes.get(room_nid, ()))
        for room_nid, name, alias, joined, invited in rows
    }


def _select_heroes(
    txn: Transaction, user_id: str, room_nids: list[int], memberships: tuple[str, str], limit: int
) -> dict[int, list[MembershipRow]]:
    first = select_first_members(txn, room_nids, memberships, limit + 1)
    return {
        room_nid: sorted(
            (row for row in rows if row.user_id != user_id), key=lambda row: row.event_nid
        )[:limit]
        for room_nid, rows in first.items()
    }
