"""SQL of references to files and of file deletion, on both databases. `tests/media` tests the
behaviour."""

import pytest

from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.content_uris import MAX_URIS, ContentURI, find_content_uris
from storage.media.lists import ORDERS, MediaFilter, MediaListStore, MediaOrder
from storage.media.media import MediaContent, MediaRow, MediaStore
from storage.media.reference_follower import catch_up
from storage.media.references import (
    SettingKind,
    do_rechecks,
    put_setting,
    record_redaction,
    remove_settings,
    select_batch,
)
from storage.media.remote_media import RemoteMediaRow, RemoteMediaStore
from storage.media.removal import MAX_UNREAD_EVENTS, MediaRemovalStore, RemovalReason
from storage.persist.state_effects import StateEffect, apply_effects
from storage.retention.purging import BEFORE_FIRST, PurgingStore
from storage.rooms.memberships import NewMembership

OWN, ALICE, NOW = "example.org", "@alice:example.org", 1_700_000_000_000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"url":"mxc://a.b:80/x_-1"}', {("a.b:80", "x_-1")}),
        (rb'{"url":"mxc:\/\/[::1]\/x"}', {("[::1]", "x")}),
        (b"<img src='mxc://a/b'> mxc://a/c, mxc://a/b#auto", {("a", "b"), ("a", "c")}),
        (b"mxc:/a/b mxc://a mxc:///b http://a/b", set()),
    ],
)
def test_content_uris_are_found_anywhere_in_json(text: bytes, found: set[tuple[str, str]]) -> None:
    assert find_content_uris(text) == found


def test_the_content_uris_of_a_text_are_limited() -> None:
    assert (
        len(find_content_uris(b"".join(b"mxc://a/%d " % number for number in range(2 * MAX_URIS))))
        == MAX_URIS
    )


def _add_event(
    txn: WriteTransaction,
    nid: int,
    sender: str,
    text: str,
    type: str = "m.room.message",
    state_key: str | None = None,
) -> None:
    txn.execute(
        "INSERT INTO events (event_nid, room_nid, depth, origin_server_ts, flags, event_id,"
        " type, state_key, sender, pdu)"
        " VALUES (?, 1, 1, 1, 16, ?, ?, ?, ?, ?)",
        (nid, f"${nid}", type, state_key, sender, text.encode()),
    )


def _redact(txn: WriteTransaction, nid: int) -> None:
    record_redaction(txn, nid)
    txn.execute("UPDATE events SET pdu = ?, redacted_by = 99 WHERE event_nid = ?", (b"{}", nid))


def _begin(txn: WriteTransaction) -> None:
    """Insert a room with Alice in it, a file of hers, and a copy of a remote file with the same
    bytes."""
    txn.execute(
        "INSERT INTO rooms (room_nid, room_id, version, head_version, extremities, depth,"
        " creation_ts)"
        " VALUES (1, '!r', '11', 1, '[]', 1, 1)"
    )
    txn.execute(
        "INSERT INTO memberships (room_nid, user_id, membership, event_nid, sender,"
        " position, is_local)"
        " VALUES (1, ?, 'join', 1, ?, 1, 1)",
        (ALICE, ALICE),
    )


async def _files(database: Database) -> None:
    content = MediaContent(b"\x01" * 32, 7, "image/png", None)
    await database.write(
        "add", MediaStore(database).add_media, MediaRow("own", ALICE, content, NOW, None, NOW, True)
    )
    copy = RemoteMediaRow("north.example", "copy", content, NOW, NOW, True)
    await database.write("add", RemoteMediaStore(database).add_copy, copy)


async def test_a_file_is_due_without_its_last_reference(database: Database) -> None:
    await database.write("begin", _begin)
    await _files(database)
    removal = MediaRemovalStore(database=database, own=OWN)
    text = "mxc://example.org/own mxc://north.example/copy"
    for nid in (1, 2):
        await database.write("send", _add_event, nid, ALICE, text)
    assert await database.write("look", catch_up, 10)

    async def get_due() -> set[str]:
        await database.write("recheck", do_rechecks, OWN, 2, NOW, 10)
        return {each.address.media_id for each in await removal.get_unreferenced(NOW, 10)}

    await database.write("redact", _redact, 1)
    assert await get_due() == set()
    await database.write("redact", _redact, 2)
    assert await get_due() == {"own", "copy"}

    due = await removal.get_unreferenced(NOW, 10)
    await database.write("send", _add_event, 3, ALICE, "mxc://north.example/copy")
    removed = await database.write("remove", removal.remove_unreferenced, due, NOW, NOW + 1)
    assert removed.addresses == [ContentURI(OWN, "own")]
    assert removed.unused == set()  # the copy has the same bytes
    removed = await database.write(
        "remove",
        removal.remove,
        [ContentURI("north.example", "copy")],
        RemovalReason.ADMINISTRATOR,
        NOW + 2,
        by=ALICE,
    )
    assert removed.unused == {b"\x01" * 32}
    noted = await removal.get_deletions(None, 10)
    assert [(each.media_id, each.user_id, each.reason, each.by_user_id) for each in noted] == [
        ("copy", None, "administrator", ALICE),
        ("own", ALICE, "unreferenced", None),
    ]
    assert await removal.get_deletions(noted[0].number, 10) == noted[1:]
    assert await removal.remove_deletions(NOW + 2, 10) == 1


