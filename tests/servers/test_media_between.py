"""Files of other servers: fetched once, kept, given out as own ones are, and taken away again."""

import io
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from federation.outbound.request import TakeBody
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName
from federation.wire import WireAnswer, WireRequest
from homeserver.services.media.fetching import AT_ONCE
from storage.database import Database
from tests.helpers.handshakes import NORTH, SOUTH
from tests.helpers.http import Answer
from tests.helpers.images import opened, picture
from tests.helpers.network import Fate, Network
from tests.helpers.server import TestServer, User
from tests.helpers.talk import refused

DOWNLOAD = "/_matrix/client/v1/media/download"
THUMBNAIL = "/_matrix/client/v1/media/thumbnail"
PUBLIC = "/_matrix/media/v3/download"
SIGNED = "/_matrix/federation/v1/media/"
OPEN = "enable_authenticated_media: false\n"
DAY = 24 * 3600


def pair(network: Network, north: str = "", south: str = "") -> tuple[User, User]:
    """Somebody on each of two servers: who has files, and who wants them."""
    return network.add(NORTH, north).register("alice"), network.add(SOUTH, south).register("bob")


def upload(user: User, body: bytes, type: str = "text/plain", query: str = "") -> str:
    """Server name and media id of a new file."""
    path = f"/_matrix/media/v3/upload{query}"
    answer = user.server.client.request("POST", path, token=user.token, body=body, headers={"Content-Type": type})
    assert answer.status == 200, answer.body
    return str(answer.json["content_uri"]).removeprefix("mxc://")


def asked(network: Network, path: str = "/media/") -> list[str]:
    return [uri for _, _, _, uri in network.log if path in uri]


def kept(tmp_path: Path, server: str = SOUTH) -> list[Path]:
    folder = tmp_path / server / "media_store"
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def lie(network: Network, answer: Callable[[str], WireAnswer | None]) -> None:
    """Let questions for files be answered so, by their path."""
    network.liars.append(lambda _, request: answer(request.uri) if "/media/" in request.uri else None)


def multipart(*parts: bytes, end: bytes = b"\r\n--x--\r\n", type: str = "multipart/mixed; boundary=x") -> WireAnswer:
    body = b"".join(b"\r\n--x\r\n" + part for part in parts) + end
    return WireAnswer(200, {"content-type": type}, body)


METADATA = b"Content-Type: application/json\r\n\r\n{}"
PLAIN = b"Content-Type: text/plain\r\n\r\nhello"


# A file of another server.


def test_a_file_comes_as_it_was(network: Network, tmp_path: Path) -> None:
    alice, bob = pair(network)
    data = bytes(range(256)) * 2000 + b"\r\n--x\r\n"
    address = upload(alice, data, "image/svg+xml", "?filename=t%C3%A9a%20%22x%22.svg")

    answer = bob.get(f"{DOWNLOAD}/{address}")

    own = alice.get(f"{DOWNLOAD}/{address}")
    assert (answer.status, answer.body) == (200, data)
    for header in ("content-type", "content-disposition", "content-security-policy", "cache-control", "etag"):
        assert answer.headers[header] == own.headers[header]
    assert answer.headers["content-disposition"].startswith("attachment; ")
    assert len(kept(tmp_path)) == 1

    assert bob.get(f"{DOWNLOAD}/{address}/other.txt").headers["content-disposition"] == "attachment; filename=other.txt"
    assert len(asked(network)) == 1
    assert asked(network)[0].startswith(f"{SIGNED}download/{address.partition('/')[2]}?timeout_ms=")


def test_thumbnails_are_made_here(network: Network) -> None:
    alice, bob = pair(network)
    address = upload(alice, picture(800, 600), "image/png")
    answer = bob.get(f"{THUMBNAIL}/{address}?width=64&height=48&method=scale")
    assert answer.status == 200
    assert opened(answer.body).size == (64, 48)
    assert bob.get(f"{THUMBNAIL}/{address}?width=32&height=32&method=crop").status == 200
    assert len(asked(network)) == 1


