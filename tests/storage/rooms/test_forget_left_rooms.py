"""The job that forgets left rooms continues from its last run."""

import pytest

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms.memberships import MembershipStore
from tests.helpers.query_plans import record_plans


async def add(database: Database, *rows: tuple[int, str, str, int, int]) -> None:
    """Insert memberships: room, user, membership, position, whether the user is local."""

    def write(txn: WriteTransaction) -> None:
        txn.execute_many(
            "INSERT INTO memberships (room_nid, user_id, membership, event_nid, sender,"
            " position, is_local, forgotten)"
            " VALUES (?, ?, ?, ?, '@s:example.org', ?, ?, 0)",
            [
                (room, user, kind, position, position, is_local)
                for room, user, kind, position, is_local in rows
            ],
        )

    await database.write("add", write)


async def forgotten(database: Database) -> set[tuple[int, str]]:
    sql = "SELECT room_nid, user_id FROM memberships WHERE forgotten = 1"
    return {
        (room, user)
        for room, user in await database.read("forgotten", lambda txn: txn.query(sql, ()))
    }


async def test_left_rooms_and_only_these_are_forgotten_in_steps(
    database: Database,
) -> None:
    store = MembershipStore(database)
    await add(
        database,
        (1, "@a:example.org", "leave", 1, 1),
        (1, "@b:example.org", "join", 2, 1),
        (1, "@c:elsewhere.example", "leave", 3, 0),
        (2, "@a:example.org", "ban", 4, 1),
        (3, "@a:example.org", "invite", 5, 1),
        (4, "@a:example.org", "leave", 6, 1),
    )
    assert await store.forget_left_rooms(2) == 2
    assert await forgotten(database) == {(1, "@a:example.org"), (2, "@a:example.org")}
    assert await store.forget_left_rooms(2) == 1
    assert await store.forget_left_rooms(2) == 0
    assert await forgotten(database) == {
        (1, "@a:example.org"),
        (2, "@a:example.org"),
        (4, "@a:example.org"),
    }
    await add(database, (5, "@b:example.org", "leave", 9, 1))
    assert await store.forget_left_rooms(2) == 1
    assert (5, "@b:example.org") in await forgotten(database)


async def test_finished_departures_are_not_read_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        (room, f"@u{room}:example.org", "leave" if room % 9 else "join", room, 1)
        for room in range(1, 3000)
    ]
    await add(database, *rows)
    store = MembershipStore(database)
    while await store.forget_left_rooms(5000):
        pass
    await database.write("analyze", lambda txn: txn.execute("ANALYZE memberships"))
    plans = record_plans(database, monkeypatch)
    assert await store.forget_left_rooms(5000) == 0
    assert any("memberships_left" in plan for plan in plans)
    assert not any(
        "SCAN memberships" in plan or "Seq Scan on memberships" in plan for plan in plans
    )
