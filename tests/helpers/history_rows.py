"""Rows of rooms and events, for tests of purges."""

from storage.engine.database import Transaction, WriteTransaction
from storage.events.events import EventFlag
from storage.events.relations import Relation, RelationRow, add_relations
from storage.push.event_push_actions import add_outcomes

OWN, ALICE, BOB = "example.org", "@alice:example.org", "@bob:example.org"
DAY = 86_400_000
NOW = 1000 * DAY
SHOWN = EventFlag.TIMELINE


def add_event(
    txn: WriteTransaction, nid: int, *, room: int = 1, state: str | None = None, flags: int = SHOWN
) -> None:
    """Insert an event whose depth, position and time are its number."""
    txn.execute(
        "INSERT INTO events (event_nid, room_nid, position, depth, origin_server_ts, flags,"
        " event_id, type, state_key, sender,"
        " pdu, thread_root) VALUES (?, ?, ?, ?, ?, ?, ?, 'm.room.message', ?, ?, ?, '$1')",
        (
            nid,
            room,
            nid,
            nid,
            nid,
            flags,
            f"${nid}",
            state,
            ALICE,
            b'{"content":{"url":"mxc://example.org/x%d"}}' % nid,
        ),
    )


def add_room(txn: WriteTransaction, nid: int = 1) -> None:
    """Insert a room with two members."""
    txn.execute(
        "INSERT INTO rooms (room_nid, room_id, version, head_version, extremities, depth,"
        " creation_ts)"
        " VALUES (?, ?, '11', 1, '[]', 1, 1)",
        (nid, f"!{nid}:example.org"),
    )
    for user_id in (ALICE, BOB):
        txn.execute(
            "INSERT INTO memberships (room_nid, user_id, membership, event_nid, sender,"
            " position, is_local)"
            " VALUES (?, ?, 'join', 1, ?, 1, 1)",
            (nid, user_id, user_id),
        )


def insert_history(txn: WriteTransaction) -> None:
    """Insert two rooms: one with ten events, of which the even ones are state, and one with one
    event."""
    add_room(txn)
    add_room(txn, 2)
    for nid in range(1, 11):
        add_event(
            txn,
            nid,
            state=None if nid % 2 else f"s{nid}",
            flags=SHOWN | (0 if nid % 2 == 0 else 8 | 64),
        )
    add_event(txn, 11, room=2)
    add_outcomes(txn, [(user_id, 1, nid, nid, 3) for user_id in (ALICE, BOB) for nid in (1, 3, 5)])
    child = RelationRow(Relation("m.thread", "$1"), 3, "$3", 1, 3, "m.room.message", ALICE, 3)
    add_relations(txn, [child])
    txn.allocate("event", 11)
    txn.next_position(11)


def pruned_pdus(*nids: int) -> dict[int, bytes]:
    """Return the stored content of purged events."""
    return dict.fromkeys(nids, b'{"content":{}}')


def select_rows(txn: Transaction, sql: str) -> list[tuple[object, ...]]:
    """Return the rows of a query."""
    return [tuple(row) for row in txn.query(sql)]
