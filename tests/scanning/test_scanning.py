"""Files that are scanned before anybody gets them: the complete server, with ClamAV."""

from typing import Any

import pytest

from tests.helpers.federated_media import DOWNLOAD, PUBLIC, THUMBNAIL
from tests.helpers.images import picture
from tests.helpers.media_files import request_upload, upload_file
from tests.helpers.media_scanning import (
    MINE,
    OURS,
    TEA,
    UPLOAD,
    HeldVerdicts,
    ScanningServers,
    begin_upload,
    clamd,
    do_jobs,
    latest,
    metric,
)
from tests.helpers.object_store import RunningObjectStore
from tests.helpers.preview_sites import LinkedPages
from tests.helpers.scanners import EICAR, EICAR_FOUND, RunningScanners
from tests.helpers.server import User, make_admin, move_user


def test_nothing_is_scanned_unless_a_scanner_is_named(place: ScanningServers) -> None:
    server = place.server("")
    alice = server.register("alice")
    address = upload_file(alice, EICAR)
    assert alice.get(f"{DOWNLOAD}/{address}").body == EICAR
    assert latest(alice)["scan"] is None
    assert server.app.media.scanning.jobs() == ()
    assert alice.get(f"/_matrix/media_proxy/unstable/scan/{address}").errcode == "M_UNRECOGNIZED"
    root = make_admin(server)
    assert root.get(f"{OURS}/rescan").json == {}
    assert root.post(f"{OURS}/rescan", {}).errcode == "M_INVALID_PARAM"


@pytest.mark.parametrize("address", ["unix", "tcp"])
def test_a_harmful_file_is_refused_and_quarantined(
    place: ScanningServers, scanners: RunningScanners, address: str
) -> None:
    server = place.server(f"media_scanning: {{clamd: '{getattr(scanners, address)}'}}\n")
    alice, root = server.register("alice"), make_admin(server)
    answer = request_upload(alice, b"before " + EICAR + b" after")
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    assert EICAR_FOUND in answer.json["error"]

    seen = latest(alice)
    assert seen["scan"] == {
        "state": "harmful",
        "found": EICAR_FOUND,
        "scanned_ts": 1_700_000_000_000,
    }
    file = f"example.org/{seen['media_id']}"
    for path in (
        f"{DOWNLOAD}/{file}",
        f"{DOWNLOAD}/{file}/name.txt",
        f"{THUMBNAIL}/{file}?width=9&height=9",
    ):
        for user in (alice, root):
            refused = user.get(path)
            assert (refused.status, refused.errcode) == (403, "M_FORBIDDEN")
            assert (
                EICAR_FOUND not in refused.json["error"]
            )  # that is for the uploader and for administrators
    assert server.get(f"{PUBLIC}/{file}").status == 404
    assert root.get(f"{DOWNLOAD}/{file}?admin_unsafely_bypass_quarantine=true").status == 200

    info = root.get(f"/_synapse/admin/v1/media/{file}").json["media_info"]
    assert (info["quarantined_by"], info["scan"]["found"]) == ("scanner", EICAR_FOUND)
    (listed,) = root.get(f"/_synapse/admin/v1/users/{alice.user_id}/media").json["media"]
    assert (listed["quarantined_by"], listed["scan"]["state"]) == ("scanner", "harmful")
    (found,) = root.get(f"{OURS}/harmful").json["harmful"]
    assert found["files"] == [
        {"media_origin": "example.org", "media_id": seen["media_id"], "user_id": alice.user_id}
    ]
    assert (found["scan"]["found"], found["is_inside"], found["key_shown_by"]) == (
        EICAR_FOUND,
        False,
        None,
    )
    assert found["file_count"] == 1
    assert found["scanners"].startswith("clamd ClamAV")
    records = root.get(f"/_mahalla/admin/v1/users/{alice.user_id}/audit").json["records"]
    assert [each["event"] for each in records].count("file_found_harmful") == 1
    assert root.get("/_synapse/admin/v1/media/quarantine_changes").json["changes"] == [
        {"origin": "example.org", "media_id": seen["media_id"], "quarantined": True}
    ]
    assert metric(server, "mahalla_media_scans_total", outcome="harmful") == 1

    # another user with the same bytes
    bob = server.register("bob")
    assert request_upload(bob, b"before " + EICAR + b" after").status == 403
    assert latest(bob)["scan"]["state"] == "harmful"
    assert metric(server, "mahalla_media_scans_total", outcome="harmful") == 1