def test_equal_files_of_several_servers_are_kept_once(network: Network, tmp_path: Path) -> None:
    alice, bob = pair(network)
    assert bob.get(f"{DOWNLOAD}/{upload(alice, b'same')}").body == b"same"
    assert bob.get(f"{DOWNLOAD}/{upload(alice, b'same')}").body == b"same"
    upload(bob, b"same")
    assert len(kept(tmp_path)) == 1


def test_a_copy_outlives_its_server_and_a_restart(network: Network) -> None:
    alice, bob = pair(network)
    address = upload(alice, b"hello")
    assert bob.get(f"{DOWNLOAD}/{address}").body == b"hello"
    network.cut(NORTH, SOUTH)
    again = network.rebuild(SOUTH)
    assert again.get(f"{DOWNLOAD}/{address}", token=bob.token).body == b"hello"


def test_many_who_ask_at_once_are_one_question(network: Network) -> None:
    alice, bob = pair(network)
    address = upload(alice, b"hello")
    network.hold()
    waiting = [bob.start("GET", f"{DOWNLOAD}/{address}") for _ in range(30)]
    network.deliver()
    assert {(each.answer.status, each.answer.body) for each in waiting} == {(200, b"hello")}
    assert len(asked(network)) == 1


def test_a_server_is_asked_for_few_files_at_once(network: Network) -> None:
    alice, bob = pair(network)
    addresses = [upload(alice, f"{number}".encode()) for number in range(AT_ONCE + 3)]
    network.hold()
    waiting = [bob.start("GET", f"{DOWNLOAD}/{address}") for address in addresses]
    assert len(asked(network)) == AT_ONCE
    network.deliver()
    assert [each.answer.body for each in waiting] == [f"{number}".encode() for number in range(AT_ONCE + 3)]


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
    assert alice.server.client.request("PUT", path, token=alice.token, body=b"late", headers=headers).status == 200
    assert (waiting.answer.status, waiting.answer.body) == (200, b"late")


def test_who_does_not_want_to_wait_does_not_wait_for_others(network: Network) -> None:
    alice, bob = pair(network)
    address = upload(alice, b"hello")
    network.hold()
    patient = bob.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=20000")
    hasty = bob.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=100")
    network.clock.advance(0.2)
    assert refused(hasty.answer) == (504, "M_NOT_YET_UPLOADED")
    network.deliver()
    assert patient.answer.body == b"hello"
    assert len(asked(network)) == 1


def test_what_is_not_there_is_asked_for_once_in_a_while(network: Network) -> None:
    _, bob = pair(network)
    for _ in range(3):
        assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/nothing")) == (404, "M_NOT_FOUND")
    assert len(asked(network)) == 1
    network.clock.advance(61)
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/nothing")) == (404, "M_NOT_FOUND")
    assert len(asked(network)) == 2


def test_a_server_that_cannot_be_reached_is_left_alone_for_a_while(network: Network) -> None:
    alice, bob = pair(network)
    address = upload(alice, b"hello")
    network.cut(NORTH, SOUTH)
    assert refused(bob.get(f"{DOWNLOAD}/{address}")) == (502, "M_UNKNOWN")
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/another")) == (502, "M_UNKNOWN")
    assert len(asked(network)) == 1
    network.mend(NORTH, SOUTH)
    network.clock.advance(21)
    assert bob.get(f"{DOWNLOAD}/{address}").body == b"hello"


def test_a_server_that_never_answers_is_given_up(network: Network) -> None:
    alice, bob = pair(network)
    address = upload(alice, b"hello")
    network.weather = lambda _: Fate.IS_NOT_ANSWERED
    waiting = bob.start("GET", f"{DOWNLOAD}/{address}?timeout_ms=60000")
    network.clock.advance(60)
    assert refused(waiting.answer) == (504, "M_NOT_YET_UPLOADED")
    network.clock.advance(31)
    network.weather = lambda _: Fate.ARRIVES
    assert refused(bob.get(f"{DOWNLOAD}/{address}")) == (502, "M_UNKNOWN")
    network.clock.advance(61)
    assert bob.get(f"{DOWNLOAD}/{address}").body == b"hello"


# Who may have it.


