"""Invites that are still to be sent: in order, each by one node, until they are sent."""

from storage.engine.database import Database
from storage.engine.transaction import Transaction
from storage.rooms.pending_invites import PendingInvite, PendingInviteStore, add_pending_invites


def invite(user_id: str) -> PendingInvite:
    return PendingInvite(user_id, "@a:here", b'{"membership":"invite"}')


async def plan(database: Database, room_nid: int, users: list[str], held_until: int) -> None:
    await database.write(
        "plan", add_pending_invites, room_nid, [invite(user) for user in users], held_until
    )


async def test_invites_are_sent_in_order(database: Database) -> None:
    store = PendingInviteStore(database)
    await plan(database, 1, ["@z:there", "@b:there", "@c:there"], 100)
    await plan(database, 2, ["@z:there"], 100)
    assert await store.advance(1, "@z:there", "@b:there", 100, 150)
    assert await store.lease_due(100, 200, 9) == {2: [invite("@z:there")]}
    assert await store.lease_due(150, 250, 9) == {1: [invite("@b:there"), invite("@c:there")]}
    assert await store.advance(1, "@b:there", "@c:there", 250, 300)
    assert await store.advance(1, "@c:there", None, 300, 400)
    assert await store.lease_due(10_000, 20_000, 9) == {2: [invite("@z:there")]}


async def test_a_leased_room_is_not_due_for_others(database: Database) -> None:
    store = PendingInviteStore(database)
    for room_nid, due in ((1, 100), (2, 90), (3, 100)):
        await plan(database, room_nid, ["@z:there", "@b:there"], due)
    assert await store.lease_due(89, 1000, 9) == {}
    assert list(await store.lease_due(100, 300, 2)) == [2, 1]
    assert list(await store.lease_due(100, 350, 9)) == [3]
    assert await store.advance(1, "@z:there", "@b:there", 300, 500)
    assert list(await store.lease_due(400, 600, 9)) == [2, 3]
    assert list(await store.lease_due(500, 700, 9)) == [1]


async def test_a_caller_whose_lease_expired_learns_that_it_was_lost(database: Database) -> None:
    store = PendingInviteStore(database)
    await plan(database, 1, ["@z:there", "@b:there"], 100)
    left = [invite("@z:there"), invite("@b:there")]
    assert await store.lease_due(100, 300, 9) == {1: left}
    assert not await store.advance(1, "@z:there", "@b:there", 100, 400)
    await store.end_lease(1, 100)
    assert await store.lease_due(299, 1000, 9) == {}
    assert await store.lease_due(300, 1000, 9) == {1: left}


async def test_a_released_room_is_due_at_once(database: Database) -> None:
    store = PendingInviteStore(database)
    await plan(database, 1, ["@z:there", "@b:there"], 100)
    await store.end_lease(1, 100)
    assert await store.lease_due(1, 200, 9) == {1: [invite("@z:there"), invite("@b:there")]}


async def test_sending_one_invite_rewrites_only_the_next(database: Database) -> None:
    def select(txn: Transaction) -> list[tuple[object, ...]]:
        return [
            tuple(row)
            for row in txn.query("SELECT user_id, due_ts FROM pending_invites ORDER BY ordinal")
        ]

    store = PendingInviteStore(database)
    await plan(database, 1, ["@a:there", "@b:there", "@c:there", "@d:there"], 100)
    before = await database.read("select", select)
    assert await store.advance(1, "@a:there", "@b:there", 100, 200)
    after = await database.read("select", select)
    assert after == [("@b:there", 200), *before[2:]]
