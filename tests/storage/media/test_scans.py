"""Scan results of files, and rescans, on both databases."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.media.content_uris import ContentURI
from storage.media.media import MediaContent, MediaRow, MediaStore
from storage.media.quarantine import SCANNER, QuarantineStore
from storage.media.remote_media import RemoteMediaRow, RemoteMediaStore
from storage.media.removal import MediaRemovalStore, RemovalReason
from storage.media.rescans import STUCK_AFTER_MS, FileKind, MediaRescanStore
from storage.media.scans import (
    MAX_INSIDE,
    MediaScanStore,
    ScannedFile,
    ScanRequest,
    ScanRow,
    ScanState,
)

OWN = "example.org"
NOW = 1_700_000_000_000
LOCAL: Sequence[FileKind] = ("local",)
PREVIEWS: Sequence[FileKind] = ("previews",)
ALICE, BOB = f"@alice:{OWN}", f"@bob:{OWN}"


def _hash(number: int) -> bytes:
    return bytes([number]) * 32


def _content(number: int, size: int = 5) -> MediaContent:
    return MediaContent(_hash(number), size, "text/plain", None)


def _verdict(
    number: int, state: ScanState, digest: bytes | None = None, by: str | None = None
) -> ScanRow:
    found = "clamd: Virus" if state is ScanState.HARMFUL else None
    return ScanRow(digest or _hash(number), _hash(number), state, "v1", NOW, found, by)


class Files:
    """Files of a server, and their scans."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.quarantine = QuarantineStore(database=database, own=OWN)
        self.scans = MediaScanStore(database=database, quarantine=self.quarantine)
        self.media = MediaStore(database)
        self.copies = RemoteMediaStore(database)

    async def add(
        self,
        media_id: str,
        number: int,
        user: str = ALICE,
        created_ts: int = NOW,
        *,
        until_ms: int = 0,
    ) -> ScanState:
        """Add a file."""

        def write(txn: WriteTransaction) -> ScanState:
            self.media.add_media(
                txn, MediaRow(media_id, user, _content(number), created_ts, None, NOW, True)
            )
            return self.scans.record_file(txn, _hash(number), until_ms)

        return await self.database.write("add", write)

    async def add_unscanned(
        self, media_id: str, content: MediaContent, user: str = ALICE, created_ts: int = NOW
    ) -> None:
        """Add a file as from before scanning was enabled."""
        row = MediaRow(media_id, user, content, created_ts, None, NOW, True)
        await self.database.write("add", self.media.add_media, row)

    async def add_copy(self, media_id: str, number: int) -> None:
        row = RemoteMediaRow("north.example", media_id, _content(number), NOW, NOW, True)
        await self.database.write("add", self.copies.add_copy, row)

    async def set_verdict(self, verdict: ScanRow, *, hold: bool = True) -> Sequence[str]:
        """Store a verdict of the scanners."""

        def write(txn: WriteTransaction) -> Sequence[str]:
            return self.scans.set_verdict(txn, verdict, quarantine=hold)

        return await self.database.write("say", write)

    async def quarantined_by(self, *media_ids: str) -> list[str | None]:
        rows = await self.media.get_media(media_ids)
        assert all(row.quarantined == (row.quarantined_by is not None) for row in rows.values())
        return [rows[media_id].quarantined_by for media_id in media_ids]

    async def take(self, now_ms: int = NOW, limit: int = 10) -> list[int]:
        return [hash[0] for hash in await self.scans.lease_requested(now_ms, now_ms + 1000, limit)]


@pytest.fixture
def files(database: Database) -> Files:
    return Files(database)


async def test_a_new_file_waits_for_a_scan_until_there_is_a_verdict(files: Files) -> None:
    assert await files.add("a", 1) is ScanState.UNKNOWN
    assert await files.add("b", 1) is ScanState.UNKNOWN
    assert await files.scans.get_scan(_hash(1)) == ScanRow(
        _hash(1), _hash(1), ScanState.UNKNOWN, "", 0
    )
    assert await files.scans.count_requested() == {ScanRequest.FIRST: 1, ScanRequest.AGAIN: 0}
    assert await files.take() == [1]
    assert await files.take(NOW + 999) == []  # it is leased
    assert await files.take(NOW + 1000) == [1]  # the lease has expired
    assert await files.set_verdict(_verdict(1, ScanState.CLEAN)) == ()
    assert await files.take(NOW + 9999) == []
    assert await files.add("c", 1) is ScanState.CLEAN
    assert await files.quarantined_by("a", "b", "c") == [None] * 3
    assert await files.scans.get_scans([_hash(1), _hash(2)]) == {
        _hash(1): _verdict(1, ScanState.CLEAN)
    }


