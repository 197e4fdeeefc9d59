"""Scanners that are unavailable, slow or broken: files are held, nothing is lost, and clients
get an error."""

import hashlib
from pathlib import Path

from twisted.internet.defer import Deferred

from homeserver.cluster.jobs import Job
from homeserver.services.scanning.scanning import MAX_WAITING_PER_OWNER
from storage.media.scans import ScanRow
from tests.helpers.federated_media import DOWNLOAD, THUMBNAIL
from tests.helpers.media_files import upload_file
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
    latest,
    metric,
)
from tests.helpers.scanners import EICAR, RunningScanners
from tests.helpers.server import User, make_admin, move_user

AWAY = "media_scanning: {clamd: 'unix:/nonexistent/clamd', upload_wait: 0s}\n"


def test_files_are_held_while_no_scanner_is_available(place: ScanningServers) -> None:
    server = place.server(AWAY)
    alice = server.register("alice")
    address = upload_file(alice, TEA)  # acknowledged: it is on disk, and will be scanned
    answer = alice.get(f"{DOWNLOAD}/{address}")
    assert (answer.status, answer.errcode) == (503, "M_UNKNOWN")
    assert alice.get(f"{THUMBNAIL}/{address}?width=9&height=9").status == 503
    assert latest(alice)["scan"] == {"state": "waiting", "found": None, "scanned_ts": None}
    assert metric(server, "mahalla_media_scans_total", outcome="failed") >= 1
    do_jobs(server)
    assert alice.get(f"{DOWNLOAD}/{address}").status == 503


