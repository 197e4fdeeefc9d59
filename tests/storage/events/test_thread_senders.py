"""Events per thread and sender are counted exactly, and reading a thread costs the same at any
length."""

from random import Random

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.relations import (
    THREAD,
    Children,
    Parent,
    Relation,
    RelationRow,
    RelationStore,
    add_relations,
    remove_relation,
    remove_relations,
)
from storage.events.timelines import TimelinePlace

SENDERS = ("@a:example.org", "@b:example.org")
END = TimelinePlace(2**53, 2**53)

_KEPT = (
    "SELECT target, room_nid, sender, count, depth, event_nid FROM thread_senders ORDER BY"
    " target, room_nid, sender"
)
_FOLLOWS = (
    "SELECT r.target, r.room_nid, r.sender, count(*),"
    " (SELECT n.depth FROM relations AS n WHERE n.target = r.target AND n.room_nid = r.room_nid AND"
    " n.sender = r.sender"
    " AND n.rel_type = 'm.thread' ORDER BY n.depth DESC, n.event_nid DESC LIMIT 1),"
    " (SELECT n.event_nid FROM relations AS n WHERE n.target = r.target AND n.room_nid = r.room_nid"
    " AND n.sender = r.sender"
    " AND n.rel_type = 'm.thread' ORDER BY n.depth DESC, n.event_nid DESC LIMIT 1)"
    " FROM relations AS r WHERE r.rel_type = 'm.thread' GROUP BY r.target, r.room_nid, r.sender"
    " ORDER BY r.target, r.room_nid, r.sender"
)


def reply(
    nid: int, target: str = "$0", depth: int | None = None, rel_type: str = THREAD
) -> RelationRow:
    sender = SENDERS[nid % len(SENDERS)]
    place = nid if depth is None else depth
    return RelationRow(
        Relation(rel_type, target),
        nid,
        f"${nid}",
        1 + nid % 3 // 2,
        place,
        "m.room.message",
        sender,
        nid,
    )


async def stored(database: Database) -> list[Row]:
    rows, follows = await database.read(
        "compare", lambda txn: (txn.query(_KEPT), txn.query(_FOLLOWS))
    )
    assert rows == follows
    return rows


async def test_duplicates_and_removals_are_counted_exactly(database: Database) -> None:
    later = [reply(nid, depth=9 - nid) for nid in range(8)]
    await database.write("add", add_relations, [*later, later[0], reply(8, rel_type="m.reference")])
    await database.write("add", add_relations, [later[1], reply(9, "$1")])
    assert [row[3] for row in await stored(database)] == [3, 3, 1, 1, 1]
    for nid in (
        0,
        9,
        9,
        8,
    ):  # the latest of somebody, the only one, what has gone already, and no reply
        await database.write("remove", remove_relation, nid)
        await stored(database)
    await database.write("remove", remove_relations, [1, 2, 3, 4])
    assert await stored(database)
    await database.write("remove", remove_relations, range(10))
    assert await stored(database) == []


async def test_counts_match_the_children_after_any_changes(database: Database) -> None:
    chance = Random(5)
    for _ in range(150):
        nids = [chance.randrange(13) for _ in range(chance.randrange(7))]
        if chance.random() < 0.6:
            rows = [reply(nid, f"${nid % 5 // 3}", nid % 4) for nid in nids]
            await database.write("add", add_relations, rows)
        else:
            await database.write("remove", remove_relations, nids)
        await stored(database)


async def test_a_long_thread_costs_no_more(sqlite_database: Database) -> None:
    """Counts steps of SQLite's virtual machine: ten replies take as many as thousands, also for the
    threads of a room."""
    database, steps = sqlite_database, [0]
    parents = [Parent(nid, f"$t{nid}", 1, "m.room.message", SENDERS[0]) for nid in (1, 2)]

    def fill(txn: WriteTransaction) -> None:
        for parent, size in zip(parents, (10, 3000), strict=True):
            first = parent.nid * 10_000
            add_relations(
                txn,
                [
                    RelationRow(
                        Relation(THREAD, parent.event_id),
                        nid,
                        f"${nid}",
                        1,
                        nid,
                        "m.room.message",
                        SENDERS[nid % 2],
                        nid,
                    )
                    for nid in range(first, first + size)
                ],
            )
            txn.execute(
                "INSERT INTO events (event_nid, event_id, room_nid, type, sender, depth,"
                " origin_server_ts, flags, pdu)"
                " VALUES (?, ?, 1, 'm.room.message', ?, 1, 1, 0, ?)",
                (parent.nid, parent.event_id, SENDERS[0], b"{}"),
            )

    await database.write("fill", fill)

    def count() -> int:
        steps[0] += 1
        return 0

    def listen(txn: Transaction) -> None:
        # private: only the connection of the sqlite3 module counts steps
        txn._connection._connection.set_progress_handler(count, 1)  # type: ignore[attr-defined]

    await database.read("listen", listen)
    store = RelationStore(database)

    async def cost(parent: Parent, replies: int, ignored: list[str]) -> int:
        steps[0] = 0
        assert await store.find_parents([parent.event_id]) == {parent.event_id: [THREAD]}
        ((children,),) = (
            await store.get_children([parent], {THREAD}, SENDERS[0], ignored)
        ).values()
        assert isinstance(children, Children)
        assert (children.count, children.has_own, len(children.nids)) == (
            replies,
            SENDERS[0] not in ignored,
            5,
        )
        return steps[0]

    await cost(parents[0], 10, [])  # reads the schema
    short = await cost(parents[0], 10, [])
    assert short > 0
    assert await cost(parents[1], 3000, []) < short + 10
    short = await cost(parents[0], 5, [SENDERS[1]])
    assert await cost(parents[1], 1500, [SENDERS[1]]) < short + 10
    steps[0] = 0
    threads = await store.get_threads(1, END, 10, SENDERS[0], [], participated=True)
    assert [root for _, root in threads] == [2, 1]
    assert 0 < steps[0] < 1000
