"""Events of other servers that wait, on both databases."""

from collections.abc import Sequence

from storage.database import Database
from storage.inbox import InboxFull, InboxStore, NewInboxRow, Places

PEER, OTHER = "peer.example", "other.example"
ROOM, SECOND, THIRD = 1, 2, 3


def rows(*names: str) -> Sequence[NewInboxRow]:
    return [NewInboxRow(name, b"{}") for name in names]


async def test_what_was_tried_least_comes_first(database: Database) -> None:
    store = InboxStore(database)
    await store.add(ROOM, PEER, rows("$a", "$b"), 10, is_unjudged=False)
    await store.add(ROOM, OTHER, rows("$b", "$c"), 20, is_unjudged=True)  # $b waits already
    await store.add(SECOND, PEER, rows("$d"), 30, is_unjudged=False)

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
    store = InboxStore(database, Places(all=6, unjudged=3, unjudged_of_room=2))

    async def is_full(room_nid: int, name: str, *, is_unjudged: bool, origin: str = PEER) -> bool:
        try:
            await store.add(room_nid, origin, rows(name), 10, is_unjudged=is_unjudged)
        except InboxFull:
            return True
        return False

    assert not await is_full(ROOM, "$a", is_unjudged=True)
    assert not await is_full(ROOM, "$b", is_unjudged=False)
    assert await is_full(ROOM, "$c", is_unjudged=False), "it counts like those that it follows"
    assert not await is_full(SECOND, "$d", is_unjudged=True)
    assert await is_full(SECOND, "$e", is_unjudged=True)
    for number in range(3):
        assert not await is_full(THIRD, f"${number}", is_unjudged=False)
    assert await is_full(THIRD, "$f", is_unjudged=False)
    assert not await is_full(ROOM, "$g", is_unjudged=True, origin=OTHER)

    await store.remove([row.inbox_nid for row in await store.get_of_room(ROOM, 2)])
    assert not await is_full(ROOM, "$c", is_unjudged=False)
