"""Files that are scanned again, after new signatures or by request of an administrator."""

import hashlib
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from homeserver.cluster.jobs import Job
from storage.media.rescans import Rescan
from tests.helpers.federated_media import DOWNLOAD
from tests.helpers.media_files import request_upload, upload_file
from tests.helpers.media_scanning import (
    MINE,
    OURS,
    PLUGIN,
    TEA,
    HeldVerdicts,
    ScanningServers,
    begin_upload,
    clamd,
    do_jobs,
)
from tests.helpers.object_store import RunningObjectStore
from tests.helpers.scanners import RunningScanners
from tests.helpers.server import User, make_admin


def test_a_long_object_goes_to_the_scanner_as_it_is_read(
    place: ScanningServers, running_store: RunningObjectStore, tmp_path: Path
) -> None:
    bucket = running_store.bucket()
    store = ", ".join(f"{name}: '{value}'" for name, value in bucket.section().items())
    config = f"media_object_store: {{{store}}}\n{PLUGIN}media_scanning: {{upload_wait: 0s}}\n"
    alice = place.server(config).register("alice")
    long = bytes(range(256)) * (9 << 12)
    HeldVerdicts.is_quick = True
    uploading = begin_upload(alice, long)
    assert uploading.answer.status == 200
    HeldVerdicts.seen.clear()
    for path in (tmp_path / "media_store" / "content").rglob("*"):
        if path.is_file():
            path.unlink()
    HeldVerdicts.rules = "2"
    alice.server.run(alice.server.app.media.scanning.administration.do_rescan(None))
    alice.server.clock.advance(40)
    do_jobs(alice.server)
    do_jobs(alice.server)
    assert [hashlib.sha256(each).digest() for each in HeldVerdicts.seen] == [
        hashlib.sha256(long).digest()
    ]
    assert not [
        each
        for each in (tmp_path / "media_store").rglob("*")
        if each.is_file() and each.stat().st_size
    ]


def test_a_rescan_with_more_signatures_finds_more(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    server = place.server(clamd(scanners))
    alice, root = server.register("alice"), make_admin(server)
    worm = b"a worm of today " + bytes(range(40))
    addresses = [upload_file(alice, body) for body in (worm, TEA, b"third")]
    assert alice.get(f"{DOWNLOAD}/{addresses[0]}").status == 200
    scanners.learn("Worm", worm)
    scanners.stop_clamd()
    scanners.start_clamd()
    assert alice.post(f"{OURS}/rescan", {}).errcode == "M_FORBIDDEN"
    assert root.post(f"{OURS}/rescan", {"newer_than_ms": -1}).errcode == "M_INVALID_PARAM"
    begun = root.post(f"{OURS}/rescan", {})
    assert begun.json["reason"] == "administrator"
    assert root.post(f"{OURS}/rescan", {}).status == 400
    assert (
        alice.get(f"{DOWNLOAD}/{addresses[0]}").status == 200
    )  # it was clean, and is until something else is known
    do_jobs(server)
    progress = root.get(f"{OURS}/rescan").json
    assert (progress["total"], progress["left"], progress["is_counted"], progress["ended_ts"]) == (
        3,
        3,
        True,
        None,
    )
    do_jobs(server)
    progress = root.get(f"{OURS}/rescan").json
    assert (progress["total"], progress["left"], progress["harmful"]) == (3, 0, 1)
    assert progress["ended_ts"] == 1_700_000_000_000
    assert [alice.get(f"{DOWNLOAD}/{each}").status for each in addresses] == [403, 200, 200]
    records = root.get(f"/_mahalla/admin/v1/users/{alice.user_id}/audit").json["records"]
    assert "file_found_harmful" in [each["event"] for each in records]


def test_new_signatures_start_a_rescan(held: User) -> None:
    server = held.server
    HeldVerdicts.is_quick = True

    def steps() -> tuple[Rescan | None, int]:
        for _ in range(3):
            server.clock.advance(31)
            do_jobs(server)
        return server.run(server.app.media.scanning.administration.get_rescan())

    upload_file(held, TEA)
    assert steps() == (None, 0)
    HeldVerdicts.rules = "2"
    first, left = steps()
    assert first is not None
    assert (first.reason, first.total, left, first.ended_ts is not None) == (
        "signatures",
        1,
        0,
        True,
    )
    assert HeldVerdicts.seen == [TEA, TEA]
    HeldVerdicts.rules = "3"
    assert steps()[0] == first  # not more often than once a day
    server.clock.advance(24 * 3600)
    repeated, _ = steps()
    assert repeated is not None
    assert repeated.began_ts > first.began_ts
    server.clock.advance(40 * 24 * 3600)
    HeldVerdicts.rules = "4"
    last, _ = steps()
    assert last is not None
    assert (last.total, HeldVerdicts.seen) == (0, [TEA] * 3)  # the file has come long ago


def test_files_are_matched_with_a_list_of_hashes(
    place: ScanningServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs" / "examples" / "plugins"))
    known = tmp_path / "known"
    known.write_text(f"{hashlib.sha256(TEA).hexdigest()} green tea\n", encoding="utf-8")
    server = place.server(
        f"plugins: [{{module: known_files.KnownFiles, config: {{path: {known}}}}}]\n"
    )
    alice = server.register("alice")
    assert "plug-in: green tea" in request_upload(alice, TEA).json["error"]
    assert request_upload(alice, b"milk").status == 200
    known.write_text(f"{hashlib.sha256(b'juice').hexdigest()} juice\n", encoding="utf-8")
    assert request_upload(alice, b"juice").status == 403


def test_an_unscannable_file_does_not_block_a_rescan(held: User, tmp_path: Path) -> None:
    server = held.server
    HeldVerdicts.is_quick = True
    upload_file(held, TEA)
    lost = upload_file(held, b"lost")
    for path in (tmp_path / "media_store" / "content").rglob(hashlib.sha256(b"lost").hexdigest()):
        path.unlink()
    HeldVerdicts.is_quick = False
    server.run(server.app.media.scanning.administration.do_rescan(None))
    server.clock.advance(40)
    first, second = server.app.media.scanning.jobs()[:2]
    server.run(_step_of(second))
    scanning = Deferred.fromCoroutine(_step_of(first))
    server.clock.advance(50)  # the other takes too long
    assert scanning.called
    server.run(_step_of(second))
    rescan, left = server.run(server.app.media.scanning.administration.get_rescan())
    assert rescan is not None
    assert (rescan.total, left, rescan.ended_ts is not None) == (2, 0, True)
    states = {each["media_id"]: each["scan"]["state"] for each in held.get(MINE).json["media"]}
    assert set(states.values()) == {"clean"}  # the old verdict counts
    assert held.get(f"{DOWNLOAD}/{lost}").status == 404


async def _step_of(job: Job) -> int:
    return await job.step(10)
