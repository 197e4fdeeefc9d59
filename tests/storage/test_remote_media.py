"""Rows of copies of other servers' files, on both databases."""

from msgspec.structs import replace

from storage.database import Database
from storage.media import Content, MediaRow, MediaStore
from storage.media_addresses import MediaAddress
from storage.media_quarantine import QuarantineStore
from storage.media_removal import MediaRemovalStore, Reason
from storage.remote_media import RemoteMediaRow, RemoteMediaStore

NOW = 1_700_000_000_000
CONTENT = Content(b"\x01" * 32, 7, "image/png", "a.png")
ROW = RemoteMediaRow("north.example", "abc", CONTENT, NOW, NOW, True)


async def test_a_copy_comes_back_and_stays_as_it_is(database: Database) -> None:
    store = RemoteMediaStore(database)
    assert await database.write("add", store.add_copy, ROW)
    assert not await database.write("add", store.add_copy, replace(ROW, content=Content(b"\x02" * 32, 1, "a/b", None)))
    assert await store.get_copy("north.example", "abc") == ROW
    assert await store.get_copy("south.example", "abc") is None
    assert await MediaStore(database).get_used_hashes([CONTENT.hash, b"\x02" * 32]) == {CONTENT.hash}


async def test_what_was_read_meanwhile_is_not_removed(database: Database) -> None:
    store = RemoteMediaStore(database)
    rows = [replace(ROW, media_id=name, content=replace(CONTENT, hash=name.encode() * 32)) for name in "abcd"]
    for row in rows:
        await database.write("add", store.add_copy, row)
    assert await QuarantineStore(database, "example.org").set_held([MediaAddress("north.example", "d")], "@root:x") == 1
    own = MediaRow("own", "@alice:example.org", rows[1].content, NOW, None, NOW, True)
    await database.write("add", MediaStore(database).add_media, own)
    removal = MediaRemovalStore(database, "example.org")
    found = await removal.get_unread(NOW + 1, 10, own=False)
    assert {each.address.media_id for each in found} == {"a", "b", "c"}
    await store.set_accessed("north.example", "c", NOW + 5)
    files = [each.address for each in found]
    removed = await database.write("forget", removal.remove, files, Reason.UNREAD, NOW + 9, unread_since=NOW + 1)
    assert removed.unused == {b"a" * 32}
    noted = await removal.get_deletions(None, 10)
    assert [(each.origin, each.media_id, each.reason, each.deleted_ts) for each in noted] == [
        ("north.example", "b", "unread", NOW + 9),
        ("north.example", "a", "unread", NOW + 9),
    ]
    left = [await store.get_copy("north.example", name) is not None for name in "abcd"]
    assert left == [False, False, True, True]