def test_a_clean_file_is_scanned_once(place: ScanningServers, scanners: RunningScanners) -> None:
    server = place.server(clamd(scanners))
    alice, bob = server.register("alice"), server.register("bob")
    image = picture(300, 200)
    addresses = [upload_file(user, image, "image/png") for user in (alice, bob)]
    for address in addresses:
        assert bob.get(f"{DOWNLOAD}/{address}").body == image
        assert bob.get(f"{THUMBNAIL}/{address}?width=96&height=96").status == 200
    assert latest(alice)["scan"] == {
        "state": "clean",
        "found": None,
        "scanned_ts": 1_700_000_000_000,
    }
    assert metric(server, "mahalla_media_scans_total", outcome="clean") == 1
    assert metric(server, "mahalla_media_scan_bytes_total") == len(image)
    do_jobs(server)
    assert metric(server, "mahalla_media_scans_total", outcome="clean") == 1


def test_an_upload_to_a_reserved_uri_is_scanned(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    server = place.server(clamd(scanners))
    alice = server.register("alice")
    for body, status in ((TEA, 200), (EICAR, 403)):
        address = alice.post("/_matrix/media/v1/create").json["content_uri"].removeprefix("mxc://")
        waiting = alice.start("GET", f"{DOWNLOAD}/{address}")
        filled = server.client.request("PUT", f"{UPLOAD}/{address}", token=alice.token, body=body)
        assert (filled.status, waiting.answer.status) == (status, status)


def test_a_finding_of_a_plugin_refuses_the_upload(held: User) -> None:
    uploading = begin_upload(held, TEA)
    HeldVerdicts.waiting.pop().callback("tea")
    assert uploading.answer.status == 403
    assert latest(held)["scan"]["found"] == "plug-in: tea"


def test_files_of_forbidden_types_are_refused(place: ScanningServers) -> None:
    config = (
        "media_scanning: {forbidden_types: [application/x-msdownload, image/png], files: [local]}\n"
    )
    alice = place.server(config).register("alice")
    assert (
        "type: application/x-msdownload" in request_upload(alice, b"MZ" + bytes(500)).json["error"]
    )
    assert request_upload(alice, picture(9, 9), "text/plain").status == 403
    assert request_upload(alice, picture(9, 9, "JPEG"), "image/png").status == 200
    assert request_upload(alice, b"").status == 200


def test_files_too_large_to_be_scanned_follow_the_configuration(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    long = bytes(1001)
    server = place.server(clamd(scanners, ", max_size: 1000"))
    alice = server.register("alice")
    answer = request_upload(alice, long)
    assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE")
    assert alice.get("/_matrix/client/v1/media/config").json == {"m.upload.size": 1000}
    assert request_upload(alice, bytes(1000)).status == 200
    passing = place.server(clamd(scanners, ", max_size: 1000, oversized_files: pass"))
    user = move_user(passing, alice)
    assert user.get("/_matrix/client/v1/media/config").json["m.upload.size"] > 1000
    address = upload_file(user, long)
    assert user.get(f"{DOWNLOAD}/{address}").body == long
    strict = move_user(server, alice)
    assert strict.get(f"{DOWNLOAD}/{address}").status == 403
    scans = {each["media_id"]: each["scan"] for each in strict.get(MINE).json["media"]}
    assert scans[address.partition("/")[2]] is None


def test_older_files_are_scanned_when_they_are_requested(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    before = place.server("").register("alice")
    addresses = [upload_file(before, body) for body in (EICAR, TEA)]
    alice = move_user(place.server(clamd(scanners)), before)
    assert [alice.get(f"{DOWNLOAD}/{each}").status for each in addresses] == [403, 200]
    assert latest(alice)["scan"]["state"] == "clean"


def test_an_administrator_can_override_a_finding(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    server = place.server(clamd(scanners))
    alice, root = server.register("alice"), make_admin(server)
    request_upload(alice, EICAR)
    file = f"example.org/{latest(alice)['media_id']}"
    assert root.post(f"/_synapse/admin/v1/media/unquarantine/{file}").status == 200
    assert alice.get(f"{DOWNLOAD}/{file}").body == EICAR
    assert latest(alice)["scan"]["state"] == "freed"
    assert request_upload(alice, EICAR).status == 200
    assert root.get(f"{OURS}/harmful").json["harmful"][0]["scan"]["state"] == "freed"
    assert root.get(f"{OURS}/harmful?limit=1").json["next_token"] == 1
    assert root.get(f"{OURS}/harmful?from=1").json == {"harmful": []}
    assert root.get(f"{OURS}/harmful?limit=0").errcode == "M_INVALID_PARAM"
    assert alice.get(f"{OURS}/harmful").errcode == "M_FORBIDDEN"


def test_protected_files_are_not_quarantined(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    before = place.server("")
    alice, root = before.register("alice"), make_admin(before)
    address = upload_file(alice, EICAR)
    assert root.post(f"/_synapse/admin/v1/media/protect/{address.partition('/')[2]}").status == 200
    server = place.server(clamd(scanners))
    assert server.client.request("GET", f"{DOWNLOAD}/{address}", token=alice.token).body == EICAR
    assert server.client.request("GET", f"{DOWNLOAD}/{address}").status == 401


def test_images_of_url_previews_are_scanned(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    pages = LinkedPages()
    for name in ("clean", "harmful"):
        url = f"https://site.example/{name}"
        pages.put(
            url,
            f'<meta property="og:title" content="A"><meta property="og:image"'
            f' content="/{name}.png">',
        )
        pages.put(
            f"{url}.png", picture(30, 20) + (EICAR if name == "harmful" else b""), "image/png"
        )
    server = place.server("url_preview_enabled: true\n" + clamd(scanners), preview_web=pages)
    alice = server.register("alice")
    shown = {
        name: alice.get(
            f"/_matrix/client/v1/media/preview_url?url=https%3A%2F%2Fsite.example%2F{name}"
        ).json
        for name in ("clean", "harmful")
    }
    assert shown["harmful"] == {"og:title": "A"}
    for hour in range(3):  # it is asked for again, and by another page: that makes no further files
        pages.put(
            f"https://site.example/{hour}", '<meta property="og:image" content="/harmful.png">'
        )
        server.clock.advance(3700)
        for name in ("harmful", str(hour)):
            repeated = alice.get(
                f"/_matrix/client/v1/media/preview_url?url=https%3A%2F%2Fsite.example%2F{name}"
            )
            assert "og:image" not in repeated.json
    (found,) = make_admin(server).get(f"{OURS}/harmful").json["harmful"]
    assert found["file_count"] == 1
    picture_of = shown["clean"]["og:image"].removeprefix("mxc://")
    assert alice.get(f"{DOWNLOAD}/{picture_of}").status == 200


def test_no_client_is_redirected_to_a_harmful_object(
    place: ScanningServers, scanners: RunningScanners, running_store: RunningObjectStore
) -> None:
    bucket = running_store.bucket()
    store = ", ".join(f"{name}: '{value}'" for name, value in bucket.section().items())
    server = place.server(
        f"media_object_store: {{{store}, redirects: true}}\nmax_upload_size: 50M\n"
        f"media_scanning: {{clamd: '{scanners.unix}', max_size: 20M, upload_wait: 0s}}\n"
    )
    alice = server.register("alice")
    clean = upload_file(alice, TEA)
    assert alice.get(f"{DOWNLOAD}/{clean}?allow_redirect=true").status == 307
    request_upload(alice, EICAR)
    harmful = f"example.org/{latest(alice)['media_id']}"
    assert alice.get(f"{DOWNLOAD}/{harmful}?allow_redirect=true").status == 403


def test_a_scanned_file_costs_one_more_query(
    place: ScanningServers, scanners: RunningScanners
) -> None:
    """A download of a file that was scanned: one query more."""
    alice = place.server(clamd(scanners)).register("alice")
    address = upload_file(alice, TEA)
    with pytest.MonkeyPatch.context() as patch:
        counted: list[str] = []
        real = alice.server.app.database.read_quickly

        async def counting(name: str, *args: Any, **kwargs: Any) -> Any:
            counted.append(name)
            return await real(name, *args, **kwargs)

        patch.setattr(alice.server.app.database, "read_quickly", counting)
        assert alice.get(f"{DOWNLOAD}/{address}").status == 200
    assert [each for each in counted if "media" in each] == ["get_media", "get_media_scan"]
