"""Which event relates to which: children by their parents, summaries of them, the threads of rooms.

Laws:
- A row stands for a child that is in its room's timeline and not redacted; it is written with the event and goes with its
  redaction. An event without a relation costs nothing here.
- A child counts only for a parent in its own room: readers compare the rooms.
- What depends on the parent (may it be replaced by this?) is asked when reading, since children may come first.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from storage.database import Database
from storage.timelines import Direction, Place
from storage.transaction import Transaction, WriteTransaction

REPLACE = "m.replace"
THREAD = "m.thread"
REFERENCE = "m.reference"
ANNOTATION = "m.annotation"

MOST_REFERENCES = 100
"""How many of the events that refer to one are named with it, the oldest first."""
CANDIDATES = 5
"""How many of the latest children are looked at for one that the reader may see."""
_MOST_IGNORED = 500


class Relation(msgspec.Struct, frozen=True, gc=False):
    """What an event says of its parent."""

    rel_type: str
    target: str
    """The parent's id."""
    annotation: str | None = None
    is_whole: bool = True
    """False for a replacement without anything to put in the place of what it replaces."""


class RelationRow(msgspec.Struct, frozen=True, gc=False):
    """A child, as it is stored."""

    relation: Relation
    event_nid: int
    event_id: str
    room_nid: int
    depth: int
    type: str
    sender: str
    origin_server_ts: int


class Children(msgspec.Struct, frozen=True, gc=False):
    """The children that an event has of one type of relation."""

    rel_type: str
    count: int
    has_own: bool
    """The reader sent one of them."""
    nids: Sequence[int]
    """Of replacements and threads the latest few, latest first; of references the oldest."""


class Wanted(msgspec.Struct, frozen=True):
    """Which children of an event."""

    rel_type: str | None = None
    type: str | None = None
    levels: int = 1
    """Children of children: up to so many steps from the event."""


class RelationStore:
    """Readers of the table `relations`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_children(
        self, event_nids: Iterable[int], reader: str, ignored: Collection[str], *, until_left: bool = False
    ) -> Mapping[int, list[Children]]:
        """For those events that have valid replacements, threads or references, these; without what `ignored` sent.

        One query. Events that were redacted have no replacements. With `until_left` as it was when the reader's stay in the room
        ended.
        """
        return await self._database.read_once(  # the children of some may be many
            "get_relation_children", _select_children, list(event_nids), reader, list(ignored), until_left
        )

    async def have_children(self, event_ids: Iterable[str]) -> bool:
        """Whether any of these few events has children that `get_children` may find."""
        return await self._database.read_quickly("have_children", _select_whether_children, list(event_ids))

    async def get_page(
        self,
        room_nid: int,
        target: str,
        wanted: Wanted,
        start: Place,
        end: Place | None,
        direction: Direction,
        limit: int,
    ) -> list[tuple[Place, int]]:
        """Children of an event from `start` on, no further than `end`: (place right after the child, its number)."""
        return await self._database.read(
            "get_relations_page", _select_page, room_nid, target, wanted, start, end, direction, limit
        )

    async def get_threads(
        self,
        room_nid: int,
        start: Place,
        limit: int,
        reader: str,
        ignored: Collection[str],
        *,
        participated: bool,
        end: Place | None = None,
    ) -> list[tuple[Place, int]]:
        """Threads of a room, those with the latest events first: (place right after the latest event, number of the root).

        With `participated` only those in which the reader said something, the root included. With `end` they are the threads
        as they were there.
        """
        return await self._database.read(
            "get_threads", _select_threads, room_nid, start, end, limit, reader, list(ignored), participated
        )

    async def has_annotation(self, room_nid: int, target: str, type: str, sender: str, annotation: str) -> bool:
        """Whether the sender has said that of the event already, in an event of that type."""
        return await self._database.read_quickly(
            "has_annotation", _has_annotation, room_nid, target, type, sender, annotation
        )

    async def get_related(
        self, event_nids: Iterable[int], senders: Collection[str] | None, rel_types: Collection[str] | None
    ) -> frozenset[int]:
        """Those of the events that have a child by one of the senders and of one of the types, where these are given."""
        return await self._database.read_quickly("get_related", _select_related, list(event_nids), senders, rel_types)


def add_relations(txn: WriteTransaction, rows: Iterable[RelationRow]) -> None:
    """Note children, as they are stored."""
    txn.execute_many(
        "INSERT INTO relations (target, rel_type, depth, event_nid, event_id, room_nid, type, sender, origin_server_ts,"
        " annotation, is_whole) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            (
                row.relation.target,
                row.relation.rel_type,
                row.depth,
                row.event_nid,
                row.event_id,
                row.room_nid,
                row.type,
                row.sender,
                row.origin_server_ts,
                row.relation.annotation,
                int(row.relation.is_whole),
            )
            for row in rows
        ],
    )


def remove_relation(txn: WriteTransaction, event_nid: int) -> None:
    """A redacted event is nobody's child any more."""
    txn.execute("DELETE FROM relations WHERE event_nid = ?", (event_nid,))


