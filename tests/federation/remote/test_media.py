"""Files of other servers: fetched once, stored, served like local ones, and deleted."""

import io
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from federation.protocol.ids import ServerName
from homeserver.services.media.download_slots import MAX_FAST_PER_SERVER
from tests.helpers.federated_media import (
    DAY,
    DOWNLOAD,
    OPEN,
    PUBLIC,
    SIGNED,
    THUMBNAIL,
    media_requests,
    pair,
    stored_files,
)
from tests.helpers.http import Answer
from tests.helpers.images import opened, picture
from tests.helpers.media_files import upload_file
from tests.helpers.network import Fate, Network
from tests.helpers.remote_membership import NORTH, SOUTH
from tests.helpers.room_actions import refused

# A file of another server.


def test_a_remote_file_is_downloaded_unchanged(network: Network, tmp_path: Path) -> None:
    alice, bob = pair(network)
    data = bytes(range(256)) * 2000 + b"\r\n--x\r\n"
    address = upload_file(alice, data, "image/svg+xml", "?filename=t%C3%A9a%20%22x%22.svg")

    answer = bob.get(f"{DOWNLOAD}/{address}")

    own = alice.get(f"{DOWNLOAD}/{address}")
    assert (answer.status, answer.body) == (200, data)
    for header in (
        "content-type",
        "content-disposition",
        "content-security-policy",
        "cache-control",
        "etag",
    ):
        assert answer.headers[header] == own.headers[header]
    assert answer.headers["content-disposition"].startswith("attachment; ")
    assert len(stored_files(tmp_path)) == 1

    assert (
        bob.get(f"{DOWNLOAD}/{address}/other.txt").headers["content-disposition"]
        == "attachment; filename=other.txt"
    )
    assert len(media_requests(network)) == 1
    assert media_requests(network)[0].startswith(
        f"{SIGNED}download/{address.partition('/')[2]}?timeout_ms="
    )


def test_thumbnails_of_remote_files_are_made_locally(network: Network) -> None:
    alice, bob = pair(network)
    address = upload_file(alice, picture(800, 600), "image/png")
    answer = bob.get(f"{THUMBNAIL}/{address}?width=64&height=48&method=scale")
    assert answer.status == 200
    assert opened(answer.body).size == (64, 48)
    assert bob.get(f"{THUMBNAIL}/{address}?width=32&height=32&method=crop").status == 200
    assert len(media_requests(network)) == 1


def test_equal_files_of_several_servers_are_stored_once(network: Network, tmp_path: Path) -> None:
    alice, bob = pair(network)
    assert bob.get(f"{DOWNLOAD}/{upload_file(alice, b'same')}").body == b"same"
    assert bob.get(f"{DOWNLOAD}/{upload_file(alice, b'same')}").body == b"same"
    upload_file(bob, b"same")
    assert len(stored_files(tmp_path)) == 1


def test_a_copy_is_served_while_its_server_is_down_and_after_a_restart(network: Network) -> None:
    alice, bob = pair(network)
    address = upload_file(alice, b"hello")
    assert bob.get(f"{DOWNLOAD}/{address}").body == b"hello"
    network.cut(NORTH, SOUTH)
    restarted = network.rebuild(SOUTH)
    assert restarted.get(f"{DOWNLOAD}/{address}", token=bob.token).body == b"hello"


def test_concurrent_downloads_share_one_request(network: Network) -> None:
    alice, bob = pair(network)
    address = upload_file(alice, b"hello")
    network.hold()
    waiting = [bob.start("GET", f"{DOWNLOAD}/{address}") for _ in range(30)]
    network.deliver()
    assert {(each.answer.status, each.answer.body) for each in waiting} == {(200, b"hello")}
    assert len(media_requests(network)) == 1


def test_a_server_is_asked_for_few_files_at_once(network: Network) -> None:
    alice, bob = pair(network)
    addresses = [
        upload_file(alice, f"{number}".encode()) for number in range(MAX_FAST_PER_SERVER + 3)
    ]
    network.hold()
    waiting = [bob.start("GET", f"{DOWNLOAD}/{address}") for address in addresses]
    assert len(media_requests(network)) == MAX_FAST_PER_SERVER
    network.deliver()
    assert [each.answer.body for each in waiting] == [
        f"{number}".encode() for number in range(MAX_FAST_PER_SERVER + 3)
    ]