def test_copies_are_for_those_who_show_a_token(network: Network) -> None:
    alice, bob = pair(network)
    address = upload(alice, b"hello")
    assert refused(bob.server.get(f"{PUBLIC}/{address}")) == (404, "M_NOT_FOUND")
    assert asked(network) == []
    bob.get(f"{DOWNLOAD}/{address}")
    assert refused(bob.server.get(f"{PUBLIC}/{address}")) == (404, "M_NOT_FOUND")
    assert refused(bob.server.get(f"{DOWNLOAD}/{address}")) == (401, "M_MISSING_TOKEN")


def test_where_files_are_open_those_of_others_are_too(network: Network) -> None:
    alice, bob = pair(network, south=OPEN)
    address = upload(alice, b"hello")
    assert refused(bob.server.get(f"{PUBLIC}/{address}?allow_remote=false")) == (404, "M_NOT_FOUND")
    assert asked(network) == []
    assert bob.server.get(f"{PUBLIC}/{address}").body == b"hello"
    assert bob.server.get(f"{PUBLIC}/{address}?allow_remote=false").body == b"hello"


def test_servers_whose_files_are_not_wanted(network: Network) -> None:
    alice, bob = pair(network, south=f"prevent_media_downloads_from: [{NORTH.upper()}]\n")
    assert refused(bob.get(f"{DOWNLOAD}/{upload(alice, b'hello')}")) == (403, "M_FORBIDDEN")
    assert asked(network) == []


@pytest.mark.parametrize("side", ["south", "north"])
def test_the_policy_counts_both_ways(network: Network, side: str) -> None:
    other = NORTH if side == "south" else SOUTH
    alice, bob = pair(network, **{side: f"federation_domain_blacklist: [{other}]\n"})
    answer = bob.get(f"{DOWNLOAD}/{upload(alice, b'hello')}")
    assert refused(answer) == (403, "M_FORBIDDEN")
    assert bool(asked(network)) == (side == "north")


def test_an_address_fetches_so_many_bytes(network: Network) -> None:
    config = "remote_media_download_burst_count: 1000\nremote_media_download_per_second: 100\n"
    alice, bob = pair(network, south=config)
    first, second = upload(alice, bytes(5000)), upload(alice, bytes(10))
    assert bob.get(f"{DOWNLOAD}/{first}").status == 200
    assert refused(bob.get(f"{DOWNLOAD}/{second}")) == (429, "M_LIMIT_EXCEEDED")
    assert bob.get(f"{DOWNLOAD}/{first}").status == 200
    network.clock.advance(41)
    assert bob.get(f"{DOWNLOAD}/{second}").status == 200


@pytest.mark.parametrize("query", ["timeout_ms=-1", "timeout_ms=x"])
def test_what_is_no_time_to_wait(network: Network, query: str) -> None:
    _, bob = pair(network)
    assert bob.get(f"{DOWNLOAD}/{NORTH}/abc?{query}").status == 400


def test_what_is_no_id_is_asked_of_nobody(network: Network) -> None:
    _, bob = pair(network)
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/..%2Fabc")) == (404, "M_NOT_FOUND")
    assert asked(network) == []


# Servers of all kinds.


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"errcode":"M_UNRECOGNIZED","error":"?"}'),
        (400, b'{"errcode":"M_UNRECOGNIZED","error":"?"}'),
        (404, b"<html>nginx</html>"),
    ],
)
def test_a_server_from_before_is_asked_as_before(network: Network, status: int, body: bytes) -> None:
    alice, bob = pair(network, north=OPEN)
    address = upload(alice, b"hello", "text/html", "?filename=a.html")
    lie(network, lambda uri: WireAnswer(status, {}, body) if uri.startswith(SIGNED) else None)
    answer = bob.get(f"{DOWNLOAD}/{address}")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["content-disposition"] == "attachment; filename=a.html"
    assert asked(network)[1].startswith(f"{PUBLIC}/{address}?allow_remote=false&timeout_ms=")


class Elsewhere:
    """Where files are that servers point at: `follow` of a server."""

    def __init__(self, body: bytes = b"far away", status: int = 200) -> None:
        self.asked: list[str] = []
        self._body = body
        self._status = status

    async def follow(self, url: str, take: TakeBody, _seconds: float, max_bytes: int) -> int:
        self.asked.append(url)
        give = take(self._status, {"content-type": "image/png", "content-disposition": "inline; filename=a.png"})
        if give is not None:
            give(self._body[:3])
            give(self._body[3:])
        return self._status


