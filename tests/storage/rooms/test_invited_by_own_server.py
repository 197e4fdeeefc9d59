"""Users whom a local user has invited to a room that another user is in."""

import pytest

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms.memberships import MembershipStore
from tests.helpers.query_plans import record_plans

ALICE, DORA, EVE = "@alice:here.example", "@dora:here.example", "@eve:elsewhere.example"
GUESTS = [f"@guest{number}:elsewhere.example" for number in range(5)]


async def test_invites_by_local_users_are_found(database: Database) -> None:
    members = [
        (1, ALICE, "join", ALICE, 1),
        (1, DORA, "leave", DORA, 1),
        (1, EVE, "join", EVE, 0),
        (1, GUESTS[0], "invite", ALICE, 0),
        (1, GUESTS[1], "invite", DORA, 0),  # who has left since
        (1, GUESTS[2], "invite", EVE, 0),
        (1, GUESTS[3], "leave", ALICE, 0),
        (2, ALICE, "leave", ALICE, 1),
        (2, DORA, "join", DORA, 1),
        (2, GUESTS[4], "invite", DORA, 0),
    ]

    def write(txn: WriteTransaction) -> None:
        txn.execute_many(
            "INSERT INTO memberships (room_nid, user_id, membership, sender, is_local, event_nid,"
            " position)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(*member, number, number) for number, member in enumerate(members)],
        )

    await database.write("put", write)
    assert await MembershipStore(database).get_invited_by_own_server(ALICE, GUESTS) == {*GUESTS[:2]}


async def test_invites_are_searched_by_the_invited_users(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The query does not search each room of the user for each of the others, however many rooms
    there are."""
    plans = record_plans(sqlite_database, monkeypatch)
    assert await MembershipStore(sqlite_database).get_invited_by_own_server(ALICE, GUESTS) == set()
    assert plans
    assert all("memberships_by_user (user_id=? AND membership=?)" in step for step in plans), plans