def test_held_files_are_scanned_once_a_scanner_is_available(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    scanners.stop_clamd()
    try:
        server = place.server(clamd(scanners))
        alice = server.register("alice")
        clean, harmful, asked = (
            upload_file(alice, TEA),
            upload_file(alice, EICAR),
            upload_file(alice, EICAR + b" asked"),
        )
        assert [alice.get(f"{DOWNLOAD}/{each}").status for each in (clean, harmful)] == [503, 503]
    finally:
        scanners.start_clamd()
    server.clock.advance(6)
    assert alice.get(f"{DOWNLOAD}/{asked}").status == 403  # who asks need not wait for the job
    server.clock.advance(120)
    do_jobs(server)
    assert metric(server, "mahalla_media_scans_waiting", scan="first") == 0
    assert [each["scan"]["state"] for each in alice.get(MINE).json["media"]] == [
        "harmful",
        "harmful",
        "clean",
    ]
    assert [alice.get(f"{DOWNLOAD}/{each}").status for each in (clean, harmful)] == [200, 403]


def test_a_restart_of_a_scanner_does_not_fail_its_current_file(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    server = place.server(clamd(scanners, ", upload_wait: 0s"))
    alice = server.register("alice")
    assert (
        alice.get(f"{DOWNLOAD}/{upload_file(alice, TEA)}").status == 200
    )  # it answers, and is believed to for a while
    scanners.stop_clamd()
    try:
        one, other = upload_file(alice, b"black tea"), upload_file(alice, b"red tea")
        assert alice.get(f"{DOWNLOAD}/{one}").status == 503
    finally:
        scanners.start_clamd()
    server.clock.advance(6)
    do_jobs(server)  # nobody need ask
    assert metric(server, "mahalla_media_scans_waiting", scan="first") == 0
    assert [alice.get(f"{DOWNLOAD}/{each}").status for each in (one, other)] == [200, 200]


def test_a_file_that_crashes_the_scanner_does_not_block_others(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    server = place.server(clamd(scanners, ", upload_wait: 0s"))
    alice = server.register("alice")
    address = ""
    for number in range(2):
        assert alice.get(f"{DOWNLOAD}/{upload_file(alice, TEA + b'%d' % number)}").status == 200
        scanners.stop_clamd()
        try:
            address = address or upload_file(alice, b"black tea")
            assert alice.get(f"{DOWNLOAD}/{address}").status == 503
        finally:
            scanners.start_clamd()
        server.clock.advance(6)
    assert alice.get(f"{DOWNLOAD}/{address}").status == 503
    assert alice.get(f"{DOWNLOAD}/{upload_file(alice, b'red tea')}").status == 200
    server.clock.advance(54)
    assert alice.get(f"{DOWNLOAD}/{address}").status == 200


def test_files_are_served_unscanned_if_configured(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    scanners.stop_clamd()
    try:
        server = place.server(clamd(scanners, ", unreachable: pass"))
        alice = server.register("alice")
        address = upload_file(alice, EICAR)
        assert alice.get(f"{DOWNLOAD}/{address}").status == 200
    finally:
        scanners.start_clamd()
    server.clock.advance(130)
    do_jobs(server)
    assert alice.get(f"{DOWNLOAD}/{address}").status == 403


def test_uploads_wait_briefly_and_downloads_until_their_timeout(held: User) -> None:
    clock = held.server.clock
    uploading = begin_upload(held, TEA)
    assert not uploading.done
    clock.advance(5)
    assert uploading.answer.status == 200
    address = uploading.answer.json["content_uri"].removeprefix("mxc://")
    first = held.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=3000")
    second = held.start("GET", f"{THUMBNAIL}/{address}?width=9&height=9&timeout_ms=30000")
    third = held.start("GET", f"{DOWNLOAD}/{address}")
    clock.advance(3)
    assert (first.answer.status, first.answer.errcode) == (504, "M_NOT_YET_UPLOADED")
    assert not second.done
    assert not third.done
    assert HeldVerdicts.seen == [TEA]  # once for all who ask
    HeldVerdicts.waiting.pop().callback(None)
    assert (second.answer.status, third.answer.body) == (400, TEA)  # tea is no image
    assert held.get(f"{DOWNLOAD}/{address}").status == 200
    assert HeldVerdicts.seen == [TEA]


def test_a_scan_that_takes_too_long_is_tried_again(held: User) -> None:
    clock = held.server.clock
    uploading = begin_upload(held, TEA)
    clock.advance(5)
    address = uploading.answer.json["content_uri"].removeprefix("mxc://")
    asking = held.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=60000")
    clock.advance(45)
    assert asking.answer.status == 503
    HeldVerdicts.is_quick = True
    do_jobs(held.server)
    assert held.get(f"{DOWNLOAD}/{address}").status == 503  # nor has who asks for it
    assert latest(held)["scan"]["state"] == "waiting"  # others come first for ten minutes
    assert len(HeldVerdicts.seen) == 1
    clock.advance(601)
    do_jobs(held.server)
    assert latest(held)["scan"]["state"] == "clean"


def test_the_number_of_concurrent_scans_is_limited(held: User) -> None:
    bob, carol = held.server.register("bob"), held.server.register("carol")
    pending = [begin_upload(held, b"alice %d" % number) for number in range(4)]
    pending += [begin_upload(user, b"%d" % number) for number, user in enumerate((bob, carol))]
    assert HeldVerdicts.seen == [b"alice 0", b"0"]  # one person has one turn of the two
    while HeldVerdicts.waiting:
        HeldVerdicts.waiting.pop(0).callback(None)
    assert [each.answer.status for each in pending] == [200] * 6
    assert HeldVerdicts.seen == [b"alice 0", b"0", b"alice 1", b"1", b"alice 2", b"alice 3"]


def test_a_user_with_many_uploads_has_a_limited_share_of_the_queue(place: ScanningServers) -> None:
    limit = "rc_media_create: {per_second: 1000, burst_count: 1000}\n"
    server = place.server(f"{PLUGIN}{limit}media_scanning: {{concurrency: 2}}\n")
    alice, bob = server.register("alice"), server.register("bob")
    pending = [begin_upload(alice, b"%d" % number) for number in range(MAX_WAITING_PER_OWNER + 10)]
    assert [each.done for each in pending] == [False] * (1 + MAX_WAITING_PER_OWNER) + [
        True
    ] * 9  # the rest is left to the job
    uploading = begin_upload(bob, TEA)
    assert TEA in HeldVerdicts.seen
    while HeldVerdicts.waiting:
        HeldVerdicts.waiting.pop().callback(None)
    assert {each.answer.status for each in (*pending, uploading)} == {200}
    assert len(HeldVerdicts.seen) == 1 + MAX_WAITING_PER_OWNER + 1


def test_the_job_gives_way_to_users(held: User) -> None:
    clock = held.server.clock
    for number in range(4):
        begin_upload(held, b"%d" % number)
    clock.advance(5)
    for _ in range(4):
        clock.advance(50)  # each scan takes too long
    HeldVerdicts.seen.clear()
    HeldVerdicts.waiting.clear()
    clock.advance(601)
    (job, *_) = held.server.app.media.scanning.jobs()
    working = Deferred.fromCoroutine(_step_of(job))
    assert len(HeldVerdicts.seen) == 1
    uploading = begin_upload(held, TEA)
    assert HeldVerdicts.seen[1:] == [TEA]
    while HeldVerdicts.waiting:
        HeldVerdicts.waiting.pop().callback(None)
    assert uploading.answer.status == 200
    assert working.called
    assert len(HeldVerdicts.seen) == 5


def test_a_file_that_cannot_be_scanned_is_retried_with_backoff(held: User) -> None:
    server = held.server
    root = make_admin(server)
    address = begin_upload_and_wait(held)
    minutes = [each // 60 for each in _pauses(held, 10)]
    assert minutes == [10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440]
    seen = len(HeldVerdicts.seen)
    assert held.get(f"{DOWNLOAD}/{address}").status == 503
    assert len(HeldVerdicts.seen) == seen
    HeldVerdicts.is_quick = True
    assert root.post(f"{OURS}/rescan", {}).status == 200  # who has mended the scanner need not wait
    do_jobs(server)
    assert held.get(f"{DOWNLOAD}/{address}").body == TEA


def test_unavailable_scanners_are_retried_with_backoff(place: ScanningServers) -> None:
    server = place.server(AWAY)
    alice = server.register("alice")
    address = upload_file(alice, TEA)
    tries = []
    for second in range(1, 200):
        server.clock.advance(1)
        before = metric(server, "mahalla_media_scans_total", outcome="failed")
        assert alice.get(f"{DOWNLOAD}/{address}").status == 503
        if metric(server, "mahalla_media_scans_total", outcome="failed") > before:
            tries.append(second)
    assert tries == [5, 15, 35, 75, 135, 195]


def test_older_files_served_unscanned_are_scanned_later(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    before = place.server("").register("alice")
    addresses = [upload_file(before, EICAR + b"%d" % number) for number in range(4)]
    scanners.stop_clamd()
    try:
        server = place.server(clamd(scanners, ", unreachable: pass"))
        alice = move_user(server, before)
        assert [alice.get(f"{DOWNLOAD}/{each}").status for each in addresses] == [200] * 4
        server.clock.advance(60)
        do_jobs(server)  # of those that it has taken, it tries one
    finally:
        scanners.start_clamd()
    server.clock.advance(61)
    do_jobs(server)
    states = [each["scan"]["state"] for each in alice.get(MINE).json["media"]]
    assert states == ["harmful"] * 4


def test_a_file_quarantined_during_a_waiting_download_is_not_served(held: User) -> None:
    """Administrators may look at it all the same."""
    server = held.server
    root = make_admin(server)
    uploading = begin_upload(held, TEA)
    server.clock.advance(5)
    address = uploading.answer.json["content_uri"].removeprefix("mxc://")
    paths = (
        f"{DOWNLOAD}/{address}?timeout_ms=30000",
        f"{THUMBNAIL}/{address}?width=9&height=9&timeout_ms=30000",
        f"/_matrix/media_proxy/unstable/download/{address}",
    )
    waiting = [held.start("GET", path) for path in paths]
    seeing = root.start("GET", f"{DOWNLOAD}/{address}?admin_unsafely_bypass_quarantine=true")
    assert root.post(f"/_synapse/admin/v1/media/quarantine/{address}").status == 200
    server.clock.advance(1)
    HeldVerdicts.waiting.pop().callback(None)
    assert [each.answer.status for each in waiting] == [404, 400, 404]  # tea is no image
    assert (seeing.answer.status, seeing.answer.body) == (200, TEA)


def test_a_file_that_a_scanner_fails_on_does_not_block_others(held: User) -> None:
    server = held.server
    bob = server.register("bob")
    uploading = begin_upload(held, b"poison")
    HeldVerdicts.waiting.pop().errback(RuntimeError("it broke"))
    assert uploading.answer.status == 200
    address = uploading.answer.json["content_uri"].removeprefix("mxc://")
    other = begin_upload(bob, TEA)
    HeldVerdicts.waiting.pop().callback(None)
    assert other.answer.status == 200
    for pause in (60, 120, 240):
        assert held.get(f"{DOWNLOAD}/{address}").status == 503
        server.clock.advance(pause - 1)
        assert held.get(f"{DOWNLOAD}/{address}").status == 503
        assert HeldVerdicts.waiting == []  # it is not shown again yet
        server.clock.advance(1)
        asking = held.start("GET", f"{DOWNLOAD}/{address}")
        HeldVerdicts.waiting.pop().errback(RuntimeError("it broke"))
        assert asking.answer.status == 503
    server.clock.advance(480)
    asking = held.start("GET", f"{DOWNLOAD}/{address}")
    HeldVerdicts.waiting.pop().callback(None)
    assert asking.answer.body == b"poison"


def test_a_failing_plugin_holds_files(place: ScanningServers) -> None:
    alice = place.server(
        "plugins: [{module: tests.helpers.media_scanning.FailingScanner}]\n"
    ).register("alice")
    address = upload_file(alice, TEA)
    assert alice.get(f"{DOWNLOAD}/{address}").status == 503


def test_a_file_that_clamd_refuses_is_held_and_others_are_not(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    alice = place.server(clamd(scanners)).register("alice")
    long = upload_file(alice, bytes(5 << 20))  # beyond its StreamMaxLength
    assert alice.get(f"{DOWNLOAD}/{long}").status == 503
    assert alice.get(f"{DOWNLOAD}/{upload_file(alice, TEA)}").status == 200


def test_a_lost_file_is_reported(held: User, tmp_path: Path) -> None:
    uploading = begin_upload(held, TEA)
    held.server.clock.advance(5)
    address = uploading.answer.json["content_uri"].removeprefix("mxc://")
    held.server.clock.advance(45)  # the scan was given up
    held.server.clock.advance(601)
    for path in (tmp_path / "media_store" / "content").rglob("*"):
        if path.is_file():
            path.unlink()
    assert held.get(f"{DOWNLOAD}/{address}").status == 404
    held.server.clock.advance(1300)
    do_jobs(held.server)
    row: ScanRow | None = held.server.run(
        held.server.app.media.scanning.store.get_scan(hashlib.sha256(TEA).digest())
    )
    assert row is not None  # a file says that it has it


def begin_upload_and_wait(user: User) -> str:
    """Upload a file that is not scanned in time; its address."""
    uploading = begin_upload(user, TEA)
    user.server.clock.advance(5)
    address: str = uploading.answer.json["content_uri"]
    user.server.clock.advance(45)
    return address.removeprefix("mxc://")


def _pauses(user: User, count: int) -> list[int]:
    """Let so many scans fail; the seconds between each failure and the next time that it is
    tried."""
    pauses = []
    for _ in range(count):
        row: ScanRow | None = user.server.run(
            user.server.app.media.scanning.store.get_scan(hashlib.sha256(TEA).digest())
        )
        assert row is not None
        pause = row.due_ts // 1000 - int(user.server.clock.seconds())
        pauses.append(pause)
        user.server.clock.advance(pause)
        (job, *_) = user.server.app.media.scanning.jobs()
        tried = Deferred.fromCoroutine(_step_of(job))
        user.server.clock.advance(50)
        assert tried.called
    return pauses


async def _step_of(job: Job) -> int:
    return await job.step(10)
