"""Fetching the metadata of a SAML provider: when first needed, at intervals, and stored for
outages."""

from collections.abc import Sequence
from pathlib import Path
from shutil import which

import pytest
from twisted.internet.defer import Deferred

from federation.http_client.body import TakeBody
from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError
from storage.engine.database import Database
from tests.helpers.http import Answer
from tests.helpers.server import START, TestServer

pytestmark = pytest.mark.skipif(
    which("xmlsec1") is None, reason="needs xmlsec1, which scripts/test installs"
)

URL = "https://idp.example.com/metadata"
CONFIG = f"""
public_baseurl: https://matrix.example.org/
saml2_config:
  idp_name: University
  metadata_refresh_interval: 1h
  sp_config: {{metadata: {{remote: [{{url: "{URL}"}}]}}}}
"""
REDIRECT = "/_matrix/client/v3/login/sso/redirect/saml?redirectUrl=https://element.example/"


def metadata(place: str, valid_until: str = "2100-01-01T00:00:00Z") -> bytes:
    return f"""<?xml version="1.0"?>
<EntityDescriptor xmlns="urn:oasis:names:tc:SAML:2.0:metadata"
  entityID="https://idp.example.com/" validUntil="{valid_until}">
<IDPSSODescriptor protocolSupportEnumeration="urn:oasis:names:tc:SAML:2.0:protocol">
<SingleSignOnService Binding="urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect"
  Location="{place}"/>
</IDPSSODescriptor>
</EntityDescriptor>""".encode()


class University:
    """Serves the provider's metadata; None: the provider is down."""

    def __init__(self) -> None:
        self.document: bytes | None = metadata("https://idp.example.com/first")
        self.asked: list[str] = []
        self.gate: Deferred[None] | None = None
        """Responses are held until this fires."""

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        seconds: float = 30,
        max_bytes: int = 1 << 20,
        redirects: int = 0,
        only_https: bool = False,
        take: TakeBody | None = None,
    ) -> WebResponse:
        self.asked.append(f"{method} {url}")
        if self.gate is not None:
            await self.gate
        if self.document is None:
            raise OutboundError("nobody is there")
        return WebResponse(url, 200, {}, self.document)


@pytest.fixture
def university() -> University:
    return University()


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database, university: University) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG, web=university)


def start_sign_in(server: TestServer) -> Answer:
    return server.get(REDIRECT)


def place(server: TestServer) -> str:
    """Return the URL that users are redirected to."""
    answer = start_sign_in(server)
    assert answer.status == 302, answer.body
    return answer.headers["location"].partition("?")[0]


def an_hour_later(server: TestServer) -> None:
    """Let the refresh job run."""
    server.clock.advance(3601)


def test_metadata_are_fetched_when_first_needed_and_at_intervals(
    server: TestServer, university: University
) -> None:
    assert university.asked == []
    assert place(server) == "https://idp.example.com/first"
    assert place(server) == "https://idp.example.com/first"
    assert university.asked == [f"GET {URL}"]
    university.document = metadata("https://idp.example.com/second")
    server.app.jobs.start()
    an_hour_later(server)
    assert place(server) == "https://idp.example.com/second"


@pytest.mark.parametrize(
    "document",
    [
        None,
        b"",
        b"<html/>",
        b"<EntityDescriptor",
        b"\xff\xfe\0",
        metadata("https://idp.example.com/other", valid_until="2001-01-01T00:00:00Z"),
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
    ],
)
def test_unusable_metadata_change_nothing(
    tmp_path: Path, sqlite_database: Database, university: University, document: bytes | None
) -> None:
    server = TestServer(tmp_path, sqlite_database, CONFIG, web=university)
    assert place(server) == "https://idp.example.com/first"
    university.document = document
    server.app.jobs.start()
    an_hour_later(server)
    assert place(server) == "https://idp.example.com/first"
    restarted = TestServer(tmp_path, sqlite_database, CONFIG, web=university, seed=2)
    assert place(restarted) == "https://idp.example.com/first"


def test_a_provider_without_metadata_is_refused(server: TestServer, university: University) -> None:
    university.document = None
    answer = start_sign_in(server)
    assert (answer.status, b"sign-in service is not working" in answer.body) == (403, True)
    # our own metadata do not depend on the provider's
    assert server.get("/_synapse/client/saml2/metadata.xml").status == 200
    university.document = metadata("https://idp.example.com/late")
    # further sign-ins fail at once
    assert (start_sign_in(server).status, len(university.asked)) == (403, 1)
    server.clock.advance(30)
    assert place(server) == "https://idp.example.com/late"


def test_concurrent_sign_ins_share_one_fetch(server: TestServer, university: University) -> None:
    university.gate = Deferred()
    waiting = [server.client.start("GET", REDIRECT) for _ in range(5)]
    assert not any(pending.done for pending in waiting)
    university.gate.callback(None)
    assert [pending.answer.status for pending in waiting] == [302] * 5
    assert university.asked == [f"GET {URL}"]


def test_expired_metadata_are_not_used(
    tmp_path: Path,
    sqlite_database: Database,
    university: University,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = TestServer(tmp_path, sqlite_database, CONFIG, web=university)
    assert place(server) == "https://idp.example.com/first"
    # the library uses the system clock
    monkeypatch.setattr("saml2.mdstore.valid", lambda *_: False)
    university.document = None
    server.app.jobs.start()
    an_hour_later(server)
    assert start_sign_in(server).status == 403
    assert server.clock.seconds() > START


def test_requests_for_our_metadata_do_not_block_sign_ins(
    tmp_path: Path, sqlite_database: Database, university: University
) -> None:
    further = "rc_login: {address: {per_second: 0.01, burst_count: 2}}\n"
    server = TestServer(tmp_path, sqlite_database, CONFIG + further, web=university)
    path = "/_synapse/client/saml2/metadata.xml"
    asked = [server.client.request("GET", path, ip="10.0.0.66").status for _ in range(12)]
    assert asked == [200] * 10 + [429] * 2
    assert start_sign_in(server).status == 302