def test_a_file_that_is_still_being_uploaded_is_waited_for(network: Network) -> None:
    alice, bob = pair(network)
    address = alice.post("/_matrix/media/v1/create").json["content_uri"].removeprefix("mxc://")
    early = bob.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=1000")
    network.clock.advance(1.5)
    assert refused(early.answer) == (504, "M_NOT_YET_UPLOADED")

    network.clock.advance(1)
    waiting = bob.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=10000")
    headers = {"Content-Type": "text/plain"}
    path = f"/_matrix/media/v3/upload/{address}"
    assert (
        alice.server.client.request(
            "PUT", path, token=alice.token, body=b"late", headers=headers
        ).status
        == 200
    )
    assert (waiting.answer.status, waiting.answer.body) == (200, b"late")


def test_a_download_with_a_short_timeout_does_not_wait_for_others(network: Network) -> None:
    alice, bob = pair(network)
    address = upload_file(alice, b"hello")
    network.hold()
    patient = bob.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=20000")
    hasty = bob.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=100")
    network.clock.advance(0.2)
    assert refused(hasty.answer) == (504, "M_NOT_YET_UPLOADED")
    network.deliver()
    assert patient.answer.body == b"hello"
    assert len(media_requests(network)) == 1


def test_a_missing_file_is_requested_again_only_after_a_while(network: Network) -> None:
    _, bob = pair(network)
    for _ in range(3):
        assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/nothing")) == (404, "M_NOT_FOUND")
    assert len(media_requests(network)) == 1
    network.clock.advance(61)
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/nothing")) == (404, "M_NOT_FOUND")
    assert len(media_requests(network)) == 2


def test_an_unreachable_server_is_not_contacted_for_a_while(network: Network) -> None:
    alice, bob = pair(network)
    address = upload_file(alice, b"hello")
    network.cut(NORTH, SOUTH)
    assert refused(bob.get(f"{DOWNLOAD}/{address}")) == (502, "M_UNKNOWN")
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/another")) == (502, "M_UNKNOWN")
    assert len(media_requests(network)) == 1
    network.mend(NORTH, SOUTH)
    network.clock.advance(21)
    assert bob.get(f"{DOWNLOAD}/{address}").body == b"hello"


def test_a_server_that_never_answers_times_out(network: Network) -> None:
    alice, bob = pair(network)
    address = upload_file(alice, b"hello")
    network.choose_fate = lambda _: Fate.IS_NOT_ANSWERED
    waiting = bob.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=60000")
    network.clock.advance(60)
    assert refused(waiting.answer) == (504, "M_NOT_YET_UPLOADED")
    network.clock.advance(31)
    network.choose_fate = lambda _: Fate.ARRIVES
    assert refused(bob.get(f"{DOWNLOAD}/{address}")) == (502, "M_UNKNOWN")
    network.clock.advance(61)
    assert bob.get(f"{DOWNLOAD}/{address}").body == b"hello"


# Who may have it.


def test_copies_need_an_access_token(network: Network) -> None:
    alice, bob = pair(network)
    address = upload_file(alice, b"hello")
    assert refused(bob.server.get(f"{PUBLIC}/{address}")) == (404, "M_NOT_FOUND")
    assert media_requests(network) == []
    bob.get(f"{DOWNLOAD}/{address}")
    assert refused(bob.server.get(f"{PUBLIC}/{address}")) == (404, "M_NOT_FOUND")
    assert refused(bob.server.get(f"{DOWNLOAD}/{address}")) == (401, "M_MISSING_TOKEN")


def test_without_authenticated_media_copies_are_open(network: Network) -> None:
    alice, bob = pair(network, south=OPEN)
    address = upload_file(alice, b"hello")
    assert refused(bob.server.get(f"{PUBLIC}/{address}?allow_remote=false")) == (404, "M_NOT_FOUND")
    assert media_requests(network) == []
    assert bob.server.get(f"{PUBLIC}/{address}").body == b"hello"
    assert bob.server.get(f"{PUBLIC}/{address}?allow_remote=false").body == b"hello"


