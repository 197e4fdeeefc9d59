"""Past memberships: a partial join writes the current state again, and past stays keep their
positions."""

from itertools import count

import pytest

from storage.engine.database import Database
from storage.persist.state_effects import StateEffect, apply_effects
from storage.rooms.memberships import MembershipRow, MembershipStore, NewMembership
from tests.helpers.query_plans import record_plans

ALICE, ROOM = "@alice:example.org", 1


async def test_a_membership_keeps_the_positions_of_its_stay(database: Database) -> None:
    store = MembershipStore(database)
    nids = count(1)

    async def become(*memberships: str, is_local: bool = True) -> tuple[int | None, int | None]:
        """Set memberships in one write. Return where the current stay began, and where the last one
        ended. Positions are ten times the numbers."""
        effects = []
        for membership in memberships:
            nid = next(nids)
            effect = StateEffect(NewMembership(ALICE, membership, ALICE, is_local, None, None))
            effects.append((nid, 10 * nid, effect))
        await database.write("become", apply_effects, ROOM, effects)
        row = await store.get_membership(ROOM, ALICE)
        assert row is not None
        return row.joined_position, row.left_position

    assert await become("invite") == (None, None)
    assert await become("join") == (20, None)
    assert await become("join") == (20, None)
    assert await become("leave", "join") == (50, None)
    assert await become("join", "ban") == (None, 70)
    assert await become("leave") == (None, 70)
    assert await become("invite", "join", "join") == (100, None)
    assert await become("join", is_local=False) == (None, None)


@pytest.mark.parametrize("membership", ["leave", "ban"])
async def test_writing_a_membership_again_changes_nothing(
    database: Database, membership: str
) -> None:
    store = MembershipStore(database)

    async def become(membership: str, nid: int, position: int) -> MembershipRow | None:
        effect = StateEffect(NewMembership(ALICE, membership, ALICE, True, None, None))
        await database.write("become", apply_effects, ROOM, [(nid, position, effect)])
        return await store.get_membership(ROOM, ALICE)

    await become("join", 1, 10)
    left = await become(membership, 2, 20)
    assert left is not None
    assert (left.position, left.left_position, left.forgotten) == (20, 20, False)
    await store.set_forgotten(ROOM, ALICE)

    repeated = await become(membership, 2, 30)

    assert repeated is not None
    assert (repeated.position, repeated.left_position, repeated.forgotten) == (20, 20, True)
    changed = await become(membership, 3, 40)
    assert changed is not None
    assert (changed.position, changed.forgotten) == (40, False)


@pytest.mark.parametrize("membership", ["invite", "knock", "join"])
async def test_a_user_who_rejoined_meanwhile_has_not_forgotten_the_room(
    database: Database, membership: str
) -> None:
    store = MembershipStore(database)
    for nid, each in enumerate(("join", "leave", membership), 1):
        effect = StateEffect(NewMembership(ALICE, each, ALICE, True, None, None))
        await database.write("become", apply_effects, ROOM, [(nid, nid, effect)])
    await store.set_forgotten(ROOM, ALICE)
    row = await store.get_membership(ROOM, ALICE)
    assert row is not None
    assert (row.membership, row.forgotten) == (membership, False)


@pytest.mark.parametrize("room_nid", [None, ROOM])
async def test_disallowed_guests_are_searched_among_guests(
    database: Database, monkeypatch: pytest.MonkeyPatch, room_nid: int | None
) -> None:
    plans = record_plans(database, monkeypatch)
    assert await MembershipStore(database).get_disallowed_guests(10, room_nid) == []
    if database.engine.name == "sqlite":  # PostgreSQL decides by its statistics
        assert [plan for plan in plans if "accounts_guests" in plan], plans
        assert not [plan for plan in plans if "SEARCH" not in plan], (
            "every table is searched by an index, and nothing is sorted"
        )
