"""Changes of rooms by shadow-banned users, which only they see."""

from storage.directory.aliases import AliasRow, AliasStore
from storage.directory.shadow_ban import ShadowRoomStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms.rooms import add_room, set_public
from storage.rooms.summaries import RoomSummaryStore

MALLORY, EVE = "@mallory:example.org", "@eve:example.org"


async def make_rooms(database: Database) -> list[int]:
    """Create three rooms with a member. The first is in the room directory."""

    def write(txn: WriteTransaction) -> list[int]:
        nids = [add_room(txn, f"!{name}:example.org", "10", 1)[0].room_nid for name in "abc"]
        txn.execute("UPDATE rooms SET joined_count = 1", ())
        set_public(txn, nids[0], True)
        return nids

    return await database.write("t", write)


async def test_directory_changes_are_visible_to_their_user_only(database: Database) -> None:
    store, summaries = ShadowRoomStore(database), RoomSummaryStore(database)
    first, second, third = await make_rooms(database)

    async def listed(made_by: str | None, limit: int = 10) -> list[int]:
        rows = await summaries.get_public_rooms(
            term=None,
            room_types=None,
            before=None,
            limit=limit,
            only_federating=False,
            made_by=made_by,
        )
        if limit == 10:
            assert await summaries.count_public_rooms(made_by) == len(rows)
        return [row.room_nid for row in rows]

    await database.write("t", store.set_listing, MALLORY, first, False)
    await database.write("t", store.set_listing, MALLORY, second, True)
    await database.write("t", store.set_listing, MALLORY, third, True)
    assert (await listed(MALLORY), await listed(MALLORY, 1)) == ([third, second], [third])
    assert await listed(EVE) == await listed(None) == [first]
    await database.write("t", store.set_listing, MALLORY, third, False)
    assert await listed(MALLORY) == [second]
    assert await store.get_listings(MALLORY, [first, second, third, 99]) == {
        first: False,
        second: True,
        third: False,
    }
    assert await store.get_listings(EVE, [first, second]) == {}


async def test_alias_and_upgrade_changes_are_visible_to_their_user_only(database: Database) -> None:
    store, aliases = ShadowRoomStore(database), AliasStore(database)
    first, second, _ = await make_rooms(database)
    for number, alias in enumerate(("#b:example.org", "#a:example.org", "#c:example.org")):
        await aliases.add_alias(AliasRow(alias, first, EVE, number))
        await database.write("t", store.set_alias, MALLORY, alias, second)
    await database.write("t", store.set_alias, MALLORY, "#c:example.org", None)
    names = ["#a:example.org", "#c:example.org", "#d:example.org"]
    assert await store.get_aliases(MALLORY, names) == {
        "#a:example.org": second,
        "#c:example.org": None,
    }
    assert await store.get_aliases(EVE, names) == {}
    assert await store.get_aliases_of_room(MALLORY, second) == ["#b:example.org", "#a:example.org"]
    assert await store.get_aliases_of_room(MALLORY, first) == []
    await aliases.remove_alias("#a:example.org")  # for all users, by another user
    assert await store.get_aliases_of_room(MALLORY, second) == ["#b:example.org"]
    await database.write("t", store.set_successor, MALLORY, first, 7)
    await database.write("t", store.set_successor, MALLORY, first, second)
    assert (await store.get_successor(MALLORY, first), await store.get_successor(EVE, first)) == (
        second,
        None,
    )
    await database.write("t", store.remove_user, MALLORY)
    assert await store.get_successor(MALLORY, first) is None
    assert await store.get_aliases(MALLORY, names) == {}