def test_copies_can_be_frozen_from_a_date_on(network: Network) -> None:
    alice, bob = pair(network, south=OPEN)
    address = upload_file(alice, b"x")
    assert bob.get(f"{DOWNLOAD}/{address}").status == 200
    for day, status in (("2023-11-14", 404), ("2023-11-15", 200)):
        frozen = network.rebuild(SOUTH, f"legacy_media_freeze_date: {day}\n")
        assert frozen.get(f"{PUBLIC}/{address}").status == status


def test_files_of_excluded_servers_are_not_fetched(network: Network) -> None:
    alice, bob = pair(network, south=f"prevent_media_downloads_from: [{NORTH.upper()}]\n")
    assert refused(bob.get(f"{DOWNLOAD}/{upload_file(alice, b'hello')}")) == (403, "M_FORBIDDEN")
    assert media_requests(network) == []


@pytest.mark.parametrize("side", ["south", "north"])
def test_the_federation_policy_applies_to_media_in_both_directions(
    network: Network, side: str
) -> None:
    other = NORTH if side == "south" else SOUTH
    alice, bob = pair(network, **{side: f"federation_domain_blacklist: [{other}]\n"})
    answer = bob.get(f"{DOWNLOAD}/{upload_file(alice, b'hello')}")
    assert refused(answer) == (403, "M_FORBIDDEN")
    assert bool(media_requests(network)) == (side == "north")


def test_downloads_of_remote_files_are_limited_by_ip_address(network: Network) -> None:
    config = "remote_media_download_burst_count: 1000\nremote_media_download_per_second: 100\n"
    alice, bob = pair(network, south=config)
    first, second = upload_file(alice, bytes(5000)), upload_file(alice, bytes(10))
    assert bob.get(f"{DOWNLOAD}/{first}").status == 200
    assert refused(bob.get(f"{DOWNLOAD}/{second}")) == (429, "M_LIMIT_EXCEEDED")
    assert bob.get(f"{DOWNLOAD}/{first}").status == 200
    network.clock.advance(41)
    assert bob.get(f"{DOWNLOAD}/{second}").status == 200


@pytest.mark.parametrize("query", ["timeout_ms=-1", "timeout_ms=x"])
def test_invalid_timeouts_are_refused(network: Network, query: str) -> None:
    _, bob = pair(network)
    assert bob.get(f"{DOWNLOAD}/{NORTH}/abc?{query}").status == 400


def test_invalid_media_ids_are_not_requested(network: Network) -> None:
    _, bob = pair(network)
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/..%2Fabc")) == (404, "M_NOT_FOUND")
    assert media_requests(network) == []


# Giving ours to others.


def ask_signed(network: Network, path: str) -> Answer:
    """Return the answer of the north to a signed request of the south, as bytes."""
    taken: list[Any] = []

    def take(_status: int, headers: Any) -> Callable[[bytes], None]:
        taken.extend((headers, b""))

        def give(data: bytes) -> None:
            taken[1] += data

        return give

    requests = network.servers[SOUTH].app.peers.requests
    network.servers[SOUTH].run(
        requests.download(
            ServerName(NORTH), path, (), take, seconds=30, max_bytes=1 << 20, signed=True
        )
    )
    return Answer(200, taken[0], taken[1])


def test_the_federation_response_has_two_parts(network: Network) -> None:
    alice, _ = pair(network)
    address = upload_file(alice, b"hello", "text/html", "?filename=a.html")
    answer = ask_signed(network, f"{SIGNED}download/{address.partition('/')[2]}")
    type, _, boundary = answer.headers["content-type"].partition("; boundary=")
    assert type == "multipart/mixed"
    first, second, end = answer.body.split(f"--{boundary}".encode())[1:]
    assert first == b"\r\nContent-Type: application/json\r\n\r\n{}\r\n"
    assert second.startswith(b"\r\nContent-Type: text/html; charset=utf-8\r\n")
    assert b"\r\nContent-Disposition: attachment; filename=a.html\r\n" in second
    assert second.endswith(b"\r\n\r\nhello\r\n")
    assert end == b"--\r\n"