async def test_the_receiver_of_a_file_scans_it_before_the_job(files: Files) -> None:
    await files.add("a", 1, until_ms=NOW + 5)
    assert await files.take(NOW + 4) == []
    assert await files.take(NOW + 5) == [1]
    await files.scans.postpone(_hash(1), NOW + 50_000)
    assert await files.take(NOW + 49_999) == []


async def test_all_files_with_harmful_bytes_are_quarantined(files: Files) -> None:
    for media_id, user in (("a", ALICE), ("b", BOB), ("picture", "")):
        await files.add(media_id, 1, user)
    await files.add("other", 2)
    await files.add("safe", 1, f"@root:{OWN}")
    await files.quarantine.set_protected({"safe"}, protected=True)
    await files.add_copy("theirs", 1)
    assert await files.set_verdict(_verdict(1, ScanState.HARMFUL)) == [ALICE, BOB]
    assert (
        await files.quarantined_by("a", "b", "picture", "other", "safe")
        == [SCANNER] * 3 + [None] * 2
    )
    copy = await files.copies.get_copy("north.example", "theirs")
    assert copy is not None
    assert copy.quarantined_by == SCANNER
    assert await files.add("later", 1) is ScanState.HARMFUL
    assert await files.quarantined_by("later") == [SCANNER]
    changes, _ = await files.quarantine.get_changes(0, 100)
    assert len(changes) == 5
    (found,) = await files.scans.get_findings(0, 10)
    assert found == _verdict(1, ScanState.HARMFUL)
    having = (await files.scans.get_files(OWN, [_hash(1)]))[_hash(1)]
    assert ScannedFile(ContentURI(OWN, "a"), ALICE) in having
    assert ScannedFile(ContentURI(OWN, "picture"), None) in having
    assert ScannedFile(ContentURI("north.example", "theirs"), None) in having
    assert len(having) == 6


async def test_a_harmful_file_stays_harmful_until_an_administrator_releases_it(
    files: Files,
) -> None:
    await files.add("a", 1)
    await files.set_verdict(_verdict(1, ScanState.HARMFUL))
    assert await files.set_verdict(replace(_verdict(1, ScanState.CLEAN), version="v2")) == ()
    assert await files.quarantined_by("a") == [SCANNER]
    assert await files.quarantine.release(ContentURI(OWN, "a")) == 1
    row = await files.scans.get_scan(_hash(1))
    assert row is not None
    assert (row.state, row.finding) == (ScanState.RELEASED, "clamd: Virus")
    assert await files.set_verdict(_verdict(1, ScanState.HARMFUL)) == ()
    assert await files.add("b", 1) is ScanState.RELEASED
    assert await files.quarantined_by("a", "b") == [None, None]
    assert [each.state for each in await files.scans.get_findings(0, 10)] == [ScanState.RELEASED]


async def test_verdicts_on_decrypted_content_are_stored(files: Files) -> None:
    await files.add("a", 1)
    await files.set_verdict(_verdict(1, ScanState.CLEAN))
    inside = b"\x99" * 32
    assert await files.set_verdict(_verdict(1, ScanState.HARMFUL, inside, BOB), hold=False) == ()
    assert await files.quarantined_by("a") == [None]
    row = await files.scans.get_scan(inside)
    assert row is not None
    assert (row.state, row.hash, row.by_user_id) == (ScanState.HARMFUL, _hash(1), BOB)

    other = b"\x98" * 32
    assert await files.set_verdict(_verdict(1, ScanState.HARMFUL, other, BOB), hold=True) == [ALICE]
    assert await files.quarantined_by("a") == [SCANNER]
    assert await files.add("b", 1) is ScanState.HARMFUL
    await files.quarantine.release(ContentURI(OWN, "a"))
    assert {
        (await files.scans.get_scans([each]))[each].state for each in (inside, other, _hash(1))
    } == {ScanState.RELEASED}


async def test_results_of_contents_without_a_file_are_deleted(files: Files) -> None:
    assert await files.set_verdict(_verdict(1, ScanState.HARMFUL)) == ()
    assert await files.scans.get_scan(_hash(1)) is None
    await files.add("a", 1)
    await files.add("b", 1)
    await files.set_verdict(_verdict(1, ScanState.CLEAN))
    await files.set_verdict(_verdict(1, ScanState.CLEAN, b"\x99" * 32))
    removal = MediaRemovalStore(database=files.database, own=OWN)
    for media_id, left in (("a", 2), ("b", 0)):

        def remove(txn: WriteTransaction, media_id: str = media_id) -> None:
            removal.remove(
                txn,
                [ContentURI(OWN, media_id)],
                RemovalReason.UPLOADER,
                NOW,
                include_quarantined=True,
            )

        await files.database.write("remove", remove)
        assert len(await files.scans.get_scans([_hash(1), b"\x99" * 32])) == left
    await files.add("c", 2)
    await files.scans.remove_unused(_hash(2))
    assert await files.scans.get_scan(_hash(2)) is not None


