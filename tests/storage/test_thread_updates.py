"""What was said in threads, in a stretch of the sequence: on both databases, against the same done by hand."""

from random import Random

import pytest

from storage import transaction
from storage.database import Database
from storage.relations import REFERENCE, THREAD, Relation, RelationRow, add_relations
from storage.thread_updates import ThreadUpdateRow, ThreadUpdateStore
from storage.timelines import Place
from storage.transaction import WriteTransaction

PEOPLE = ("@alice:a.test", "@bob:a.test")


async def test_threads_of_a_stretch(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(7)
    said: list[
        tuple[int, int, int, str, str, str]
    ] = []  # room, position and number, depth, sender, root, kind of relation
    for position in range(1, 301):
        room = random.randrange(1, 6)
        kind = random.choice([THREAD, THREAD, REFERENCE])
        said.append((room, position, random.randrange(1, 50), random.choice(PEOPLE), f"${room}{position % 4}", kind))

    def write(txn: WriteTransaction) -> None:
        txn.execute_many(
            "INSERT INTO events (event_nid, event_id, room_nid, position, depth, type, sender, origin_server_ts, flags, pdu,"
            " thread_root) VALUES (?, ?, ?, ?, ?, 'm', ?, 0, 16, ?, ?)",
            [(at, f"${at}", room, at, depth, sender, b"{}", root) for room, at, depth, sender, root, _ in said],
        )
        add_relations(
            txn,
            [
                RelationRow(Relation(kind, root), at, f"${at}", room, depth, "m", sender, 0)
                for room, at, depth, sender, root, kind in said
            ],
        )

    await database.write("write", write)
    store = ThreadUpdateStore(database)

    def by_hand(rooms: set[int], after: int, upto: int, last: int, ignored: list[str]) -> list[ThreadUpdateRow]:
        found: dict[tuple[int, str], list[tuple[int, Place]]] = {}
        for room, at, depth, sender, root, kind in said:
            if room in rooms and after < at <= upto and sender not in ignored and kind == THREAD:
                found.setdefault((room, root), []).append((at, Place(depth, at)))
        rows = [
            ThreadUpdateRow(room, root, max(at for at, _ in events), max(place for _, place in events), len(events))
            for (room, root), events in found.items()
        ]
        return sorted((row for row in rows if row.position <= last), key=lambda row: -row.position)

    for chunk in (1000, 2):  # rooms are asked for in several queries
        monkeypatch.setattr(transaction, "LARGEST_CHUNK", chunk)
        for _ in range(30):
            rooms = set(random.sample(range(1, 8), random.randrange(1, 6)))
            after, upto = sorted(random.sample(range(301), 2))
            last, ignored = random.choice([upto, random.randrange(301)]), random.choice([[], [], [PEOPLE[0]]])
            rows = by_hand(rooms, after, upto, last, ignored)
            assert await store.get_updates(rooms, after, upto, last, 100, ignored) == rows
            assert await store.get_updates(rooms, after, upto, last, 3, ignored) == rows[:3]
