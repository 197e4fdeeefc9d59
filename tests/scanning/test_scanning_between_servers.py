"""Files that are scanned on both servers: infected ones reach no user of the other."""

from pathlib import Path

from tests.helpers.federated_media import DOWNLOAD, THUMBNAIL, media_requests, pair, stored_files
from tests.helpers.images import picture
from tests.helpers.media_files import request_upload, upload_file
from tests.helpers.media_scanning import MINE, PLUGIN, TEA, HeldVerdicts, begin_upload, clamd
from tests.helpers.network import Network
from tests.helpers.scanners import EICAR, EICAR_FOUND, RunningScanners
from tests.helpers.server import make_admin


def test_other_servers_get_no_harmful_files(network: Network, scanners: RunningScanners) -> None:
    alice, bob = pair(network, north=clamd(scanners))
    assert request_upload(alice, EICAR).status == 403
    harmful = f"north.example/{alice.get(MINE).json['media'][0]['media_id']}"
    clean = upload_file(alice, TEA)
    for path in (f"{DOWNLOAD}/{harmful}", f"{THUMBNAIL}/{harmful}?width=9&height=9"):
        answer = bob.get(path)
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    assert bob.get(f"{DOWNLOAD}/{clean}").body == TEA


def test_other_servers_get_no_unscanned_files(network: Network) -> None:
    alice, bob = pair(network, north="media_scanning: {clamd: 'unix:/nonexistent/clamd'}\n")
    address = upload_file(alice, TEA)
    answer = bob.get(f"{DOWNLOAD}/{address}")
    assert (answer.status, answer.errcode) == (502, "M_UNKNOWN")


def test_copies_of_remote_files_are_scanned(
    network: Network, scanners: RunningScanners, tmp_path: Path
) -> None:
    alice, bob = pair(network, south=clamd(scanners))
    root = make_admin(bob.server)
    harmful, clean = upload_file(alice, EICAR), upload_file(alice, TEA)
    for _ in range(2):
        for path in (f"{DOWNLOAD}/{harmful}", f"{THUMBNAIL}/{harmful}?width=9&height=9"):
            assert bob.get(path).errcode == "M_FORBIDDEN"
    assert len(media_requests(network)) == 1  # the copy is here, and held back
    assert bob.get(f"{DOWNLOAD}/{clean}").body == TEA
    assert len(stored_files(tmp_path)) == 2
    info = root.get(f"/_synapse/admin/v1/media/{harmful}").json["media_info"]
    assert (info["quarantined_by"], info["scan"]["found"]) == ("scanner", EICAR_FOUND)
    (found,) = root.get("/_mahalla/admin/v1/media/harmful").json["harmful"]
    assert found["files"] == [
        {"media_origin": "north.example", "media_id": harmful.partition("/")[2], "user_id": None}
    ]
    # the same bytes from somebody here
    assert request_upload(bob, EICAR).status == 403


def test_remote_files_too_large_to_be_scanned_are_not_fetched(
    network: Network, scanners: RunningScanners
) -> None:
    alice, bob = pair(network, south=clamd(scanners, ", max_size: 1000"))
    address = upload_file(alice, bytes(1001))
    assert bob.get(f"{DOWNLOAD}/{address}").errcode == "M_TOO_LARGE"
    assert bob.get(f"{DOWNLOAD}/{upload_file(alice, bytes(1000))}").status == 200


def test_only_the_configured_kinds_of_files_are_scanned(
    network: Network, scanners: RunningScanners
) -> None:
    alice, bob = pair(network, south=clamd(scanners, ", files: [local]"))
    assert bob.get(f"{DOWNLOAD}/{upload_file(alice, EICAR + b' theirs')}").status == 200
    assert request_upload(bob, EICAR).status == 403


def test_a_file_of_another_server_is_held_until_it_is_scanned(network: Network) -> None:
    alice, bob = pair(network, south=PLUGIN)
    carol = bob.server.register("carol")
    address = upload_file(alice, picture(300, 200), "image/png")
    first = bob.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=5000")
    assert HeldVerdicts.seen == [picture(300, 200)]
    paths = (
        f"{DOWNLOAD}/{address}?timeout_ms=40000",
        f"{THUMBNAIL}/{address}?width=32&height=32&timeout_ms=40000",
    )
    others = [user.start("GET", path) for user in (bob, carol) for path in paths]
    network.clock.advance(5)
    assert (first.answer.status, first.answer.errcode) == (504, "M_NOT_YET_UPLOADED")
    assert not any(each.done for each in others)
    HeldVerdicts.waiting.pop().callback(None)
    assert [each.answer.status for each in others] == [200] * 4
    assert others[0].answer.body == picture(300, 200)
    assert (len(HeldVerdicts.seen), len(media_requests(network))) == (1, 1)
    bob.server.app.media.close_workers()


def test_a_harmful_remote_file_is_never_served(network: Network) -> None:
    alice, bob = pair(network, south=PLUGIN)
    carol = bob.server.register("carol")
    address = upload_file(alice, picture(300, 200), "image/png")
    paths = (
        f"{DOWNLOAD}/{address}",
        f"{DOWNLOAD}/{address}/name.png",
        f"{THUMBNAIL}/{address}?width=32&height=32",
        f"/_matrix/media_proxy/unstable/download/{address}",
    )
    waiting = [user.start("GET", path) for user in (bob, carol) for path in paths]
    assert not any(each.done for each in waiting)
    HeldVerdicts.waiting.pop().callback("a worm")
    assert [each.answer.status for each in waiting] == [403] * 8
    assert [carol.get(path).status for path in paths] == [403] * 4
    # the server is restarted, and its neighbour has the same bytes under another address
    network.rebuild("south.example", PLUGIN)
    repeated = upload_file(alice, picture(300, 200), "image/png")
    for path in (f"{DOWNLOAD}/{address}", f"{DOWNLOAD}/{repeated}"):
        answer = network.servers["south.example"].client.request("GET", path, token=bob.token)
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    assert HeldVerdicts.seen == []  # the new server has looked at nothing: what it knows is enough


def test_files_of_one_server_do_not_delay_those_of_others(network: Network) -> None:
    alice, bob = pair(network, south=f"{PLUGIN}media_scanning: {{concurrency: 2}}\n")
    west = network.add("west.example").register("dora")
    many = [upload_file(alice, b"north %d" % number) for number in range(5)]
    theirs = upload_file(west, b"west")
    asking = [bob.start("GET", f"{DOWNLOAD}/{address}") for address in many]
    assert HeldVerdicts.seen == [b"north 0"]  # one of the two turns is for others
    asking.append(bob.start("GET", f"{DOWNLOAD}/{theirs}"))
    assert HeldVerdicts.seen == [b"north 0", b"west"]
    uploading = begin_upload(bob, b"own")
    while HeldVerdicts.waiting:
        HeldVerdicts.waiting.pop(0).callback(None)
    assert {each.answer.status for each in (*asking, uploading)} == {200}
    assert HeldVerdicts.seen == [
        b"north 0",
        b"west",
        b"north 1",
        b"own",
        b"north 2",
        b"north 3",
        b"north 4",
    ]