def test_a_file_may_be_elsewhere(network: Network) -> None:
    elsewhere = Elsewhere()
    bob = network.add(SOUTH, follow=elsewhere.follow).register("bob")
    for number, part in enumerate((b"Location: https://cdn/x\r\n\r\n", b"Location: https://cdn/x\r\n\r\n\r\n")):
        network.liars.clear()
        lie(network, lambda _, part=part: multipart(METADATA, part.removesuffix(b"\r\n"), end=b"\r\n--x--"))  # type: ignore[misc]
        answer = bob.get(f"{DOWNLOAD}/{NORTH}/abc{number}")
        assert (answer.status, answer.body) == (200, b"far away")
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-disposition"] == "inline; filename=a.png"
    assert elsewhere.asked == ["https://cdn/x"] * 2


def test_a_file_that_is_elsewhere_and_is_not(network: Network, tmp_path: Path) -> None:
    elsewhere = Elsewhere(status=404)
    bob = network.add(SOUTH, follow=elsewhere.follow).register("bob")
    lie(network, lambda _: multipart(METADATA, b"Location: https://cdn/x\r\n\r\n"))
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/abc")) == (502, "M_UNKNOWN")
    assert kept(tmp_path) == []


BAD_ANSWERS: dict[str, Callable[[], WireAnswer]] = {
    "no multipart": lambda: WireAnswer(200, {"content-type": "text/plain"}, b"hello"),
    "no type": lambda: WireAnswer(200, {}, multipart(METADATA, PLAIN).body),
    "no boundary": lambda: multipart(METADATA, PLAIN, type="multipart/mixed"),
    "another boundary": lambda: multipart(METADATA, PLAIN, type="multipart/mixed; boundary=y"),
    "a boundary that is too long": lambda: multipart(METADATA, PLAIN, type=f"multipart/mixed; boundary={'y' * 100}"),
    "another kind": lambda: multipart(METADATA, PLAIN, type="multipart/form-data; boundary=x"),
    "one part": lambda: multipart(METADATA),
    "no part": multipart,
    "three parts": lambda: multipart(METADATA, PLAIN, PLAIN),
    "a thousand parts": lambda: multipart(*[METADATA] * 1000),
    "no end": lambda: multipart(METADATA, PLAIN, end=b""),
    "half an end": lambda: multipart(METADATA, PLAIN, end=b"\r\n--x-"),
    "headers without end": lambda: multipart(METADATA, b"A: b\r\n" * 20_000),
    "no headers at all": lambda: multipart(METADATA, b"\0" * 40_000),
    "a header that is none": lambda: multipart(METADATA, b"Content-Type text/plain\r\n\r\nhello"),
    "a line break within a header": lambda: multipart(METADATA, b"Content-Type: a/b\nX: y\r\n\r\nhello"),
    "metadata without end": lambda: multipart(METADATA + b" " * 100_000, PLAIN),
    "a preamble without end": lambda: WireAnswer(
        200, {"content-type": "multipart/mixed; boundary=x"}, b"a" * 100_000 + multipart(METADATA, PLAIN).body
    ),
    "a file, and another place": lambda: multipart(METADATA, b"Location: https://cdn/x\r\n\r\nhello"),
    "too little JSON": lambda: WireAnswer(500, {}, b"{"),
    "a redirect": lambda: WireAnswer(307, {"location": "https://cdn/x"}, b""),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_what_is_no_proper_answer_is_not_kept(network: Network, tmp_path: Path, name: str) -> None:
    _, bob = pair(network)
    lie(network, lambda _: BAD_ANSWERS[name]())
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/abc")) == (502, "M_UNKNOWN")
    assert kept(tmp_path) == []
    network.liars.clear()
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/another")) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("kind", ["signed", "old", "elsewhere"])
def test_what_is_too_long_is_not_kept(network: Network, tmp_path: Path, kind: str) -> None:
    long = b"x" * 10_001
    bob = network.add(SOUTH, "max_upload_size: 10000\n", follow=Elsewhere(long).follow).register("bob")
    answers = {
        "signed": lambda _: multipart(METADATA, b"\r\n" + long),
        "old": lambda uri: WireAnswer(404, {}, b"") if uri.startswith(SIGNED) else WireAnswer(200, {}, long),
        "elsewhere": lambda _: multipart(METADATA, b"Location: https://cdn/x\r\n\r\n"),
    }
    lie(network, answers[kind])
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/abc")) == (502, "M_TOO_LARGE")
    assert kept(tmp_path) == []


def test_what_others_say_of_their_files_is_not_believed(network: Network) -> None:
    _, bob = pair(network)
    type, disposition = "text/html\x01", "attachment; filename*=utf-8''..%2F%0d%0aSet-Cookie%3Aa%202"
    part = f"Content-Type: {type}\r\nContent-Disposition: {disposition}\r\n\r\n<script>".encode()
    lie(network, lambda _: multipart(METADATA, part))
    answer = bob.get(f"{DOWNLOAD}/{NORTH}/abc")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''..%2FSet-Cookie%3Aa%202"
    assert "set-cookie" not in answer.headers


class DrippingWire:
    """Answers as slowly as a test wants."""

    def __init__(self) -> None:
        self.give: Callable[[bytes], None] | None = None
        self.ended: Deferred[None] = Deferred()
        self.is_given_up = False

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireAnswer:
        if request.take is None or not request.uri.startswith(SIGNED):
            raise RemoteError(destination, "there is no such server", retryable=True)
        headers = {"content-type": "multipart/mixed; boundary=x"}
        self.give = request.take(200, headers)
        try:
            await self.ended
        except BaseException:
            self.is_given_up = True
            raise
        return WireAnswer(200, headers, b"")


def test_a_file_that_drips_is_given_up(database: Database, tmp_path: Path) -> None:
    wire = DrippingWire()
    server = TestServer(tmp_path, database, wire=wire)
    bob = server.register("bob")
    waiting = bob.start("GET", f"{DOWNLOAD}/{NORTH}/abc?timeout_ms=1000")
    assert wire.give is not None
    wire.give(b"--x\r\n" + METADATA + b"\r\n--x\r\n\r\n")
    for _ in range(65):
        if not wire.is_given_up:
            wire.give(b"d")
        server.clock.advance(1)
    assert wire.is_given_up
    assert refused(waiting.answer) == (502, "M_UNKNOWN")


def test_a_slow_file_that_comes_steadily_is_waited_for(database: Database, tmp_path: Path) -> None:
    wire = DrippingWire()
    server = TestServer(tmp_path, database, wire=wire)
    bob = server.register("bob")
    waiting = bob.start("GET", f"{DOWNLOAD}/{NORTH}/abc?timeout_ms=1000")
    assert wire.give is not None
    wire.give(b"--x\r\n" + METADATA + b"\r\n--x\r\n\r\n")
    for _ in range(150):
        wire.give(b"d" * 10_000)
        server.clock.advance(1)
    wire.give(b"\r\n--x--")
    wire.ended.callback(None)
    assert (waiting.answer.status, len(waiting.answer.body)) == (200, 1_500_000)


# Giving ours to others.


def ask_signed(network: Network, path: str) -> Answer:
    """What the north answers the south, as bytes."""
    taken: list[Any] = []

    def take(_status: int, headers: Any) -> Callable[[bytes], None]:
        taken.extend((headers, b""))

        def give(data: bytes) -> None:
            taken[1] += data

        return give

    requests = network.servers[SOUTH].app.federation.requests
    network.servers[SOUTH].run(
        requests.download(ServerName(NORTH), path, (), take, seconds=30, max_bytes=1 << 20, signed=True)
    )
    return Answer(200, taken[0], taken[1])


def test_the_answer_has_two_parts(network: Network) -> None:
    alice, _ = pair(network)
    address = upload(alice, b"hello", "text/html", "?filename=a.html")
    answer = ask_signed(network, f"{SIGNED}download/{address.partition('/')[2]}")
    type, _, boundary = answer.headers["content-type"].partition("; boundary=")
    assert type == "multipart/mixed"
    first, second, end = answer.body.split(f"--{boundary}".encode())[1:]
    assert first == b"\r\nContent-Type: application/json\r\n\r\n{}\r\n"
    assert second.startswith(b"\r\nContent-Type: text/html; charset=utf-8\r\n")
    assert b"\r\nContent-Disposition: attachment; filename=a.html\r\n" in second
    assert second.endswith(b"\r\n\r\nhello\r\n")
    assert end == b"--\r\n"


def test_thumbnails_for_others(network: Network) -> None:
    alice, _ = pair(network)
    media_id = upload(alice, picture(800, 600), "image/png").partition("/")[2]
    answer = ask_signed(network, f"{SIGNED}thumbnail/{media_id}?width=64&height=48&method=crop")
    picture_part = answer.body.split(b"\r\n\r\n", 2)[2].rpartition(b"\r\n--")[0]
    assert opened(picture_part).size == (64, 48)


def test_only_servers_get_ours_that_way(network: Network) -> None:
    alice, bob = pair(network)
    address = upload(bob, b"hello")
    alice.get(f"{DOWNLOAD}/{address}")
    media_id = address.partition("/")[2]
    assert refused(alice.server.get(f"{SIGNED}download/{media_id}"))[0] == HTTPStatus.UNAUTHORIZED
    with pytest.raises(IndexError):  # refused, so there is no answer: it is a file of the south, not of the north
        ask_signed(network, f"{SIGNED}download/{media_id}")


# Taking away.


RETENTION = "media_retention: {remote_media_lifetime: 30d}\n"


def test_copies_that_nobody_reads_are_taken_away(network: Network, tmp_path: Path) -> None:
    alice, bob = pair(network, south=RETENTION)
    south = bob.server
    shared, unread, read = upload(alice, b"shared"), upload(alice, picture(80, 60)), upload(alice, b"read")
    own = upload(bob, b"shared")
    for address in (shared, unread, read):
        assert bob.get(f"{DOWNLOAD}/{address}").status == 200
    assert bob.get(f"{THUMBNAIL}/{unread}?width=32&height=32&method=crop").status == 200

    network.clock.advance(20 * DAY)
    bob.get(f"{DOWNLOAD}/{read}")
    network.clock.advance(15 * DAY)
    assert south.run(south.app.media.copies.do_remove_unread(50)) == 2

    assert len(kept(tmp_path)) == 2
    network.cut(NORTH, SOUTH)
    assert bob.get(f"{DOWNLOAD}/{own}").body == b"shared"
    assert bob.get(f"{DOWNLOAD}/{read}").body == b"read"
    assert bob.get(f"{DOWNLOAD}/{unread}").status == 502
    network.mend(NORTH, SOUTH)
    network.clock.advance(30)
    assert bob.get(f"{DOWNLOAD}/{unread}").status == 200


def test_without_a_lifetime_all_stay(network: Network) -> None:
    alice, bob = pair(network)
    bob.get(f"{DOWNLOAD}/{upload(alice, b'hello')}")
    network.clock.advance(3650 * DAY)
    assert bob.server.run(bob.server.app.media.copies.do_remove_unread(50)) == 0


def test_nothing_is_taken_away_while_a_file_comes_in(network: Network, tmp_path: Path) -> None:
    alice, bob = pair(network, south=RETENTION)
    bob.get(f"{DOWNLOAD}/{upload(alice, b'hello')}")
    network.clock.advance(31 * DAY)
    media = bob.server.app.media
    with (tmp_path / "other").open("w+b") as other:
        stored = bob.server.run(media.files.add(other))
    assert bob.server.run(media.copies.do_remove_unread(50)) == 0
    bob.server.run(media.files.settle(stored))
    assert bob.server.run(media.copies.do_remove_unread(50)) == 1


def test_what_a_crash_leaves_of_a_copy_is_swept(network: Network, tmp_path: Path) -> None:
    alice, bob = pair(network)
    address = upload(alice, b"hello")
    assert bob.get(f"{DOWNLOAD}/{address}").status == 200
    files = bob.server.app.media.files
    for data in (b"hello", b"never in the database"):
        files.abandon(bob.server.run(files.add(io.BytesIO(data))))
    assert len(kept(tmp_path)) == 4
    again = network.rebuild(SOUTH)
    again.app.media.sweep()
    assert len(kept(tmp_path)) == 1
    assert again.get(f"{DOWNLOAD}/{address}", token=bob.token).body == b"hello"
