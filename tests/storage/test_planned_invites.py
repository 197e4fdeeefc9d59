"""Invites that are still to be sent: in their order, each by one doer, until they are done."""

from storage.database import Database
from storage.planned_invites import PlannedInvite, PlannedInviteStore, add_planned_invites


def invite(user_id: str) -> PlannedInvite:
    return PlannedInvite(user_id, "@a:here", b'{"membership":"invite"}')


async def plan(database: Database, room_nid: int, users: list[str], due_ts: int) -> None:
    await database.write("plan", add_planned_invites, room_nid, users, "@a:here", b'{"membership":"invite"}', due_ts)


async def test_one_after_the_other(database: Database) -> None:
    store = PlannedInviteStore(database)
    await plan(database, 1, ["@z:there", "@b:there"], 100)
    await plan(database, 2, ["@z:there"], 100)
    assert await store.go_on(1, None, 200) == invite("@z:there")
    assert await store.go_on(1, None, 200) == invite("@z:there")
    assert await store.go_on(1, "@z:there", 200) == invite("@b:there")
    assert await store.go_on(1, "@b:there", 200) is None
    assert await store.go_on(2, None, 200) == invite("@z:there")


async def test_who_is_at_it_has_a_room_to_themselves(database: Database) -> None:
    store = PlannedInviteStore(database)
    for room_nid, due in ((1, 100), (2, 90), (3, 100)):
        await plan(database, room_nid, ["@z:there", "@b:there"], due)
    assert await store.take_due(89, 1000, 9) == []
    assert await store.take_due(100, 300, 2) == [2, 1]
    assert await store.take_due(100, 300, 9) == [3]
    await store.go_on(1, "@z:there", 500)
    assert await store.take_due(300, 600, 9) == [2, 3]
    assert await store.take_due(500, 700, 9) == [1]
    await store.go_on(1, "@b:there", 700)
    assert await store.take_due(10_000, 20_000, 9) == [2, 3]