async def test_an_avatar_is_referenced_while_its_membership_is_current(
    database: Database,
) -> None:
    """Also if the membership is current again, after the state of the room was resolved
    differently."""
    await database.write("begin", _begin)
    await _files(database)
    removal = MediaRemovalStore(database=database, own=OWN)

    def change(txn: WriteTransaction, nid: int, picture: str | None) -> None:
        membership = NewMembership(ALICE, "join", ALICE, True, None, picture)
        apply_effects(txn, 1, [(nid, nid, StateEffect(membership))])

    async def become(nid: int, picture: str | None, *, is_new: bool = True) -> set[str]:
        """Return the files that are due then."""
        if is_new:
            await database.write(
                "send", _add_event, nid, ALICE, picture or "", "m.room.member", ALICE
            )
        await database.write("change", change, nid, picture)
        assert await database.write("look", catch_up, 10)
        await database.write("recheck", do_rechecks, OWN, 10, NOW, 10)
        return {each.address.media_id for each in await removal.get_unreferenced(NOW, 10)}

    own, copy = f"mxc://{OWN}/own", "mxc://north.example/copy"
    assert await become(2, own) == set()
    assert await become(3, copy) == {"own"}
    assert await become(4, None) == {"own", "copy"}
    assert await become(3, copy, is_new=False) == {"own"}
    assert await become(2, own, is_new=False) == set()


async def test_nothing_is_removed_while_events_are_unread(database: Database) -> None:
    await database.write("begin", _begin)
    await _files(database)
    await database.write(
        "set", put_setting, ALICE, SettingKind.PROFILE, "avatar_url", b"mxc://example.org/own"
    )
    await database.write("unset", remove_settings, ALICE, SettingKind.PROFILE)
    await database.write("recheck", do_rechecks, OWN, 0, NOW, 10)
    removal = MediaRemovalStore(database=database, own=OWN)
    due = await removal.get_unreferenced(NOW, 10)
    assert [each.address.media_id for each in due] == ["own"]

    def send_many(txn: WriteTransaction) -> None:
        for nid in range(1, MAX_UNREAD_EVENTS + 1):
            _add_event(txn, nid, ALICE, "no file")

    await database.write("send", send_many)
    assert not (
        await database.write("remove", removal.remove_unreferenced, due, NOW, NOW)
    ).addresses
    assert (await database.write("remove", removal.remove_unreferenced, due, NOW, NOW)).addresses


async def test_the_uploads_of_an_erased_account_are_rechecked(database: Database) -> None:
    await _files(database)
    await database.write("erase", AccountStore(database).set_deactivated, ALICE, NOW, erase=True)
    await database.write("recheck", do_rechecks, OWN, 0, NOW, 10)
    assert len(await MediaRemovalStore(database=database, own=OWN).get_unreferenced(NOW, 10)) == 1


async def test_rows_of_missing_files_are_deleted(database: Database) -> None:
    addresses = b"mxc://north.example/never mxc://example.org/never"
    await database.write("set", put_setting, ALICE, SettingKind.ACCOUNT_DATA, " x", addresses)
    await database.write("set", put_setting, ALICE, SettingKind.ACCOUNT_DATA, " x", b"{}")
    await database.write("recheck", do_rechecks, OWN, 0, NOW, 10)
    removal = MediaRemovalStore(database=database, own=OWN)
    assert [await removal.remove_missing(NOW, 10) for _ in range(2)] == [2, 0]
    assert (
        await database.read("count", lambda txn: txn.query("SELECT origin FROM tracked_media"))
        == []
    )


def _count(txn: Transaction, table: str) -> int:
    return int(txn.query(f"SELECT COUNT(*) FROM {table}")[0][0])


async def test_one_write_handles_as_many_content_uris_as_one_event_may_have(
    database: Database,
) -> None:
    """Otherwise a user who sends a hundred such events would block all writes."""
    await database.write("begin", _begin)
    half = MAX_URIS // 2 + 1
    for nid in range(1, 5):
        text = " ".join(f"mxc://north.example/{nid}-{number}" for number in range(half))
        await database.write("send", _add_event, nid, ALICE, text)
    batch = await database.read("select", select_batch, 0, 100)
    assert (batch.upto, batch.count, batch.is_truncated, len(batch.references)) == (1, 1, True, 1)

    looked = [await database.write("look", catch_up, 100) for _ in range(4)]
    assert looked == [False, False, False, True]
    assert await database.read("count", _count, "media_event_references") == 4 * half

    purging = PurgingStore(database)
    assert [each.event_nid for each in await purging.get_older(1, NOW, BEFORE_FIRST, 100)] == [1]
    assert [each.event_nid for each in await purging.get_following(1, (1, 1), 100)] == [2]

    for nid in range(1, 5):
        await database.write("redact", _redact, nid)
    left = []
    while await database.write("recheck", do_rechecks, OWN, 4, NOW, 100):
        left.append(await database.read("count", _count, "media_event_references"))
    assert left == [3 * half, 2 * half, half, 0]


