"""Rendezvous sessions for sign-in by QR code, in the forms of MSC4388 and of MSC4108 (2024)."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from storage.engine.database import Database
from tests.helpers.http import Answer
from tests.helpers.oauth import BASE, CONFIG
from tests.helpers.server import TestServer
from tests.oauth.conftest import server

__all__ = ["server"]

PATH = "/_matrix/client/unstable/io.element.msc4388/rendezvous"
OLDER = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"


def open_server(folder: Path, database: Database, who: str, limits: str = "{}") -> TestServer:
    config = CONFIG.replace("rc_oauth: {}", f"rc_oauth: {limits}")
    return TestServer(folder, database, config + f"oauth: {{qr_code: {who}}}\n")


@pytest.fixture
def open_to_all(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return open_server(
        tmp_path,
        sqlite_database,
        "everybody",
        "{rendezvous: {per_second: 1000, burst_count: 1000}}",
    )


def test_two_devices_exchange_data(server: TestServer) -> None:
    bob = server.register("bob")
    assert server.get(PATH).json == {"create_available": False}
    assert bob.get(PATH).json == {"create_available": True}
    begun = bob.post(PATH, {"data": "from bob"}).json
    assert begun["expires_in_ms"] == 300_000
    place = f"{PATH}/{begun['id']}"
    server.clock.advance(1)
    read = server.get(place).json
    assert read == {
        "data": "from bob",
        "sequence_token": begun["sequence_token"],
        "expires_in_ms": 299_000,
    }
    word = {"sequence_token": read["sequence_token"], "data": "from the other"}
    written = server.put(place, word).json
    assert written["sequence_token"] != read["sequence_token"]
    assert server.put(place, word).json == written  # the response was lost
    late = server.put(place, {**word, "data": "too late"})
    assert (late.status, late.errcode) == (409, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE")
    assert server.get(place).json["data"] == "from the other"
    repeated = server.put(place, {**written, "data": "from the other"}).json
    assert repeated["sequence_token"] != written["sequence_token"]
    assert server.client.request("DELETE", place).status == 200
    for method, body in (("GET", None), ("PUT", word), ("DELETE", None)):
        answer = server.client.request(method, place, json=body)
        assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


def test_creating_needs_authentication(server: TestServer) -> None:
    assert server.post(PATH, {"data": "x"}).errcode == "M_FORBIDDEN"
    guest = server.post("/_matrix/client/v3/register?kind=guest", {}).json["access_token"]
    assert (
        server.client.request("POST", PATH, json={"data": "x"}, token=guest).errcode
        == "M_FORBIDDEN"
    )
    assert server.post(OLDER, None, body=b"x").errcode == "M_UNRECOGNIZED"
    assert (
        "org.matrix.msc4108" not in server.get("/_matrix/client/versions").json["unstable_features"]
    )


def test_rendezvous_can_be_disabled(tmp_path: Path, sqlite_database: Database) -> None:
    server = open_server(tmp_path, sqlite_database, '"off"')
    assert server.get(PATH).errcode == "M_UNRECOGNIZED"
    assert server.post(PATH, {"data": "x"}).errcode == "M_UNRECOGNIZED"
    assert server.get(f"{PATH}/x").errcode == "M_UNRECOGNIZED"


def test_sessions_expire(server: TestServer) -> None:
    bob = server.register("bob")
    place = f"{PATH}/{bob.post(PATH, {'data': 'x'}).json['id']}"
    server.clock.advance(300)
    assert server.get(place).errcode == "M_NOT_FOUND"
    assert server.run(server.app.oauth.rendezvous.do_sweep(10)) == 1


def test_the_data_of_a_session_are_bounded(server: TestServer) -> None:
    bob = server.register("bob")
    assert bob.post(PATH, {"data": "ў" * 2048}).status == 200
    assert bob.post(PATH, {"data": "ў" * 2049}).errcode == "M_TOO_LARGE"
    assert bob.post(PATH, {"data": "x" * 20000}).errcode == "M_TOO_LARGE"
    assert bob.post(PATH, {"data": 1}).errcode == "M_BAD_JSON"
    place = f"{PATH}/{bob.post(PATH, {'data': ''}).json['id']}"
    assert server.put(place, {"data": "x"}).errcode == "M_BAD_JSON"
    assert server.put(place, {"sequence_token": "", "data": "x" * 4097}).errcode == "M_TOO_LARGE"
    assert server.get(f"{PATH}/%00").errcode == "M_INVALID_PARAM"


def test_a_browser_does_not_render_the_data(server: TestServer) -> None:
    bob = server.register("bob")
    place = f"{PATH}/{bob.post(PATH, {'data': '<script>'}).json['id']}"
    assert server.get(place, headers={"Sec-Fetch-Mode": "navigate"}).errcode == "M_FORBIDDEN"
    assert server.get(place, headers={"Sec-Fetch-Mode": "cors"}).status == 200


def test_creations_are_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    limits = "{rendezvous: {per_second: 0.01, burst_count: 2}}"
    server = open_server(tmp_path, sqlite_database, "everybody", limits)
    assert [server.post(PATH, {"data": "x"}).status for _ in range(3)] == [200, 200, 429]


def older(server: TestServer, method: str, path: str, body: bytes | None, **headers: str) -> Answer:
    given: Mapping[str, str] = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.request(method, path, body=body, headers=given)


def test_two_devices_exchange_data_in_the_msc4108_form(open_to_all: TestServer) -> None:
    server = open_to_all
    assert (
        server.get("/_matrix/client/versions").json["unstable_features"]["org.matrix.msc4108"]
        is True
    )
    begun = older(server, "POST", OLDER, b"from bob", Content_Type="text/plain")
    assert begun.status == 201
    assert begun.headers["expires"].endswith(" GMT")
    place = begun.json["url"].removeprefix(BASE)
    assert place.startswith(OLDER)
    etag = begun.headers["etag"]
    read = older(server, "GET", place, None)
    assert (read.status, read.body, read.headers["etag"]) == (200, b"from bob", etag)
    assert (read.headers["content-type"], read.headers["cache-control"]) == (
        "text/plain",
        "no-store",
    )
    assert "sandbox" in read.headers["content-security-policy"]
    assert older(server, "GET", place, None, If_None_Match=etag).status == 304
    written = older(server, "PUT", place, b"<b>", Content_Type="text/plain", If_Match=etag)
    assert written.status == 202
    late = older(server, "PUT", place, b"late", Content_Type="text/plain", If_Match=etag)
    assert (late.status, late.errcode, late.headers["etag"]) == (
        412,
        "M_UNKNOWN",
        written.headers["etag"],
    )
    assert late.json["org.matrix.msc4108.errcode"] == "M_CONCURRENT_WRITE"
    assert older(server, "GET", place, None, If_None_Match=etag).body == b"<b>"
    assert older(server, "GET", place, None, Sec_Fetch_Mode="navigate").errcode == "M_FORBIDDEN"
    assert older(server, "DELETE", place, None).status == 204
    assert older(server, "GET", place, None).errcode == "M_NOT_FOUND"


def test_invalid_requests_of_the_msc4108_form_are_refused(open_to_all: TestServer) -> None:
    server = open_to_all
    assert older(server, "POST", OLDER, b"x").errcode == "M_MISSING_PARAM"
    assert older(server, "POST", OLDER, b"x", Content_Type="text/html").errcode == "M_INVALID_PARAM"
    assert (
        older(server, "POST", OLDER, b"x" * 4097, Content_Type="text/plain").errcode
        == "M_TOO_LARGE"
    )
    begun = older(server, "POST", OLDER, b"x", Content_Type="text/plain")
    place = begun.json["url"].removeprefix(BASE)
    assert older(server, "PUT", place, b"y", Content_Type="text/plain").errcode == "M_MISSING_PARAM"
    for etag in ("*", 'W/"x"', "x", '"'):
        assert (
            older(server, "PUT", place, b"y", Content_Type="text/plain", If_Match=etag).errcode
            == "M_INVALID_PARAM"
        )