def remove_relations(txn: WriteTransaction, event_nids: Iterable[int]) -> None:
    """The same for several."""
    txn.execute_many("DELETE FROM relations WHERE event_nid = ?", [(nid,) for nid in event_nids])


def _select_whether_children(txn: Transaction, event_ids: list[str]) -> bool:
    types = f"rel_type IN ('{REPLACE}', '{THREAD}', '{REFERENCE}')"
    return bool(txn.query_in(f"SELECT 1 FROM relations WHERE target IN {{keys}} AND {types} LIMIT 1", event_ids))


def _select_children(
    txn: Transaction, event_nids: list[int], reader: str, ignored: list[str], until_left: bool
) -> dict[int, list[Children]]:
    unwanted = ignored[:_MOST_IGNORED]
    of_group = "OVER (PARTITION BY p.event_nid, r.rel_type)"
    ranked = (
        "SELECT p.event_nid AS parent, r.rel_type AS rel_type, r.event_nid AS child,"
        f" count(*) {of_group} AS total,"
        f" max(CASE WHEN r.sender = ? THEN 1 ELSE 0 END) {of_group} AS own,"
        " row_number() OVER (PARTITION BY p.event_nid, r.rel_type ORDER BY"
        f" CASE r.rel_type WHEN '{REPLACE}' THEN -r.origin_server_ts WHEN '{REFERENCE}' THEN r.depth"
        " ELSE -r.depth END,"
        f" CASE r.rel_type WHEN '{REPLACE}' THEN r.event_id ELSE '' END DESC,"
        f" CASE r.rel_type WHEN '{REFERENCE}' THEN r.event_nid ELSE -r.event_nid END) AS place"
        " FROM events AS p JOIN relations AS r ON r.target = p.event_id AND r.room_nid = p.room_nid"
        f" AND r.rel_type IN ('{REPLACE}', '{THREAD}', '{REFERENCE}')"
        f" AND (r.rel_type <> '{REPLACE}' OR (r.is_whole = 1 AND r.sender = p.sender AND r.type = p.type"
        " AND p.redacted_by IS NULL))"
        + (f" AND r.sender NOT IN ({', '.join('?' * len(unwanted))})" if unwanted else "")
        + (
            " JOIN memberships AS m ON m.room_nid = p.room_nid AND m.user_id = ?"
            " JOIN events AS c ON c.event_nid = r.event_nid AND (c.position IS NULL OR c.position <= m.left_position)"
            if until_left
            else ""
        )
        + " WHERE p.state_key IS NULL AND p.event_nid IN {keys}"
    )
    rows = txn.query_in(
        f"SELECT parent, rel_type, child, total, own FROM ({ranked}) AS ranked"
        f" WHERE place <= CASE rel_type WHEN '{REFERENCE}' THEN {MOST_REFERENCES} ELSE {CANDIDATES} END"
        " ORDER BY parent, rel_type, place",
        event_nids,
        before=(reader, *unwanted, reader) if until_left else (reader, *unwanted),
    )
    found: dict[int, list[Children]] = {}
    nids: dict[tuple[int, str], list[int]] = {}
    for parent, rel_type, child, total, own in rows:
        if (parent, rel_type) not in nids:
            nids[parent, rel_type] = []
            found.setdefault(parent, []).append(Children(rel_type, total, bool(own), nids[parent, rel_type]))
        nids[parent, rel_type].append(child)
    return found


