"""Dynamic client registration: accepted and refused metadata, and removal of unused clients."""

from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from homeserver.services.audit.audit import NO_ACCOUNT
from homeserver.services.oauth.clients import NEVER_USED_MS, UNUSED_MS, OAuthClient, OAuthClients
from homeserver.services.oauth.redirect_uris import (
    csp_source,
    is_allowed_redirect_uri,
    is_registered,
)
from storage.accounts.audit import AuditStore
from storage.engine.database import Database
from storage.oauth.oauth import OAuthStore
from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.oauth import CONFIG, METADATA, Program
from tests.helpers.server import TestServer

T = TypeVar("T")
PATH = "/_mahalla/oauth/register"

WEB = [
    "https://example.com/callback",
    "https://app.example.com/callback",
    "https://example.com:5173/?query=value",
]
NATIVE = [
    "com.example.app:/callback",
    "com.example:/",
    "com.example:callback",
    "http://localhost/callback",
    "http://127.0.0.1/callback",
    "http://[::1]/callback",
    *WEB,
]
NEVER = [
    "",
    "https://example.com/callback#fragment",
    "https://example.com/#",
    "http://example.com/callback",
    "https://user@example.com/",
    "https://user:password@example.com/",
    "https://example.com@evil.example/",
    "https://evil.example/",
    "https://notexample.com/",
    "https://example.com.evil.example/",
    "https://example.com\\@evil.example/",
    "https://evil.example\\.example.com/",
    "https://example.com:port/",
    "https://[::1/",
    "https:///callback",
    "https://exa mple.com/",
    "https://example.com/\n",
    "https://\u0435xample.com/",
    "https://localhost/callback",
    "http://localhost:1234/callback",
    "http://localhost.evil.example/callback",
    "http://127.0.0.2/callback",
    "http://user@localhost/",
    "example:/callback",
    "com:/callback",
    "com.exampleapp:/callback",
    "com.example.app://callback",
    "javascript:alert(1)",
    "data:text/html,hello",
    "com.example.app:/\x00",
    "//example.com/",
]


def test_valid_redirect_uris_are_accepted() -> None:
    assert [uri for uri in WEB if not is_allowed_redirect_uri(uri, "example.com", "web")] == []
    assert [
        uri for uri in NATIVE if not is_allowed_redirect_uri(uri, "example.com", "native")
    ] == []
    assert [
        uri
        for uri in NATIVE
        if uri not in WEB and is_allowed_redirect_uri(uri, "example.com", "web")
    ] == []


@pytest.mark.parametrize("uri", NEVER)
def test_invalid_redirect_uris_are_refused(uri: str) -> None:
    assert not is_allowed_redirect_uri(uri, "example.com", "native")
    assert not is_allowed_redirect_uri(uri, "example.com", "web")


def test_a_top_level_domain_has_no_subdomains() -> None:
    assert not is_allowed_redirect_uri("https://evil.com/", "com", "web")
    assert not is_allowed_redirect_uri("com:/x", "com", "native")
    assert is_allowed_redirect_uri("https://matrix/", "matrix", "web")


def test_any_port_of_a_loopback_redirect_uri_matches() -> None:
    registered = ("http://127.0.0.1/callback", "http://[::1]/", "https://example.com/")
    for uri in ("http://127.0.0.1/callback", "http://127.0.0.1:5678/callback", "http://[::1]:1/"):
        assert is_registered(uri, registered)
    for uri in (
        "http://127.0.0.1:5678/other",
        "http://localhost:5678/callback",
        "https://example.com:444/",
        "http://x@127.0.0.1:1/callback",
        "http://127.0.0.1:x/callback",
        "",
    ):
        assert not is_registered(uri, registered)


def test_the_csp_source_of_a_redirect_uri() -> None:
    assert csp_source("https://example.com:5173/a?b") == "https://example.com:5173"
    assert csp_source("io.element.android:/") == "io.element.android:"


def test_the_registered_metadata_are_returned(server: TestServer) -> None:
    further = {
        "software_id": "x",
        "tos_uri#fr": "https://element.io/fr",
        "grant_types": [*METADATA["grant_types"], "x"],
    }
    answer = server.post(PATH, {**METADATA, **further})
    assert answer.status == 201
    received = answer.json
    assert received.pop("client_id")
    assert received == METADATA


def test_the_same_metadata_give_the_same_client(server: TestServer) -> None:
    first, repeated = Program(server), Program(server)
    other = Program(server, {**METADATA, "client_name": "Other"})
    assert first.client_id == repeated.client_id != other.client_id


