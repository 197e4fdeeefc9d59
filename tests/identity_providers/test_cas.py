"""Sign-in with a third-party CAS server (django-cas-server), and the checks of its responses."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.services.upstream.cas import parse_validation_response
from homeserver.services.upstream.identity import SignInRefused
from storage.engine.database import Database
from tests.helpers.identity_providers import BASE, HAS_CAS, NO_CAS, ProviderProcess, start_cas
from tests.helpers.ports import free_port
from tests.helpers.server import TestServer
from tests.helpers.sso_browser import BlockingWeb, SSOBrowser

START = f"{BASE}_matrix/client/v3/login/sso/redirect/cas?redirectUrl=https://client.example/"


@pytest.fixture(scope="module")
def cas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    if not HAS_CAS:
        pytest.skip(NO_CAS)
    port = free_port()
    server = start_cas(tmp_path_factory.mktemp("cas"), port)
    yield server
    server.end()


def serve(folder: Path, database: Database, cas: ProviderProcess, further: str = "") -> TestServer:
    config = f"""
public_baseurl: {BASE}
sso: {{client_whitelist: ["https://client.example/"]}}
cas_config:
  enabled: true
  server_url: {cas.url}/cas/
  displayname_attribute: displayName
{further}"""
    return TestServer(folder, database, config, web=BlockingWeb(), now=time.time())


def test_a_user_signs_in_with_cas(
    tmp_path: Path, sqlite_database: Database, cas: ProviderProcess
) -> None:
    server = serve(tmp_path, sqlite_database, cas, "  required_attributes: {affiliation: library}")
    traveller = SSOBrowser(server, BASE)
    traveller.go(START)
    assert traveller.url.startswith(f"{cas.url}/cas/login?service=")
    traveller.send(username="alice", password="wrong")
    assert "credentials" in traveller.words.lower()
    traveller.send(username="alice", password="wonderland")
    token = parse_qs(urlsplit(traveller.url).query)["loginToken"][0]
    session = server.post(
        "/_matrix/client/v3/login", {"type": "m.login.token", "token": token}
    ).json
    assert session["user_id"] == "@alice:example.org"
    profile = server.get("/_matrix/client/v3/profile/@alice:example.org").json
    assert profile["displayname"] == "Alice <Liddell>"
    traveller.go(START)  # already signed in at the provider, so it redirects back
    assert traveller.url.startswith("https://client.example/?loginToken=")


def test_reauthentication_is_required_and_checked(
    tmp_path: Path, sqlite_database: Database, cas: ProviderProcess
) -> None:
    server = serve(tmp_path, sqlite_database, cas)
    traveller = SSOBrowser(server, BASE)
    traveller.go(START)
    traveller.send(username="alice", password="wonderland")
    button = f"{BASE}_mahalla/upstream/sign_in?provider=cas&next=/%3Fhello"
    traveller.go(button)
    assert (
        traveller.home.path == "/?hello"
    )  # already signed in at the provider, so it redirects back
    traveller.go(f"{button}&again=true")
    assert traveller.url.startswith(f"{cas.url}/cas/login?service=")
    traveller.send(username="alice", password="wonderland")
    assert traveller.home.path == "/?hello"
    flow = f"{BASE}_matrix/client/v3/login/cas/ticket?flow="
    leaving = SSOBrowser(server, BASE)
    leaving.home.open(button.removeprefix(BASE.rstrip("/")) + "&again=true")
    service = parse_qs(urlsplit(leaving.home.location).query)["service"][0]
    assert service.startswith(flow)
    traveller.home.cookies |= leaving.home.cookies
    traveller.go(
        f"{cas.url}/cas/login?{urlencode({'service': service})}"
    )  # a sign-in without `renew` is refused
    assert "sign-in service is not working" in traveller.words


def test_a_ticket_is_used_once(
    tmp_path: Path, sqlite_database: Database, cas: ProviderProcess
) -> None:
    server = serve(tmp_path, sqlite_database, cas)
    traveller = SSOBrowser(server, BASE)
    traveller.go(START)
    traveller.send(username="alice", password="wonderland")
    (back,) = [path for path in traveller.home.visited if "ticket=" in path]
    assert "was already used" in _words(traveller, back)
    leaving = SSOBrowser(server, BASE)
    leaving.go(START)  # another pending sign-in, with the ticket of the first
    flow = parse_qs(urlsplit(parse_qs(urlsplit(leaving.url).query)["service"][0]).query)["flow"][0]
    ticket = parse_qs(urlsplit(back).query)["ticket"][0]
    leaving.go(f"{BASE}_matrix/client/v3/login/cas/ticket?flow={flow}&ticket={ticket}")
    assert "sign-in service is not working" in leaving.words


def _words(traveller: SSOBrowser, path: str) -> str:
    traveller.home.open(path)
    return traveller.home.words


def test_a_missing_required_attribute_is_refused(
    tmp_path: Path, sqlite_database: Database, cas: ProviderProcess
) -> None:
    server = serve(tmp_path, sqlite_database, cas, "  required_attributes: {affiliation: pupils}")
    traveller = SSOBrowser(server, BASE)
    traveller.go(START)
    traveller.send(username="alice", password="wonderland")
    assert "not allowed to use this server" in traveller.words


SUCCESS = """<cas:serviceResponse xmlns:cas="http://www.yale.edu/tp/cas"><cas:authenticationSuccess>
<cas:user>{user}</cas:user>{rest}</cas:authenticationSuccess></cas:serviceResponse>"""


def test_both_forms_of_attributes_are_read() -> None:
    rest = (
        "<cas:attributes><cas:mail>a@example.com</cas:mail><cas:mail>b@example.com</cas:mail>"
        '<cas:attribute name="cn" value="Alice"/></cas:attributes>'
    )
    name, attributes = parse_validation_response(SUCCESS.format(user=" alice ", rest=rest).encode())
    assert (name, attributes) == (
        "alice",
        {"mail": ["a@example.com", "b@example.com"], "cn": ["Alice"]},
    )


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "<",
        "<a/>",
        "yes\nalice\n",
        SUCCESS.format(user="", rest=""),
        SUCCESS.format(user="alice", rest="").replace("yale.edu", "evil.example"),
        SUCCESS.format(user="alice", rest="").replace("Success", "Failure"),
        '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
        + SUCCESS.format(user="&e;", rest=""),
        '<!DOCTYPE a [<!ENTITY e "alice">]>' + SUCCESS.format(user="&e;", rest=""),
        '<?xml version="1.0" encoding="x-unknown"?>' + SUCCESS.format(user="alice", rest=""),
    ],
)
def test_invalid_validation_responses_are_refused(answer: str) -> None:
    with pytest.raises(SignInRefused):
        parse_validation_response(answer.encode())


@given(st.binary(max_size=200))
def test_no_validation_response_causes_a_500(answer: bytes) -> None:
    with pytest.raises(SignInRefused):
        parse_validation_response(answer)
