"""Files that are scanned on their way between servers: what one finds, the other does not get."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.files_between import DOWNLOAD, THUMBNAIL, asked, kept, pair, upload
from tests.helpers.network import Network
from tests.helpers.scanned import MINE, TEA, administrator, clamd, send
from tests.helpers.scanners import EICAR, EICAR_FOUND, RunningScanners, running_scanners


@pytest.fixture(scope="module")
def scanners() -> Iterator[RunningScanners]:
    with running_scanners() as running:
        yield running


def test_another_server_gets_nothing_harmful(network: Network, scanners: RunningScanners) -> None:
    alice, bob = pair(network, north=clamd(scanners))
    assert send(alice, EICAR).status == 403
    harmful = f"north.example/{alice.get(MINE).json['media'][0]['media_id']}"
    clean = upload(alice, TEA)
    for path in (f"{DOWNLOAD}/{harmful}", f"{THUMBNAIL}/{harmful}?width=9&height=9"):
        answer = bob.get(path)
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    assert bob.get(f"{DOWNLOAD}/{clean}").body == TEA


def test_nor_what_is_not_scanned_yet(network: Network) -> None:
    alice, bob = pair(network, north="media_scanning: {clamd: 'unix:/nonexistent/clamd'}\n")
    address = upload(alice, TEA)
    answer = bob.get(f"{DOWNLOAD}/{address}")
    assert (answer.status, answer.errcode) == (502, "M_UNKNOWN")


def test_copies_are_scanned_here(network: Network, scanners: RunningScanners, tmp_path: Path) -> None:
    alice, bob = pair(network, south=clamd(scanners))
    root = administrator(bob.server)
    harmful, clean = upload(alice, EICAR), upload(alice, TEA)
    for _ in range(2):
        for path in (f"{DOWNLOAD}/{harmful}", f"{THUMBNAIL}/{harmful}?width=9&height=9"):
            assert bob.get(path).errcode == "M_FORBIDDEN"
    assert len(asked(network)) == 1  # the copy is here, and held back
    assert bob.get(f"{DOWNLOAD}/{clean}").body == TEA
    assert len(kept(tmp_path)) == 2
    info = root.get(f"/_synapse/admin/v1/media/{harmful}").json["media_info"]
    assert (info["quarantined_by"], info["scan"]["found"]) == ("scanner", EICAR_FOUND)
    (found,) = root.get("/_mahalla/admin/v1/media/harmful").json["harmful"]
    assert found["files"] == [{"media_origin": "north.example", "media_id": harmful.partition("/")[2], "user_id": None}]
    # the same bytes from somebody here
    assert send(bob, EICAR).status == 403


def test_copies_that_are_too_large_to_be_scanned_are_not_fetched(network: Network, scanners: RunningScanners) -> None:
    alice, bob = pair(network, south=clamd(scanners, ", max_size: 1000"))
    address = upload(alice, bytes(1001))
    assert bob.get(f"{DOWNLOAD}/{address}").errcode == "M_TOO_LARGE"
    assert bob.get(f"{DOWNLOAD}/{upload(alice, bytes(1000))}").status == 200


def test_only_the_files_that_are_to_be_scanned(network: Network, scanners: RunningScanners) -> None:
    alice, bob = pair(network, south=clamd(scanners, ", files: [local]"))
    assert bob.get(f"{DOWNLOAD}/{upload(alice, EICAR + b' theirs')}").status == 200
    assert send(bob, EICAR).status == 403
