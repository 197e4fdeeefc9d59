"""Rows of copies of remote files, on both databases."""

from msgspec.structs import replace

from storage.engine.database import Database
from storage.media.content_uris import ContentURI
from storage.media.media import MediaContent, MediaRow, MediaStore
from storage.media.quarantine import QuarantineStore
from storage.media.remote_media import RemoteMediaRow, RemoteMediaStore
from storage.media.removal import MediaRemovalStore, RemovalReason
from storage.media.usage import MediaAmount, MediaUsageStore

NOW = 1_700_000_000_000
CONTENT = MediaContent(b"\x01" * 32, 7, "image/png", "a.png")
ROW = RemoteMediaRow("north.example", "abc", CONTENT, NOW, NOW, True)


async def test_a_copy_is_read_back_and_never_replaced(database: Database) -> None:
    store = RemoteMediaStore(database)
    assert await database.write("add", store.add_copy, ROW)
    assert not await database.write(
        "add", store.add_copy, replace(ROW, content=MediaContent(b"\x02" * 32, 1, "a/b", None))
    )
    assert await store.get_copy("north.example", "abc") == ROW
    assert await store.get_copy("south.example", "abc") is None
    assert await MediaStore(database).get_used_hashes([CONTENT.hash, b"\x02" * 32]) == {
        CONTENT.hash
    }


async def test_servers_with_the_largest_copies_come_first(database: Database) -> None:
    store, usage = RemoteMediaStore(database), MediaUsageStore(database=database, own="example.org")
    assert (await usage.get_of_server(10, 10)).servers == []
    for origin, media_id, size in (
        ("north.example", "a", 3),
        ("north.example", "b", 4),
        ("east.example", "a", 8),
    ):
        row = replace(ROW, origin=origin, media_id=media_id, content=replace(CONTENT, size=size))
        await database.write("add", store.add_copy, row)
    found = (await usage.get_of_server(10, 10)).servers
    assert found == [("east.example", MediaAmount(1, 8)), ("north.example", MediaAmount(2, 7))]
    assert (await usage.get_of_server(10, 1)).servers == found[:1]
    assert await usage.get_of_room("!x:example.org") is None


async def test_files_that_were_read_meanwhile_stay(database: Database) -> None:
    store = RemoteMediaStore(database)
    rows = [
        replace(ROW, media_id=name, content=replace(CONTENT, hash=name.encode() * 32))
        for name in "abcd"
    ]
    for row in rows:
        await database.write("add", store.add_copy, row)
    assert (
        await QuarantineStore(database=database, own="example.org").quarantine(
            [ContentURI("north.example", "d")], "@root:x"
        )
        == 1
    )
    own = MediaRow("own", "@alice:example.org", rows[1].content, NOW, None, NOW, True)
    await database.write("add", MediaStore(database).add_media, own)
    removal = MediaRemovalStore(database=database, own="example.org")
    found = await removal.get_unread(NOW + 1, 10, own=False)
    assert {each.address.media_id for each in found} == {"a", "b", "c"}
    await store.set_accessed("north.example", "c", NOW + 5)
    files = [each.address for each in found]
    removed = await database.write(
        "forget", removal.remove, files, RemovalReason.UNREAD, NOW + 9, unread_since=NOW + 1
    )
    assert removed.unused == {b"a" * 32}
    noted = await removal.get_deletions(None, 10)
    assert [(each.origin, each.media_id, each.reason, each.deleted_ts) for each in noted] == [
        ("north.example", "b", "unread", NOW + 9),
        ("north.example", "a", "unread", NOW + 9),
    ]
    left = [await store.get_copy("north.example", name) is not None for name in "abcd"]
    assert left == [False, False, True, True]


async def test_old_files_are_found_even_if_they_are_read(database: Database) -> None:
    store, media = RemoteMediaStore(database), MediaStore(database)
    for number, name in enumerate("abcd"):
        row = replace(ROW, media_id=name, created_ts=NOW + number, last_access_ts=NOW + 10 - number)
        await database.write("add", store.add_copy, row)
        mine = MediaRow(
            name,
            "" if name == "b" else "@alice:example.org",
            CONTENT,
            NOW + number,
            None,
            NOW + 9,
            True,
        )
        await database.write("add", media.add_media, mine)
    held = [ContentURI("north.example", "a"), ContentURI("example.org", "a")]
    quarantine = QuarantineStore(database=database, own="example.org")
    removal = MediaRemovalStore(database=database, own="example.org")
    for own in (False, True):
        assert [each.address.media_id for each in await removal.get_old(NOW + 1, 10, own=own)] == [
            "a"
        ]
    # a picture of a URL preview is deleted with the preview
    assert [each.address.media_id for each in await removal.get_old(NOW + 3, 10, own=False)] == [
        "a",
        "b",
        "c",
    ]
    assert [each.address.media_id for each in await removal.get_old(NOW + 3, 10, own=True)] == [
        "a",
        "c",
    ]
    assert [each.address.media_id for each in await removal.get_old(NOW + 3, 1, own=False)] == ["a"]
    assert await quarantine.quarantine(held, "@root:x") > 0
    assert [each.address.media_id for each in await removal.get_old(NOW + 9, 10, own=False)] == []
    assert await removal.get_old(NOW + 9, 10, own=True) == [], (
        "what is held back has the same content"
    )


async def test_a_file_can_be_quarantined_before_its_copy_arrives(database: Database) -> None:
    store, quarantine = (
        RemoteMediaStore(database),
        QuarantineStore(database=database, own="example.org"),
    )
    address, unknown = ContentURI("north.example", "abc"), ContentURI("north.example", "xyz")
    assert await quarantine.quarantine([address], "@root:x") == 0
    assert await quarantine.quarantine([address], "@other:x") == 0
    assert await quarantine.release(unknown) is None
    assert not await database.read("held", quarantine.is_quarantined, CONTENT.hash)
    await database.write("add", store.add_copy, ROW)
    await database.write("hold", quarantine.quarantine_known_copy, address, CONTENT.hash)
    row = await store.get_copy(*address)
    assert row is not None
    assert row.quarantined_by == "@root:x"
    assert await quarantine.release(address) == 1
    assert not await database.read("held", quarantine.is_quarantined, CONTENT.hash)
