"""Rows of files, on both databases."""

from collections.abc import Sequence
from typing import cast

from msgspec.structs import replace

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction
from storage.media.content_uris import ContentURI
from storage.media.media import MediaContent, MediaRow, MediaStore
from storage.media.quarantine import QuarantineStore
from storage.media.remote_media import RemoteMediaRow, RemoteMediaStore

NOW = 1_700_000_000_000
CONTENT = MediaContent(b"\x01" * 32, 7, "image/png", "a.png")
ROW = MediaRow("abc", "@alice:example.org", CONTENT, NOW, None, NOW, True)
RESERVED = MediaRow("later", "@alice:example.org", None, NOW, NOW + 1000, NOW, False)


async def _add(database: Database, store: MediaStore, *rows: MediaRow) -> None:
    for row in rows:
        await database.write("add", store.add_media, row)


async def test_rows_come_back_as_they_were_written(database: Database) -> None:
    store = MediaStore(database)
    await _add(database, store, ROW, RESERVED)
    assert await store.get_media(["abc", "later", "unknown"]) == {"abc": ROW, "later": RESERVED}


async def test_a_reservation_is_filled_once(database: Database) -> None:
    store = MediaStore(database)
    await _add(database, store, RESERVED)
    other = replace(CONTENT, hash=b"\x02" * 32)
    assert await database.write(
        "fill", store.set_content, "later", CONTENT, NOW + 5, authenticated=False
    )
    assert not await database.write(
        "fill", store.set_content, "later", other, NOW + 6, authenticated=True
    )
    assert not await database.write(
        "fill", store.set_content, "unknown", other, NOW + 6, authenticated=True
    )
    row = (await store.get_media(["later"]))["later"]
    assert row == replace(
        RESERVED,
        content=CONTENT,
        created_ts=NOW + 5,
        expires_ts=None,
        last_access_ts=NOW + 5,
        authenticated=False,
    )


async def test_reservations_count_until_they_end_or_are_filled(database: Database) -> None:
    store = MediaStore(database)
    await _add(
        database,
        store,
        ROW,
        RESERVED,
        replace(RESERVED, media_id="b"),
        replace(RESERVED, media_id="c", user_id="@b:x"),
    )

    async def count(now_ms: int) -> int:
        return await database.read("count", store.count_reserved, "@alice:example.org", now_ms)

    assert (await count(NOW), await count(NOW + 1000)) == (2, 0)
    await database.write("fill", store.set_content, "b", CONTENT, NOW, authenticated=True)
    assert await count(NOW) == 1


async def test_ended_reservations_are_removed_some_at_a_time(database: Database) -> None:
    store = MediaStore(database)
    rows = [replace(RESERVED, media_id=f"r{number}") for number in range(3)]
    await _add(
        database, store, ROW, *rows, replace(RESERVED, media_id="fresh", expires_ts=NOW + 9000)
    )
    assert await store.remove_expired(NOW + 999, 2) == 0
    assert [await store.remove_expired(NOW + 1000, 2) for _ in range(3)] == [2, 1, 0]
    assert set(await store.get_media(["abc", "fresh", "r0", "r1", "r2"])) == {"abc", "fresh"}


async def test_used_hashes_are_returned(database: Database) -> None:
    store = MediaStore(database)
    await _add(database, store, ROW, replace(ROW, media_id="again"), RESERVED)
    assert await store.get_used_hashes([CONTENT.hash, b"\x09" * 32]) == {CONTENT.hash}


async def test_protected_files_are_not_quarantined(database: Database) -> None:
    store = MediaStore(database)
    await _add(database, store, ROW, replace(ROW, media_id="safe", protected=True))
    copies, quarantine = (
        RemoteMediaStore(database),
        QuarantineStore(database=database, own="example.org"),
    )
    copy = RemoteMediaRow("north.example", "copy", CONTENT, NOW, NOW, True)
    await database.write("add", copies.add_copy, copy)
    assert (
        await quarantine.quarantine(
            [ContentURI("example.org", each) for each in ("safe", "unknown")], "@root:x"
        )
        == 0
    )
    assert await quarantine.quarantine([ContentURI("example.org", "abc")], "@root:x") == 2
    rows = await store.get_media(["abc", "safe"])
    assert [rows[each].quarantined_by for each in ("abc", "safe")] == ["@root:x", None]
    assert await copies.get_copy("north.example", "copy") == replace(
        copy, quarantined=True, quarantined_by="@root:x"
    )
    await _add(database, store, replace(ROW, media_id="later"))
    await database.write("hold", quarantine.quarantine_known, CONTENT.hash)
    assert (await store.get_media(["later"]))["later"].quarantined_by == "system"
    assert await quarantine.release(ContentURI("north.example", "copy")) == 3
    changes, latest = await quarantine.get_changes(2, 10)
    assert (changes[0].address.media_id, changes[0].quarantined) == ("later", True)
    assert (latest, {each.quarantined for each in changes[1:]}) == (6, {False})


async def test_the_last_access_never_moves_back(database: Database) -> None:
    store = MediaStore(database)
    await _add(database, store, ROW)
    await store.set_accessed("abc", NOW + 10)
    await store.set_accessed("abc", NOW + 5)
    assert (await store.get_media(["abc"]))["abc"].last_access_ts == NOW + 10


async def test_sizes_are_summed_up_since_several_times(database: Database) -> None:
    store = MediaStore(database)
    rows = [replace(ROW, media_id=f"m{ago}", created_ts=NOW - ago) for ago in (0, 10, 20)]
    await _add(database, store, *rows, RESERVED, replace(ROW, media_id="b", user_id="@b:x"))
    since = [NOW - 5, NOW - 15, 0]
    assert await database.read("sum", store.sum_sizes, "@alice:example.org", since) == [7, 14, 21]
    assert await database.read("sum", store.sum_sizes, "@nobody:example.org", since) == [0, 0, 0]


async def test_sizes_are_summed_up_from_an_index_alone(sqlite_database: Database) -> None:
    class Explained:
        """A transaction that records its query plan."""

        def __init__(self, txn: Transaction) -> None:
            self.txn = txn

        def query_one(self, sql: str, args: Sequence[str | int]) -> Row | None:
            plans.extend(row[3] for row in self.txn.query(f"EXPLAIN QUERY PLAN {sql}", args))
            return None

    plans: list[str] = []

    def look(txn: Transaction) -> None:
        MediaStore(sqlite_database).sum_sizes(
            cast(Transaction, Explained(txn)), "@alice:example.org", [NOW, 0]
        )

    await sqlite_database.read("look", look)
    assert plans == ["SEARCH media USING COVERING INDEX media_by_user (user_id=? AND created_ts>?)"]
