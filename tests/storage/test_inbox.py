"""Events of other servers that wait, on both databases."""

from collections.abc import Sequence

from storage.database import Database
from storage.inbox import InboxFull, InboxStore, NewInboxRow, Places

PEER, OTHER = "peer.example", "other.example"
JUDGE, SLOW = "judge.example", "slow.example"
ROOM, SECOND, THIRD, FOURTH, FIFTH = 1, 2, 3, 4, 5


def rows(*names: str) -> Sequence[NewInboxRow]:
    return [NewInboxRow(name, b"{}") for name in names]


async def test_what_was_tried_least_comes_first(database: Database) -> None:
    store = InboxStore(database)
    await store.add(ROOM, PEER, rows("$a", "$b"), 10, judge=None)
    await store.add(ROOM, OTHER, rows("$b", "$c"), 20, judge=JUDGE)  # $b waits already
    await store.add(SECOND, PEER, rows("$d"), 30, judge=None)

    first, second, third = await store.get_of_room(ROOM, 10)
    assert [(row.event_id, row.origin, row.received_ts) for row in (first, second, third)] == [
        ("$a", PEER, 10),
        ("$b", PEER, 10),
        ("$c", OTHER, 20),
    ]
    await store.note_attempt([first.inbox_nid])
    assert [row.event_id for row in await store.get_of_room(ROOM, 2)] == ["$b", "$c"]
    await store.remove([second.inbox_nid, third.inbox_nid])
    assert [(row.event_id, row.attempts) for row in await store.get_of_room(ROOM, 10)] == [("$a", 1)]
    assert await store.get_rooms() == [ROOM, SECOND]
    assert await store.count() == 2


async def test_each_server_has_places_and_fewer_of_them_for_what_is_not_judged(database: Database) -> None:
    store = InboxStore(database, Places(all=8, unjudged=5, unjudged_by_one=3, unjudged_of_room=2))

    async def is_full(
        room_nid: int, *names: str, judge: str | None = None, origin: str = PEER, is_naming: bool = False
    ) -> bool:
        new = [NewInboxRow(name, b"{}", is_naming) for name in names]
        try:
            await store.add(room_nid, origin, new, 10, judge=judge)
        except InboxFull:
            return True
        return False

    assert not await is_full(ROOM, "$a", judge=JUDGE)
    assert not await is_full(ROOM, "$b")
    assert await is_full(ROOM, "$c"), "it counts like those that it follows"
    assert not await is_full(ROOM, "$a", "$b"), "they wait already"
    assert not await is_full(SECOND, "$d", judge=JUDGE)
    assert await is_full(SECOND, "$e", judge=JUDGE)
    assert not await is_full(THIRD, "$f", "$g", judge=SLOW), "the other judge's places"
    assert await is_full(FOURTH, "$h", judge="third.example")
    assert not await is_full(ROOM, "$policy", is_naming=True), "it may end all the waiting"
    assert not await is_full(FIFTH, "$i", "$j")
    assert await is_full(FIFTH, "$k")
    assert await is_full(FIFTH, "$another", is_naming=True)
    assert not await is_full(FIFTH, "$i", "$j"), "they wait already"
    assert not await is_full(ROOM, "$l", judge=JUDGE, origin=OTHER)

    await store.remove([row.inbox_nid for row in await store.get_of_room(ROOM, 2)])
    assert not await is_full(ROOM, "$c")
