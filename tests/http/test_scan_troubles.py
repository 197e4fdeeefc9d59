"""Scanners that are away, slow or out of order: files are held, nothing is lost, and who waits is told."""

import hashlib
from pathlib import Path

from storage.media_scans import ScanRow
from tests.helpers.files_between import DOWNLOAD, THUMBNAIL, upload
from tests.helpers.scanned import MINE, TEA, Held, Place, begin_upload, clamd, do_jobs, latest, metric
from tests.helpers.scanners import EICAR, RunningScanners
from tests.helpers.server import User

AWAY = "media_scanning: {clamd: 'unix:/nonexistent/clamd', upload_wait: 0s}\n"


def test_while_no_scanner_can_be_asked_files_are_held(place: Place) -> None:
    server = place.server(AWAY)
    alice = server.register("alice")
    address = upload(alice, TEA)  # acknowledged: it is on disk, and will be scanned
    answer = alice.get(f"{DOWNLOAD}/{address}")
    assert (answer.status, answer.errcode) == (503, "M_UNKNOWN")
    assert alice.get(f"{THUMBNAIL}/{address}?width=9&height=9").status == 503
    assert latest(alice)["scan"] == {"state": "waiting", "found": None, "scanned_ts": None}
    assert metric(server, "mahalla_media_scans_total", outcome="failed") >= 1
    do_jobs(server)
    assert alice.get(f"{DOWNLOAD}/{address}").status == 503


def test_they_are_scanned_once_it_can(place: Place, scanners: RunningScanners) -> None:
    scanners.stop_clamd()
    try:
        server = place.server(clamd(scanners))
        alice = server.register("alice")
        clean, harmful, asked = upload(alice, TEA), upload(alice, EICAR), upload(alice, EICAR + b" asked")
        assert [alice.get(f"{DOWNLOAD}/{each}").status for each in (clean, harmful)] == [503, 503]
    finally:
        scanners.start_clamd()
    server.clock.advance(6)
    assert alice.get(f"{DOWNLOAD}/{asked}").status == 403  # who asks need not wait for the job
    server.clock.advance(120)
    do_jobs(server)
    assert metric(server, "mahalla_media_scans_waiting", scan="first") == 0
    assert [each["scan"]["state"] for each in alice.get(MINE).json["media"]] == ["harmful", "harmful", "clean"]
    assert [alice.get(f"{DOWNLOAD}/{each}").status for each in (clean, harmful)] == [200, 403]


def test_or_given_out_where_that_is_wished(place: Place, scanners: RunningScanners) -> None:
    scanners.stop_clamd()
    try:
        server = place.server(clamd(scanners, ", unreachable: pass"))
        alice = server.register("alice")
        address = upload(alice, EICAR)
        assert alice.get(f"{DOWNLOAD}/{address}").status == 200
    finally:
        scanners.start_clamd()
    server.clock.advance(130)
    do_jobs(server)
    assert alice.get(f"{DOWNLOAD}/{address}").status == 403


def test_an_upload_waits_a_moment_and_a_download_its_time(held: User) -> None:
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
    assert Held.seen == [TEA]  # once for all who ask
    Held.waiting.pop().callback(None)
    assert (second.answer.status, third.answer.body) == (400, TEA)  # tea is no image
    assert held.get(f"{DOWNLOAD}/{address}").status == 200
    assert Held.seen == [TEA]


def test_a_scan_that_takes_too_long_is_tried_again(held: User) -> None:
    clock = held.server.clock
    uploading = begin_upload(held, TEA)
    clock.advance(5)
    address = uploading.answer.json["content_uri"].removeprefix("mxc://")
    asking = held.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=60000")
    clock.advance(45)
    assert asking.answer.status == 503
    Held.is_quick = True
    do_jobs(held.server)
    assert latest(held)["scan"]["state"] == "waiting"  # others come first for ten minutes
    clock.advance(601)
    do_jobs(held.server)
    assert latest(held)["scan"]["state"] == "clean"


def test_so_many_are_scanned_at_the_same_time(held: User) -> None:
    pending = [begin_upload(held, b"%d" % number) for number in range(5)]
    assert len(Held.seen) == 2
    while Held.waiting:
        Held.waiting.pop().callback(None)
    assert [each.answer.status for each in pending] == [200] * 5
    assert len(Held.seen) == 5


def test_a_plugin_at_fault_holds_files_back(place: Place) -> None:
    alice = place.server("plugins: [{module: tests.helpers.scanned.AtFault}]\n").register("alice")
    address = upload(alice, TEA)
    assert alice.get(f"{DOWNLOAD}/{address}").status == 503


def test_a_file_that_clamd_does_not_take_is_held_and_others_are_not(place: Place, scanners: RunningScanners) -> None:
    alice = place.server(clamd(scanners)).register("alice")
    long = upload(alice, bytes(5 << 20))  # beyond its StreamMaxLength
    assert alice.get(f"{DOWNLOAD}/{long}").status == 503
    assert alice.get(f"{DOWNLOAD}/{upload(alice, TEA)}").status == 200


def test_a_file_that_is_lost_is_told(held: User, tmp_path: Path) -> None:
    uploading = begin_upload(held, TEA)
    held.server.clock.advance(5)
    address = uploading.answer.json["content_uri"].removeprefix("mxc://")
    held.server.clock.advance(45)  # the scan was given up
    for path in (tmp_path / "media_store" / "content").rglob("*"):
        if path.is_file():
            path.unlink()
    assert held.get(f"{DOWNLOAD}/{address}").status == 404
    held.server.clock.advance(700)
    do_jobs(held.server)
    row: ScanRow | None = held.server.run(held.server.app.media.scanning.store.get_scan(hashlib.sha256(TEA).digest()))
    assert row is not None  # a file says that it has it