def test_uris_of_other_hosts_are_dropped(server: TestServer) -> None:
    answer = server.post(
        PATH, {**METADATA, "policy_uri": "https://other.example/", "logo_uri": "http://element.io/"}
    )
    assert {"policy_uri", "logo_uri"} & answer.json.keys() == set()


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({"client_uri": None}, "invalid_client_metadata"),
    ({"client_uri": 1}, "invalid_client_metadata"),
    ({"client_uri": "http://element.io/"}, "invalid_client_metadata"),
    ({"client_uri": "https://u:p@element.io/"}, "invalid_client_metadata"),
    ({"client_name": {}}, "invalid_client_metadata"),
    ({"client_name": "a\0b"}, "invalid_client_metadata"),
    ({"client_name": "x" * 5000}, "invalid_client_metadata"),
    ({"application_type": "desktop"}, "invalid_client_metadata"),
    ({"token_endpoint_auth_method": "client_secret_basic"}, "invalid_client_metadata"),
    ({"grant_types": ["password"]}, "invalid_client_metadata"),
    ({"grant_types": "authorization_code"}, "invalid_client_metadata"),
    ({"response_types": ["token"]}, "invalid_client_metadata"),
    ({"redirect_uris": None}, "invalid_redirect_uri"),
    ({"redirect_uris": []}, "invalid_redirect_uri"),
    ({"redirect_uris": [1]}, "invalid_client_metadata"),
    ({"redirect_uris": ["https://evil.example/"]}, "invalid_redirect_uri"),
    ({"redirect_uris": [f"https://element.io/{n}" for n in range(30)]}, "invalid_redirect_uri"),
    ({"redirect_uris": ["https://element.io/" + "x" * 2000]}, "invalid_redirect_uri"),
]


def test_invalid_registrations_are_refused(server: TestServer) -> None:
    for changed, error in WRONG:
        answer = server.post(PATH, {**METADATA, **changed})
        assert (answer.status, answer.json["error"]) == (400, error), changed
    assert server.client.request("POST", PATH, body=b"x" * 40000).status == 413


def test_a_device_client_needs_no_redirect_uri(server: TestServer) -> None:
    metadata = {
        "client_uri": "https://tv.example/",
        "grant_types": ["urn:ietf:params:oauth:grant-type:device_code"],
    }
    received = server.post(PATH, metadata).json
    assert {"redirect_uris", "response_types"} & received.keys() == set()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"x"', b"\xff", b'{"client_uri": "\xff"}'),
        *(b'{"x":%b%b}' % (b"[" * depth, b"]" * depth) for depth in (300, 5000, 15_000)),
    ],
)
def test_an_invalid_body_is_an_oauth_error(server: TestServer, body: bytes) -> None:
    """spec: RFC 7591 section 3.2.2"""
    answer = server.client.request(
        "POST", PATH, body=body, headers={"Content-Type": "application/json"}
    )
    assert (answer.status, answer.json["error"]) == (400, "invalid_client_metadata")
    assert "errcode" not in answer.json


def test_registrations_are_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    limits = CONFIG.replace(
        "rc_oauth: {}", "rc_oauth: {client_registration: {per_second: 0.01, burst_count: 2}}"
    )
    server = TestServer(tmp_path, sqlite_database, limits)
    answers: list[Answer] = [server.post(PATH, METADATA) for _ in range(3)]
    assert [answer.status for answer in answers] == [201, 201, 429]


def test_clients_that_nobody_allowed_are_removed_sooner(program: Program, browser: Browser) -> None:
    server = program.server
    clients = server.app.oauth.clients
    program.ask(browser)  # it is used, but no user allows it
    other = Program(server, {**METADATA, "client_name": "Other"})
    other.code(Browser(server))
    server.clock.advance(NEVER_USED_MS / 1000 - 60)
    assert server.run(clients.do_sweep(10)) == 0
    server.clock.advance(61)
    assert server.run(clients.do_sweep(10)) == 1
    assert server.run(clients.find(program.client_id)) is None
    assert server.run(clients.find(other.client_id)) is not None


def test_the_number_of_clients_that_nobody_allowed_is_bounded(database: Database) -> None:
    clock = Clock()
    clients = OAuthClients(
        clock=clock, database=database, store=OAuthStore(database), max_never_used=3
    )

    def run(work: Coroutine[Any, Any, T]) -> T:
        done: list[T] = []
        Deferred.fromCoroutine(work).addCallback(done.append)
        return done[0]

    known: list[OAuthClient] = []
    for number in range(6):
        clock.advance(60)
        known.append(run(clients.do_register({**METADATA, "client_name": f"Program {number}"})))
        if number == 0:
            run(database.write("allow", clients.record_allowed, known[0], "127.0.0.1"))
        if number == 3:  # registered again, so the most recently used
            clock.advance(1)
            run(clients.do_register({**METADATA, "client_name": "Program 1"}))
    left = [
        number
        for number, client in enumerate(known)
        if run(clients.find(client.client_id)) is not None
    ]
    assert left == [0, 1, 4, 5]
    assert len(run(AuditStore(database).get_records(NO_ACCOUNT, 100))) == 1


def test_unused_clients_are_removed(program: Program, browser: Browser) -> None:
    server = program.server
    idle = Program(server, {**METADATA, "client_name": "Idle"})
    program.sign_in(browser)
    clients = server.app.oauth.clients
    assert server.run(clients.do_sweep(10)) == 0
    server.clock.advance(UNUSED_MS / 1000 + 1)
    server.run(server.app.oauth.authorization.do_sweep(10))
    assert server.run(clients.do_sweep(10)) == 1
    assert idle.refresh("x").json["error"] == "invalid_client"
    assert program.refresh().status == 200