async def test_a_clean_file_that_fails_a_rescan_is_not_retried(files: Files) -> None:
    store = MediaRescanStore(database=files.database, kinds=LOCAL, max_size=100)
    await files.add("a", 1)
    await files.set_verdict(_verdict(1, ScanState.CLEAN))
    await files.add_unscanned("b", _content(2))
    assert await store.start("administrator", NOW, 0) is not None
    await _mark_all(store, 10)
    assert (await store.get())[1] == 2
    for number in (1, 2):
        await files.scans.postpone(_hash(number), NOW + 10)
    assert (await store.get())[1] == 2
    for number in (1, 2):
        await files.scans.record_failure(_hash(number), NOW, 10, 100)
    assert (await store.get())[1] == 0
    assert await files.scans.count_requested() == {ScanRequest.FIRST: 1, ScanRequest.AGAIN: 0}
    assert await files.take(NOW + 10) == [2]


async def test_pauses_grow_until_the_scan_succeeds(files: Files) -> None:
    await files.add("a", 1)
    now = NOW
    for failures, pause in enumerate((10, 20, 40, 80, 100, 100), 1):
        await files.scans.record_failure(_hash(1), now, 10, 100)
        row = await files.scans.get_scan(_hash(1))
        assert row is not None
        assert (row.failures, row.due_ts) == (failures, now + pause)
        assert await files.take(now + pause - 1) == []
        now += pause
        assert await files.take(now) == [1]
    await files.set_verdict(_verdict(1, ScanState.CLEAN))
    assert await files.scans.get_scan(_hash(1)) == _verdict(1, ScanState.CLEAN)


async def test_a_rescan_retries_failed_scans_without_a_pause(files: Files) -> None:
    store = MediaRescanStore(database=files.database, kinds=LOCAL, max_size=100)
    await files.add("a", 1)
    await files.scans.record_failure(_hash(1), NOW, 10, 100)
    assert await store.start("administrator", NOW, 0) is not None
    await _mark_all(store, 10)
    assert await files.take(NOW) == [1]
    row = await files.scans.get_scan(_hash(1))
    assert row is not None
    assert row.failures == 0


async def test_old_files_are_scanned_once_they_are_requested(files: Files) -> None:
    await files.add_unscanned("a", _content(1))
    await files.add_copy("theirs", 2)
    for number in (1, 2, 3):  # no file has the third
        await files.scans.postpone(_hash(number), NOW + 10)
        await files.scans.record_failure(_hash(number), NOW, 20, 100)
    assert await files.take(NOW + 19) == []
    assert sorted(await files.take(NOW + 20)) == [1, 2]


async def test_a_stuck_rescan_is_replaced(files: Files) -> None:
    store = MediaRescanStore(database=files.database, kinds=LOCAL, max_size=100)
    assert await store.start("administrator", NOW, 0) is not None
    assert await store.start("signatures", NOW + STUCK_AFTER_MS - 1, 0) is None
    assert await store.start("signatures", NOW + STUCK_AFTER_MS, 0) is not None


async def _mark_all(store: MediaRescanStore, limit: int) -> None:
    while await store.mark(limit, NOW + 7) == limit:
        pass


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_a_rescan_marks_each_content_once(files: Files, limit: int) -> None:
    for number in (3, 1, 5, 2, 4):
        await files.add(f"m{number}", number)
        await files.set_verdict(_verdict(number, ScanState.CLEAN))
    await files.add("again", 5, BOB)
    await files.add_copy("same", 4)
    await files.add_copy("theirs", 6)
    await files.add_unscanned("before", _content(7))
    await files.add_unscanned("long", _content(8, size=101))
    await files.add_unscanned("old", _content(9), created_ts=NOW - 10)
    await files.add("bad", 10)
    await files.set_verdict(_verdict(10, ScanState.HARMFUL))
    await files.add("new", 11)

    def store() -> MediaRescanStore:
        return MediaRescanStore(
            database=files.database, kinds=("local", "remote", "previews"), max_size=100
        )

    assert await store().get() == (None, 0)
    assert await store().mark(limit, NOW) == 0
    began = await store().start("administrator", NOW, NOW - 9)
    assert began is not None
    assert await store().start("signatures", NOW, 0) is None
    while await store().mark(limit, NOW + 7) == limit:
        pass  # a new store each time, as after a restart
    rescan, left = await store().get()
    assert rescan is not None
    assert (rescan.total, left, rescan.is_marked, rescan.ended_ts) == (7, 7, True, None)
    taken = await files.take()
    assert (taken[0], set(taken[1:])) == (11, {1, 2, 3, 4, 5, 6, 7})  # first the unknown one