def _select_page(
    txn: Transaction,
    room_nid: int,
    target: str,
    wanted: Wanted,
    start: Place,
    end: Place | None,
    direction: Direction,
    limit: int,
) -> list[tuple[Place, int]]:
    # the plus keeps databases from looking for children among all threads of the room: they are to go by the parent
    conditions, args = "+r.room_nid = ?", list[int | str]([room_nid])
    for column, value in (("rel_type", wanted.rel_type), ("type", wanted.type)):
        if value is not None:
            conditions += f" AND r.{column} = ?"
            args.append(value)
    backwards = direction is Direction.BACKWARDS
    bounds, order = ("(depth, event_nid) <= (?, ?)", "DESC") if backwards else ("(depth, event_nid) > (?, ?)", "ASC")
    places = [start.depth, start.event_nid]
    if end is not None:
        bounds += f" AND (depth, event_nid) {'>' if backwards else '<='} (?, ?)"
        places += [end.depth, end.event_nid]
    ordered = f"ORDER BY depth {order}, event_nid {order} LIMIT ?"
    if wanted.levels == 1:
        sql = f"SELECT depth, event_nid FROM relations AS r WHERE r.target = ? AND {conditions} AND {bounds} {ordered}"
        rows = txn.query(sql, (target, *args, *places, limit))
    else:  # CROSS JOIN has SQLite go from parents to children, too
        rows = txn.query(
            "WITH RECURSIVE found (event_id, depth, event_nid, level) AS ("
            f"SELECT r.event_id, r.depth, r.event_nid, 1 FROM relations AS r WHERE r.target = ? AND {conditions}"
            " UNION SELECT r.event_id, r.depth, r.event_nid, f.level + 1 FROM found AS f CROSS JOIN relations AS r"
            f" WHERE r.target = f.event_id AND f.level < ? AND {conditions})"
            f" SELECT DISTINCT depth, event_nid FROM found WHERE {bounds} {ordered}",
            (target, *args, wanted.levels, *args, *places, limit),
        )
    return [(Place(depth, nid), nid) for depth, nid in rows]


def _select_threads(
    txn: Transaction,
    room_nid: int,
    start: Place,
    end: Place | None,
    limit: int,
    reader: str,
    ignored: list[str],
    participated: bool,
) -> list[tuple[Place, int]]:
    unwanted = ignored[:_MOST_IGNORED]
    start = start if end is None else min(start, end)
    within = [] if end is None else [end.depth, end.event_nid]
    marks = ", ".join("?" * len(unwanted))
    # the plus keeps SQLite from looking for newer events in the whole room: it is to look among those of the thread
    sql = (
        "SELECT r.depth, r.event_nid, p.event_nid FROM relations AS r"
        " JOIN events AS p ON p.event_id = r.target AND p.room_nid = r.room_nid"
        f" WHERE r.room_nid = ? AND r.rel_type = '{THREAD}' AND (r.depth, r.event_nid) <= (?, ?)"
        + (f" AND r.sender NOT IN ({marks})" if unwanted else "")
        + " AND NOT EXISTS (SELECT 1 FROM relations AS n WHERE n.target = r.target"
        f" AND n.rel_type = '{THREAD}' AND +n.room_nid = r.room_nid AND (n.depth, n.event_nid) > (r.depth, r.event_nid)"
        + (" AND (n.depth, n.event_nid) <= (?, ?)" if within else "")
        + (f" AND n.sender NOT IN ({marks})" if unwanted else "")
        + ")"
    )
    args: list[int | str] = [room_nid, start.depth, start.event_nid, *unwanted, *within, *unwanted]
    if participated:
        sql += (
            " AND (p.sender = ? OR EXISTS (SELECT 1 FROM relations AS o WHERE o.target = r.target"
            f" AND o.rel_type = '{THREAD}' AND o.room_nid = r.room_nid AND o.sender = ?"
            + (" AND (o.depth, o.event_nid) <= (?, ?)" if within else "")
            + "))"
        )
        args += [reader, reader, *within]
    rows = txn.query(sql + " ORDER BY r.depth DESC, r.event_nid DESC LIMIT ?", (*args, limit))
    return [(Place(depth, nid), root) for depth, nid, root in rows]


def _has_annotation(txn: Transaction, room_nid: int, target: str, type: str, sender: str, annotation: str) -> bool:
    row = txn.query_one(
        f"SELECT 1 FROM relations WHERE target = ? AND rel_type = '{ANNOTATION}' AND room_nid = ? AND type = ?"
        " AND sender = ? AND annotation = ? LIMIT 1",
        (target, room_nid, type, sender, annotation),
    )
    return row is not None


def _select_related(
    txn: Transaction, event_nids: list[int], senders: Collection[str] | None, rel_types: Collection[str] | None
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