async def test_edits_of_a_redacted_message_are_rechecked_later(database: Database) -> None:
    await database.write("begin", _begin)

    def edit(txn: WriteTransaction, nid: int, target: int) -> None:
        _add_event(txn, nid, ALICE, f"mxc://north.example/{nid}")
        txn.execute(
            "INSERT INTO relations (target, rel_type, depth, event_nid, event_id, room_nid,"
            " type, sender,"
            " origin_server_ts, has_new_content) VALUES (?, 'm.replace', 1, ?, ?, 1,"
            " 'm.room.message', ?, 1, 1)",
            (f"${target}", nid, f"${nid}", ALICE),
        )

    await database.write("send", _add_event, 1, ALICE, "mxc://north.example/1")
    for nid in (2, 3):
        await database.write("edit", edit, nid, 1)
    await database.write("edit", edit, 4, 3)  # an edit of an edit does not count
    assert await database.write("look", catch_up, 10)
    await database.write("redact", _redact, 1)
    counts = []
    while await database.write("recheck", do_rechecks, OWN, 4, NOW, 10):
        counts.append(await database.read("count", _count, "media_event_references"))
    assert counts == [3, 1]


async def test_uploads_are_listed_in_any_order(database: Database) -> None:
    store = MediaStore(database)
    for number in range(3):
        content = MediaContent(
            bytes([number]) * 32, number, f"a/{number}", None if number == 1 else f"{number}"
        )
        row = MediaRow(f"m{number}", ALICE, content, NOW + number, None, NOW + number, True)
        await database.write("add", store.add_media, row)
    lists = MediaListStore(database=database, own=OWN)
    for order in ORDERS:
        pages = [
            await lists.get_uploads(ALICE, MediaOrder(order, descending=False), start, 2)
            for start in (0, 2)
        ]
        ids = [row.media_id for page in pages for row in page.rows]
        assert set(ids) == {"m0", "m1", "m2"}
        assert (pages[0].count, pages[0].size) == (3, 3)
        turned = await lists.get_uploads(ALICE, MediaOrder(order, descending=True), 0, 3)
        assert [row.media_id for row in turned.rows] == ids[::-1]
    assert ids


async def test_files_are_found_by_time_and_size(database: Database) -> None:
    store, copies, lists = (
        MediaStore(database),
        RemoteMediaStore(database),
        MediaListStore(database=database, own=OWN),
    )
    for number in range(4):
        content = MediaContent(bytes([number]) * 32, number, "a/b", None)
        row = MediaRow(
            f"m{number}", ALICE, content, NOW + number, None, NOW, True, quarantined=number == 2
        )
        await database.write("add", store.add_media, row)
        copy = RemoteMediaRow(
            f"{number % 2}.example", f"c{number}", content, NOW + number, NOW, True
        )
        await database.write("add", copies.add_copy, copy)
    await database.write(
        "add", store.add_media, MediaRow("reserved", ALICE, None, NOW, NOW + 9, NOW, True)
    )
    await database.write(
        "add", store.add_media, MediaRow("preview", "", content, NOW, None, NOW, True)
    )
    nothing = ContentURI("", "")

    async def uploads(wished: MediaFilter, after: str = "", limit: int = 9) -> list[str]:
        return [
            row.media_id for row in await lists.find_uploads(wished, ContentURI("", after), limit)
        ]

    every = MediaFilter()
    assert await uploads(every) == ["m0", "m1", "m2", "m3"]
    assert await uploads(every, "m1", 1) == ["m2"]
    assert await uploads(MediaFilter(from_ms=NOW + 1, until_ms=NOW + 3, larger_than=1)) == ["m2"]
    assert await uploads(MediaFilter(quarantined=True)) == ["m2"]
    assert await uploads(MediaFilter(quarantined=False, protected=False)) == ["m0", "m1", "m3"]
    assert (
        await uploads(MediaFilter(protected=True))
        == await uploads(MediaFilter(user_id="@b:c"))
        == []
    )
    assert await uploads(MediaFilter(user_id=ALICE, from_ms=NOW + 2)) == ["m2", "m3"]
    found = await lists.find_copies(MediaFilter(origin="1.example"), nothing, 9)
    assert [row.media_id for row in found] == ["c1", "c3"]
    found = await lists.find_copies(every, nothing, 9)
    assert [row.media_id for row in found] == ["c0", "c2", "c1", "c3"]
    assert found[0] == await copies.get_copy("0.example", "c0")
    rest = await lists.find_copies(every, ContentURI("0.example", "c2"), 1)
    assert [row.media_id for row in rest] == ["c1"]