async def test_the_progress_and_findings_of_a_rescan_are_counted(files: Files) -> None:
    store = MediaRescanStore(database=files.database, kinds=LOCAL, max_size=100)
    for number in (1, 2):
        await files.add(f"m{number}", number)
        await files.set_verdict(_verdict(number, ScanState.CLEAN))
    assert await store.start("signatures", NOW, 0) is not None
    await _mark_all(store, 10)

    def conclude(txn: WriteTransaction) -> None:
        store.count_found(txn, _hash(1))
        files.scans.set_verdict(txn, _verdict(1, ScanState.HARMFUL), quarantine=True)

    await files.database.write("conclude", conclude)
    await store.mark(10, NOW + 8)
    rescan, left = await store.get()
    assert rescan is not None
    assert (rescan.found, left, rescan.ended_ts) == (1, 1, None)
    await files.set_verdict(replace(_verdict(2, ScanState.CLEAN), version="v2"))
    await store.mark(10, NOW + 9)
    rescan, left = await store.get()
    assert rescan is not None
    assert (rescan.found, rescan.total, left, rescan.ended_ts) == (1, 2, 0, NOW + 9)
    assert await store.start("administrator", NOW + 10, 0) is not None


@pytest.mark.parametrize("limit", [1, 10])
@pytest.mark.parametrize(
    ("kinds", "marked"),
    [
        (("local",), {1, 5}),
        (("previews",), {2, 4, 5}),
        (("remote",), {3, 4}),
        (("local", "previews"), {1, 2, 4, 5}),
        ((), set()),
    ],
)
async def test_a_rescan_marks_only_the_kinds_that_are_scanned(
    files: Files, kinds: Sequence[FileKind], marked: set[int], limit: int
) -> None:
    await files.add_unscanned("a", _content(1))
    await files.add_unscanned("b", _content(2), user="")
    await files.add_copy("c", 3)
    await files.add_unscanned("d", _content(4), user="")
    await files.add_copy("e", 4)
    await files.add_unscanned("f", _content(5), user="")
    await files.add_unscanned("g", _content(5))
    await files.add_unscanned("h", _content(6), user="", created_ts=NOW - 1)
    await files.add_unscanned("i", _content(6), created_ts=NOW - 2)
    store = MediaRescanStore(database=files.database, kinds=kinds, max_size=100)
    assert await store.start("administrator", NOW, NOW) is not None
    await _mark_all(store, limit)
    assert set(await files.take()) == marked


async def test_files_of_other_kinds_count_for_the_limit_of_a_step(files: Files) -> None:
    for number in range(1, 6):
        await files.add_unscanned(f"m{number}", _content(number))
    store = MediaRescanStore(database=files.database, kinds=PREVIEWS, max_size=100)
    assert await store.start("administrator", NOW, 0) is not None
    assert [await store.mark(2, NOW) for _ in range(3)] == [2, 2, 1]
    assert await files.take() == []


async def test_a_version_change_is_due_until_a_rescan_starts(files: Files) -> None:
    store = MediaRescanStore(database=files.database, kinds=LOCAL, max_size=100)
    assert [await store.record_version(each) for each in ("1", "1", "2", "2", "1")] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert await store.start("signatures", NOW, 0) is not None
    assert [await store.record_version(each) for each in ("1", "3")] == [False, True]


async def test_verdicts_on_decrypted_contents_are_limited_and_expire(files: Files) -> None:
    """A requester can invent keys."""
    await files.add("a", 1)
    await files.set_verdict(_verdict(1, ScanState.CLEAN))
    keys = [bytes([number + 100]) * 32 for number in range(MAX_INSIDE + 3)]
    for number, key in enumerate(keys):
        state = ScanState.HARMFUL if number == 0 else ScanState.CLEAN
        await files.set_verdict(
            replace(_verdict(1, state, key), scanned_ts=NOW + number), hold=False
        )
    kept = [keys[0], *keys[3:]]
    assert set(await files.scans.get_scans([_hash(1), *keys])) == {_hash(1), *kept}
    old = NOW + 5
    assert [await files.scans.remove_inside(old, 1) for _ in range(3)] == [1, 1, 0]
    assert set(await files.scans.get_scans([_hash(1), *keys])) == {_hash(1), keys[0], *keys[5:]}
