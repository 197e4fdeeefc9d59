"""Relations between events: the children of an event, their aggregations, the threads of rooms.

Laws:
- Each row of the table `relations` is a child that is in its room's timeline and not redacted. The
  row is written with the child, and removed when the child is redacted or purged.
- A child counts only for a parent in its own room. Readers compare the rooms.
- Readers also check whether the parent may have such a child, for example whether an edit has the
  same sender as the edited event. Writers cannot, because a child may arrive before its parent.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from functools import lru_cache

import msgspec

from storage.engine.database import Database
from storage.engine.interface import MAX_CHUNK, Row
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.thread_senders import add_senders, subtract_senders
from storage.events.timelines import Direction, TimelinePlace

REPLACE = "m.replace"
THREAD = "m.thread"
REFERENCE = "m.reference"
ANNOTATION = "m.annotation"

MAX_REFERENCES = 100
"""How many references are listed with an event, the oldest first."""
CANDIDATES = 5
"""How many of the latest children are searched for one that the reader may see."""
INLINE_EVENTS = 64
"""For up to so many events the children are read on the calling thread, on a database in the
process."""
_MAX_IGNORED = 500
_COUNTED = "count"
_AGGREGATED = (REFERENCE, REPLACE, THREAD)
"""The aggregated types of relations, in text order."""


class Relation(msgspec.Struct, frozen=True, gc=False):
    """The relation of an event to its parent."""

    rel_type: str
    target: str
    """The parent's ID."""
    annotation: str | None = None
    has_new_content: bool = True
    """False for a replacement without `m.new_content`."""


class RelationRow(msgspec.Struct, frozen=True, gc=False):
    """A stored child."""

    relation: Relation
    event_nid: int
    event_id: str
    room_nid: int
    depth: int
    type: str
    sender: str
    origin_server_ts: int


class Children(msgspec.Struct, frozen=True, gc=False):
    """The children of an event with one type of relation."""

    rel_type: str
    nids: Sequence[int]
    """For replacements and threads the latest few, latest first; for references the oldest."""
    count: int = 0
    """For a thread: the number of all children."""
    has_own: bool = False
    """For a thread: whether the reader sent one of them."""


class Parent(msgspec.Struct, frozen=True, gc=False):
    """An event whose children are requested."""

    nid: int
    event_id: str
    room_nid: int
    type: str
    sender: str


class RelationFilter(msgspec.Struct, frozen=True):
    """Selects children of an event."""

    rel_type: str | None = None
    type: str | None = None
    levels: int = 1
    """Children of children: up to so many steps from the event."""


