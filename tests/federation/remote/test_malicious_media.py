"""Media responses of servers of all kinds: old, malicious, slow."""

from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from federation.http_client.body import TakeBody
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName
from storage.engine.database import Database
from tests.helpers.federated_media import (
    DOWNLOAD,
    METADATA,
    OPEN,
    PLAIN,
    PUBLIC,
    SIGNED,
    forge_media,
    media_requests,
    multipart,
    pair,
    stored_files,
)
from tests.helpers.media_files import upload_file
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH
from tests.helpers.room_actions import refused
from tests.helpers.server import TestServer


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"errcode":"M_UNRECOGNIZED","error":"?"}'),
        (400, b'{"errcode":"M_UNRECOGNIZED","error":"?"}'),
        (404, b"<html>nginx</html>"),
    ],
)
def test_an_older_server_is_asked_by_the_older_endpoint(
    network: Network, status: int, body: bytes
) -> None:
    alice, bob = pair(network, north=OPEN)
    address = upload_file(alice, b"hello", "text/html", "?filename=a.html")
    forge_media(
        network, lambda uri: WireResponse(status, {}, body) if uri.startswith(SIGNED) else None
    )
    answer = bob.get(f"{DOWNLOAD}/{address}")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["content-disposition"] == "attachment; filename=a.html"
    assert media_requests(network)[1].startswith(
        f"{PUBLIC}/{address}?allow_remote=false&timeout_ms="
    )


class Elsewhere:
    """Stands for the host that a server redirects a download to: replaces `follow` of a server."""

    def __init__(self, body: bytes = b"far away", status: int = 200) -> None:
        self.asked: list[str] = []
        self._body = body
        self._status = status

    async def follow(self, url: str, take: TakeBody, _seconds: float, max_bytes: int) -> int:
        self.asked.append(url)
        give = take(
            self._status,
            {"content-type": "text/csv", "content-disposition": "inline; filename=a.png"},
        )
        if give is not None:
            give(self._body[:3])
            give(self._body[3:])
        return self._status


def test_a_location_in_the_response_is_followed(network: Network) -> None:
    elsewhere = Elsewhere()
    bob = network.add(SOUTH, follow=elsewhere.follow).register("bob")
    for number, part in enumerate(
        (b"Location: https://cdn/x\r\n\r\n", b"Location: https://cdn/x\r\n\r\n\r\n")
    ):
        network.interceptors.clear()
        body = multipart(METADATA, part.removesuffix(b"\r\n"), end=b"\r\n--x--")
        forge_media(network, lambda _, body=body: body)  # type: ignore[misc]
        answer = bob.get(f"{DOWNLOAD}/{NORTH}/abc{number}")
        assert (answer.status, answer.body) == (200, b"far away")
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.headers["content-disposition"] == "inline; filename=a.png"
    assert elsewhere.asked == ["https://cdn/x"] * 2


def test_a_missing_file_at_a_location_is_an_error(network: Network, tmp_path: Path) -> None:
    elsewhere = Elsewhere(status=404)
    bob = network.add(SOUTH, follow=elsewhere.follow).register("bob")
    forge_media(network, lambda _: multipart(METADATA, b"Location: https://cdn/x\r\n\r\n"))
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/abc")) == (502, "M_UNKNOWN")
    assert stored_files(tmp_path) == []


BAD_ANSWERS: dict[str, Callable[[], WireResponse]] = {
    "no multipart": lambda: WireResponse(200, {"content-type": "text/plain"}, b"hello"),
    "no type": lambda: WireResponse(200, {}, multipart(METADATA, PLAIN).body),
    "no boundary": lambda: multipart(METADATA, PLAIN, type="multipart/mixed"),
    "another boundary": lambda: multipart(METADATA, PLAIN, type="multipart/mixed; boundary=y"),
    "a boundary that is too long": lambda: multipart(
        METADATA, PLAIN, type=f"multipart/mixed; boundary={'y' * 100}"
    ),
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
    "a line break within a header": lambda: multipart(
        METADATA, b"Content-Type: a/b\nX: y\r\n\r\nhello"
    ),
    "metadata without end": lambda: multipart(METADATA + b" " * 100_000, PLAIN),
    "a preamble without end": lambda: WireResponse(
        200,
        {"content-type": "multipart/mixed; boundary=x"},
        b"a" * 100_000 + multipart(METADATA, PLAIN).body,
    ),
    "a file, and another place": lambda: multipart(
        METADATA, b"Location: https://cdn/x\r\n\r\nhello"
    ),
    "too little JSON": lambda: WireResponse(500, {}, b"{"),
    "a redirect": lambda: WireResponse(307, {"location": "https://cdn/x"}, b""),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_malformed_response_is_not_stored(network: Network, tmp_path: Path, name: str) -> None:
    _, bob = pair(network)
    forge_media(network, lambda _: BAD_ANSWERS[name]())
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/abc")) == (502, "M_UNKNOWN")
    assert stored_files(tmp_path) == []
    network.interceptors.clear()
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/another")) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("kind", ["signed", "old", "elsewhere"])
def test_a_file_that_is_too_long_is_not_stored(network: Network, tmp_path: Path, kind: str) -> None:
    long = b"x" * 10_001
    bob = network.add(SOUTH, "max_upload_size: 10000\n", follow=Elsewhere(long).follow).register(
        "bob"
    )
    answers = {
        "signed": lambda _: multipart(METADATA, b"\r\n" + long),
        "old": lambda uri: (
            WireResponse(404, {}, b"") if uri.startswith(SIGNED) else WireResponse(200, {}, long)
        ),
        "elsewhere": lambda _: multipart(METADATA, b"Location: https://cdn/x\r\n\r\n"),
    }
    forge_media(network, answers[kind])
    assert refused(bob.get(f"{DOWNLOAD}/{NORTH}/abc")) == (502, "M_TOO_LARGE")
    assert stored_files(tmp_path) == []


def test_the_content_type_that_a_server_claims_is_not_trusted(network: Network) -> None:
    _, bob = pair(network)
    type, disposition = (
        "text/html\x01",
        "attachment; filename*=utf-8''..%2F%0d%0aSet-Cookie%3Aa%202",
    )
    part = f"Content-Type: {type}\r\nContent-Disposition: {disposition}\r\n\r\n<script>".encode()
    forge_media(network, lambda _: multipart(METADATA, part))
    answer = bob.get(f"{DOWNLOAD}/{NORTH}/abc")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert (
        answer.headers["content-disposition"]
        == "attachment; filename*=utf-8''..%2FSet-Cookie%3Aa%202"
    )
    assert "set-cookie" not in answer.headers


class DrippingWire:
    """Answers as slowly as a test wants."""

    def __init__(self) -> None:
        self.give: Callable[[bytes], None] | None = None
        self.ended: Deferred[None] = Deferred()
        self.is_given_up = False

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        if request.take is None or not request.uri.startswith(SIGNED):
            raise RemoteError(destination, "there is no such server", retryable=True)
        headers = {"content-type": "multipart/mixed; boundary=x"}
        self.give = request.take(200, headers)
        try:
            await self.ended
        except BaseException:
            self.is_given_up = True
            raise
        return WireResponse(200, headers, b"")


def test_a_download_that_is_too_slow_is_aborted(database: Database, tmp_path: Path) -> None:
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


def test_a_slow_but_steady_download_completes(database: Database, tmp_path: Path) -> None:
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