def test_other_servers_get_thumbnails(network: Network) -> None:
    alice, _ = pair(network)
    media_id = upload_file(alice, picture(800, 600), "image/png").partition("/")[2]
    answer = ask_signed(network, f"{SIGNED}thumbnail/{media_id}?width=64&height=48&method=crop")
    picture_part = answer.body.split(b"\r\n\r\n", 2)[2].rpartition(b"\r\n--")[0]
    assert opened(picture_part).size == (64, 48)


def test_only_servers_may_use_the_federation_endpoint(network: Network) -> None:
    alice, bob = pair(network)
    address = upload_file(bob, b"hello")
    alice.get(f"{DOWNLOAD}/{address}")
    media_id = address.partition("/")[2]
    assert refused(alice.server.get(f"{SIGNED}download/{media_id}"))[0] == HTTPStatus.UNAUTHORIZED
    with pytest.raises(
        IndexError
    ):  # refused, so there is no answer: it is a file of the south, not of the north
        ask_signed(network, f"{SIGNED}download/{media_id}")


# Taking away.


RETENTION = "media_retention: {remote_media_lifetime: 30d}\n"


def test_unread_copies_are_deleted(network: Network, tmp_path: Path) -> None:
    alice, bob = pair(network, south=RETENTION)
    south = bob.server
    shared, unread, read = (
        upload_file(alice, b"shared"),
        upload_file(alice, picture(80, 60)),
        upload_file(alice, b"read"),
    )
    own = upload_file(bob, b"shared")
    for address in (shared, unread, read):
        assert bob.get(f"{DOWNLOAD}/{address}").status == 200
    assert bob.get(f"{THUMBNAIL}/{unread}?width=32&height=32&method=crop").status == 200

    network.clock.advance(20 * DAY)
    bob.get(f"{DOWNLOAD}/{read}")
    network.clock.advance(15 * DAY)
    assert south.run(south.app.media.maintenance.removal.do_remove_unused_copies(50)) == 2

    assert len(stored_files(tmp_path)) == 2
    network.cut(NORTH, SOUTH)
    assert bob.get(f"{DOWNLOAD}/{own}").body == b"shared"
    assert bob.get(f"{DOWNLOAD}/{read}").body == b"read"
    assert bob.get(f"{DOWNLOAD}/{unread}").status == 502
    network.mend(NORTH, SOUTH)
    network.clock.advance(30)
    assert bob.get(f"{DOWNLOAD}/{unread}").status == 200


def test_without_a_lifetime_copies_are_kept(network: Network) -> None:
    alice, bob = pair(network)
    bob.get(f"{DOWNLOAD}/{upload_file(alice, b'hello')}")
    network.clock.advance(3650 * DAY)
    assert bob.server.run(bob.server.app.media.maintenance.removal.do_remove_unused_copies(50)) == 0


def test_no_copy_is_deleted_during_a_download(network: Network, tmp_path: Path) -> None:
    alice, bob = pair(network, south=RETENTION)
    bob.get(f"{DOWNLOAD}/{upload_file(alice, b'hello')}")
    network.clock.advance(31 * DAY)
    media = bob.server.app.media
    with (tmp_path / "other").open("w+b") as other:
        stored = bob.server.run(media.files.add(other))
    removed: list[int] = []
    Deferred.fromCoroutine(media.maintenance.removal.do_remove_unused_copies(50)).addCallback(
        removed.append
    )
    network.clock.advance(1)
    assert removed == []
    bob.server.run(media.files.settle(stored))
    network.clock.advance(1)
    assert removed == [1]


def test_files_left_by_a_crash_are_swept(network: Network, tmp_path: Path) -> None:
    alice, bob = pair(network)
    address = upload_file(alice, b"hello")
    assert bob.get(f"{DOWNLOAD}/{address}").status == 200
    files = bob.server.app.media.files
    for data in (b"hello", b"never in the database"):
        files.abandon(bob.server.run(files.add(io.BytesIO(data))))
    assert len(stored_files(tmp_path)) == 4
    restarted = network.rebuild(SOUTH)
    restarted.app.media.sweep()
    assert len(stored_files(tmp_path)) == 1
    assert restarted.get(f"{DOWNLOAD}/{address}", token=bob.token).body == b"hello"