class RelationStore:
    """Reads the table `relations`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_parents(self, event_ids: Collection[str]) -> Mapping[str, Sequence[str]]:
        """Return the types of children that `get_children` may find for these events; events
        without any are missing. One query."""
        read = (
            self._database.read_quickly
            if len(event_ids) <= INLINE_EVENTS
            else self._database.read_without_snapshot
        )
        return await read("have_children", _select_parents, event_ids)

    async def get_children(
        self,
        parents: Collection[Parent],
        rel_types: Set[str],
        reader: str,
        ignored: Collection[str],
        left_positions: Mapping[int, int] | None = None,
    ) -> Mapping[int, list[Children]]:
        """Return the valid replacements, threads and references of those events, limited to
        `rel_types` and without events of `ignored` senders.

        One query. Redacted events have no replacements. `left_positions`: the position, by event,
        at which the reader left its room; the result is then as of that position.
        """
        return await self._database.read_without_snapshot(  # an event may have many children
            "get_relation_children",
            _select_children,
            list(parents),
            rel_types,
            reader,
            list(ignored),
            left_positions,
        )

    async def get_page(
        self,
        room_nid: int,
        target: str,
        filter: RelationFilter,
        start: TimelinePlace,
        end: TimelinePlace | None,
        direction: Direction,
        limit: int,
    ) -> list[tuple[TimelinePlace, int]]:
        """Return children of an event from `start` on, no further than `end`: (place right after
        the child, its number)."""
        return await self._database.read(
            "get_relations_page",
            _select_page,
            room_nid,
            target,
            filter,
            start,
            end,
            direction,
            limit,
        )

    async def find_levels(
        self, room_nid: int, target: str, filter: RelationFilter, max_descendants: int
    ) -> int:
        """Return the number of steps from the event within which at most `max_descendants`
        descendants are found: at least one, no more than `filter.levels`.

        Each page of children of children is sorted again among all of them; this reads at most one
        too many.
        """
        return await self._database.read(
            "find_relation_levels", _find_levels, room_nid, target, filter, max_descendants
        )

    async def get_threads(
        self,
        room_nid: int,
        start: TimelinePlace,
        limit: int,
        reader: str,
        ignored: Collection[str],
        *,
        participated: bool,
        end: TimelinePlace | None = None,
    ) -> list[tuple[TimelinePlace, int]]:
        """Return threads of a room, the one with the latest event first: (place right after the
        latest event, number of the root).

        `participated` restricts them to threads in which the reader sent an event, the root
        included. With `end` the threads are as of that place.
        """
        return await self._database.read(
            "get_threads",
            _select_threads,
            room_nid,
            start,
            end,
            limit,
            reader,
            list(ignored),
            participated,
        )

    async def has_annotation(
        self, room_nid: int, target: str, type: str, sender: str, annotation: str
    ) -> bool:
        """Whether the sender has already annotated the event with that key, in an event of that
        type."""
        return await self._database.read_quickly(
            "has_annotation", _has_annotation, room_nid, target, type, sender, annotation
        )

    async def get_related(
        self,
        event_nids: Iterable[int],
        senders: Collection[str] | None,
        rel_types: Collection[str] | None,
    ) -> frozenset[int]:
        """Return those of the events that have a child by one of the senders and of one of the
        types, if these are given."""
        return await self._database.read_quickly(
            "get_related_events", _select_related, list(event_nids), senders, rel_types
        )


def add_relations(txn: WriteTransaction, rows: Iterable[RelationRow]) -> None:
    """Add children as they are stored."""
    children = {
        (row.relation.target, row.relation.rel_type, row.depth, row.event_nid): row for row in rows
    }
    add_senders(
        txn,
        [
            (target, row.room_nid, row.sender, depth, nid)
            for (target, rel_type, depth, nid), row in children.items()
            if rel_type == THREAD
        ],
    )
    txn.execute_many(
        "INSERT INTO relations (target, rel_type, depth, event_nid, event_id, room_nid, type,"
        " sender, origin_server_ts,"
        " annotation, has_new_content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        [
            (
                *key,
                row.event_id,
                row.room_nid,
                row.type,
                row.sender,
                row.origin_server_ts,
                row.relation.annotation,
                int(row.relation.has_new_content),
            )
            for key, row in children.items()
        ],
    )


def remove_relation(txn: WriteTransaction, event_nid: int) -> None:
    """Remove the relation of a redacted event."""
    remove_relations(txn, [event_nid])


def remove_relations(txn: WriteTransaction, event_nids: Iterable[int]) -> None:
    """Remove the relations of several redacted events."""
    nids = list(event_nids)
    thread_children = txn.query_in(
        "SELECT target, room_nid, sender, event_nid FROM relations"
        f" WHERE event_nid IN {{keys}} AND rel_type = '{THREAD}'",
        nids,
    )
    txn.execute_many("DELETE FROM relations WHERE event_nid = ?", [(nid,) for nid in nids])
    subtract_senders(txn, thread_children)


def _select_parents(txn: Transaction, event_ids: Collection[str]) -> Mapping[str, Sequence[str]]:
    # One index lookup per event, since most have no children: for any row between the first and the
    # last of these types. Each lookup is a scalar subquery, so PostgreSQL does not make a join over
    # all children of it. It is ordered, though one row is enough: otherwise PostgreSQL expects to
    # find one soon without an index.
    lookups = ", ".join(
        "(SELECT r.rel_type FROM relations AS r"
        f" WHERE r.target = w.event_id AND r.rel_type = '{rel_type}'"
        " ORDER BY r.depth LIMIT 1)"
        for rel_type in _AGGREGATED
    )
    rows = txn.query_with(
        "wanted",
        ["event_id"],
        [(event_id,) for event_id in event_ids],
        f"SELECT w.event_id, {lookups} FROM wanted AS w WHERE (SELECT 1 FROM relations AS r"
        " WHERE r.target = w.event_id"
        f" AND r.rel_type >= '{_AGGREGATED[0]}' AND r.rel_type <= '{_AGGREGATED[-1]}'"
        " ORDER BY r.rel_type LIMIT 1) = 1",
    )
    return {
        event_id: found
        for event_id, *types in rows
        if (found := [each for each in types if each is not None])
    }


def _select_children(
    txn: Transaction,
    parents: list[Parent],
    rel_types: Set[str],
    reader: str,
    ignored: list[str],
    left_positions: Mapping[int, int] | None,
) -> dict[int, list[Children]]:
    ignored_senders = ignored[:_MAX_IGNORED]
    rows: list[list[int | str]] = []
    for parent in parents:
        parent_args = (parent.event_id, parent.room_nid)
        until = () if left_positions is None else (left_positions[parent.nid],)
        row: list[int | str] = []
        if THREAD in rel_types:
            row += (*parent_args, *until, reader, *parent_args, *until)
        if REPLACE in rel_types:
            row += (*parent_args, parent.sender, parent.type, parent.nid, *until)
        if REFERENCE in rel_types:
            row += (*parent_args, *until)
        rows.append(row)
    sql = _children_sql(
        frozenset(rel_types), len(ignored_senders), until_left=left_positions is not None
    )
    found: dict[int, list[Children]] = {}
    for parent, children in zip(parents, txn.query_each(sql, rows, ignored_senders), strict=True):
        groups = _group(children)
        if groups:
            found[parent.nid] = groups
    return found


@lru_cache(maxsize=256)
def _children_sql(rel_types: frozenset[str], ignored_senders: int, *, until_left: bool) -> str:
    """Build the query: rows of relation type, number of the child, and sort values. With threads
    also one row of `_COUNTED`: the number of children, and whether the reader sent one of them.

    Each part reads a range of an index no longer than its result, plus the rows that are filtered
    out.
    """
    condition = " AND r.sender NOT IN (SELECT sender FROM unwanted)" if ignored_senders else ""
    if until_left:
        condition += (
            " AND EXISTS (SELECT 1 FROM events AS c WHERE c.event_nid = r.event_nid"
            " AND (c.position IS NULL OR c.position <= ?))"
        )
        count_source, count = f"relations AS r WHERE r.rel_type = '{THREAD}' AND", "count(*)"
    else:
        count_source, count = "thread_senders AS r WHERE", "CAST(sum(r.count) AS BIGINT)"
    # the plus makes databases go by the parent, along the key
    parts: list[str] = []
    if THREAD in rel_types:
        parts += (
            "SELECT r.rel_type, r.event_nid, r.depth, '' FROM relations AS r"
            f" WHERE r.target = ? AND r.rel_type = '{THREAD}' AND +r.room_nid = ?{condition}"
            f" ORDER BY r.depth DESC, r.event_nid DESC LIMIT {CANDIDATES}",
            f"SELECT '{_COUNTED}', {count}, max(CASE WHEN r.sender = ? THEN 1 ELSE 0 END), ''"
            f" FROM {count_source} r.target = ? AND r.room_nid = ?{condition}",
        )
    if REPLACE in rel_types:
        parts.append(
            "SELECT r.rel_type, r.event_nid, r.origin_server_ts, r.event_id FROM relations AS r"
            f" WHERE r.target = ? AND r.room_nid = ? AND r.rel_type = '{REPLACE}'"
            " AND r.has_new_content = 1"
            " AND r.sender = ? AND r.type = ?"
            " AND EXISTS (SELECT 1 FROM events AS p"
            f" WHERE p.event_nid = ? AND p.redacted_by IS NULL){condition}"
            f" ORDER BY r.origin_server_ts DESC, r.event_id DESC LIMIT {CANDIDATES}"
        )
    if REFERENCE in rel_types:
        parts.append(
            "SELECT r.rel_type, r.event_nid, r.depth, '' FROM relations AS r"
            f" WHERE r.target = ? AND r.rel_type = '{REFERENCE}' AND +r.room_nid = ?{condition}"
            f" ORDER BY r.depth, r.event_nid LIMIT {MAX_REFERENCES}"
        )
    with_clause = (
        f"WITH unwanted (sender) AS (VALUES {', '.join(['(?)'] * ignored_senders)}) "
        if ignored_senders
        else ""
    )
    return with_clause + " UNION ALL ".join(
        f"SELECT * FROM ({part}) AS part{at}" for at, part in enumerate(parts)
    )


def _group(rows: Iterable[Row]) -> list[Children]:
    kinds: dict[str, list[tuple[int, str, int]]] = {}
    for rel_type, number, first, second in rows:
        kinds.setdefault(rel_type, []).append((first, second, number))
    ((has_own, _, count),) = kinds.pop(_COUNTED, [(0, "", 0)])
    return [
        Children(
            rel_type,
            [nid for _, _, nid in sorted(position_args, reverse=rel_type != REFERENCE)],
            count if rel_type == THREAD else 0,
            rel_type == THREAD and bool(has_own),
        )
        for rel_type, position_args in kinds.items()
    ]


def _conditions(room_nid: int, filter: RelationFilter) -> tuple[str, list[int | str]]:
    """Return the SQL condition on children, as `r`, with its values."""
    # the plus keeps databases from searching all threads of the room: they must go by the parent
    conditions, args = "+r.room_nid = ?", list[int | str]([room_nid])
    for column, value in (("rel_type", filter.rel_type), ("type", filter.type)):
        if value is not None:
            conditions += f" AND r.{column} = ?"
            args.append(value)
    return conditions, args


def _find_levels(
    txn: Transaction, room_nid: int, target: str, filter: RelationFilter, max_descendants: int
) -> int:
    conditions, args = _conditions(room_nid, filter)
    sql = (
        f"SELECT r.event_id FROM relations AS r WHERE r.target IN {{keys}} AND {conditions} LIMIT ?"
    )
    parents, remaining = [target], max_descendants
    for level in range(filter.levels):
        children: list[str] = []
        for start in range(0, len(parents), MAX_CHUNK):
            chunk = parents[start : start + MAX_CHUNK]
            children += [
                row[0]
                for row in txn.query_in(sql, chunk, after=(*args, remaining + 1 - len(children)))
            ]
            if len(children) > remaining:
                return max(level, 1)
        parents, remaining = children, remaining - len(children)
    return filter.levels


def _select_page(
    txn: Transaction,
    room_nid: int,
    target: str,
    filter: RelationFilter,
    start: TimelinePlace,
    end: TimelinePlace | None,
    direction: Direction,
    limit: int,
) -> list[tuple[TimelinePlace, int]]:
    backwards = direction is Direction.BACKWARDS
    bounds, order = (
        ("(depth, event_nid) <= (?, ?)", "DESC")
        if backwards
        else ("(depth, event_nid) > (?, ?)", "ASC")
    )
    position_args = [start.depth, start.event_nid]
    if end is not None:
        bounds += f" AND (depth, event_nid) {'>' if backwards else '<='} (?, ?)"
        position_args += [end.depth, end.event_nid]
    ordered = f"ORDER BY depth {order}, event_nid {order} LIMIT ?"
    conditions, args = _conditions(room_nid, filter)
    if filter.levels == 1:
        sql = (
            "SELECT depth, event_nid FROM relations AS r"
            f" WHERE r.target = ? AND {conditions} AND {bounds} {ordered}"
        )
        rows = txn.query(sql, (target, *args, *position_args, limit))
    else:
        # CROSS JOIN makes SQLite go from parents to children, too
        rows = txn.query(
            "WITH RECURSIVE found (event_id, depth, event_nid, level) AS ("
            "SELECT r.event_id, r.depth, r.event_nid, 1 FROM relations AS r"
            f" WHERE r.target = ? AND {conditions}"
            " UNION SELECT r.event_id, r.depth, r.event_nid, f.level + 1 FROM found AS f"
            " CROSS JOIN relations AS r"
            f" WHERE r.target = f.event_id AND f.level < ? AND {conditions})"
            f" SELECT DISTINCT depth, event_nid FROM found WHERE {bounds} {ordered}",
            (target, *args, filter.levels, *args, *position_args, limit),
        )
    return [(TimelinePlace(depth, nid), nid) for depth, nid in rows]


def _select_threads(
    txn: Transaction,
    room_nid: int,
    start: TimelinePlace,
    end: TimelinePlace | None,
    limit: int,
    reader: str,
    ignored: list[str],
    participated: bool,
) -> list[tuple[TimelinePlace, int]]:
    ignored_senders = ignored[:_MAX_IGNORED]
    start = start if end is None else min(start, end)
    within = [] if end is None else [end.depth, end.event_nid]
    marks = ", ".join("?" * len(ignored_senders))
    # the latest event of each sender gives the current threads; former threads need all events
    table, thread_condition = (
        ("thread_senders", "")
        if end is None
        else ("relations", f" AND {{0}}.rel_type = '{THREAD}'")
    )
    # the plus keeps SQLite from searching the whole room for newer events: it must search those of
    # the thread
    sql = (
        f"SELECT r.depth, r.event_nid, p.event_nid FROM {table} AS r"
        " JOIN events AS p ON p.event_id = r.target AND p.room_nid = r.room_nid"
        f" WHERE r.room_nid = ?{thread_condition.format('r')} AND (r.depth, r.event_nid) <= (?, ?)"
        + (f" AND r.sender NOT IN ({marks})" if ignored_senders else "")
        + f" AND NOT EXISTS (SELECT 1 FROM {table} AS n WHERE n.target = r.target"
        f"{thread_condition.format('n')} AND +n.room_nid = r.room_nid"
        " AND (n.depth, n.event_nid) > (r.depth, r.event_nid)"
        + (" AND (n.depth, n.event_nid) <= (?, ?)" if within else "")
        + (f" AND n.sender NOT IN ({marks})" if ignored_senders else "")
        + ")"
    )
    args: list[int | str] = [
        room_nid,
        start.depth,
        start.event_nid,
        *ignored_senders,
        *within,
        *ignored_senders,
    ]
    if participated:
        sql += (
            f" AND (p.sender = ? OR EXISTS (SELECT 1 FROM {table} AS o WHERE o.target = r.target"
            f"{thread_condition.format('o')} AND o.room_nid = r.room_nid AND o.sender = ?"
            + (" AND (o.depth, o.event_nid) <= (?, ?)" if within else "")
            + "))"
        )
        args += [reader, reader, *within]
    rows = txn.query(sql + " ORDER BY r.depth DESC, r.event_nid DESC LIMIT ?", (*args, limit))
    return [(TimelinePlace(depth, nid), root) for depth, nid, root in rows]


def _has_annotation(
    txn: Transaction, room_nid: int, target: str, type: str, sender: str, annotation: str
) -> bool:
    row = txn.query_one(
        f"SELECT 1 FROM relations WHERE target = ? AND rel_type = '{ANNOTATION}' AND room_nid = ?"
        " AND type = ?"
        " AND sender = ? AND annotation = ? LIMIT 1",
        (target, room_nid, type, sender, annotation),
    )
    return row is not None


def _select_related(
    txn: Transaction,
    event_nids: list[int],
    senders: Collection[str] | None,
    rel_types: Collection[str] | None,
) -> frozenset[int]:
    conditions, args = "", list[str]()
    for column, values in (("sender", senders), ("rel_type", rel_types)):
        if values is not None:
            if not values:
                return frozenset()
            conditions += f" AND r.{column} IN ({', '.join('?' * len(values))})"
            args += values
    rows = txn.query_in(
        "SELECT DISTINCT p.event_nid FROM events AS p JOIN relations AS r ON r.target = p.event_id"
        " AND r.room_nid = p.room_nid WHERE p.event_nid IN {keys}" + conditions,
        event_nids,
        after=args,
    )
    return frozenset(nid for (nid,) in rows)
