"""Signing in with providers that others wrote: oidc-provider for OpenID Connect, samlp for SAML 2."""

import base64
import re
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import urlopen
from xml.etree.ElementTree import fromstring

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from twisted.logger import capturedLogs

from storage.browser_sessions import BrowserSessionStore
from storage.database import Database
from storage.engine import DatabaseUnavailable
from tests.helpers.http import Answer
from tests.helpers.identity_providers import (
    BASE,
    HAS_NPM,
    HAS_SAML,
    NO_NPM,
    OutsideServer,
    rsa_certificate,
    rsa_key,
    start_npm,
)
from tests.helpers.ports import free_port
from tests.helpers.server import TestServer, User
from tests.helpers.traveller import OutsideWeb, Traveller

REDIRECT = f"{BASE}_matrix/client/v3/login/sso/redirect"
CLIENT = "https://client.example/"
ACS = "_synapse/client/saml2/authn_response"


class LogoutListener:
    """Where the provider says that somebody has signed out: keeps the forms."""

    def __init__(self) -> None:
        self.forms: list[bytes] = []
        forms = self.forms

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                forms.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def listener() -> Iterator[LogoutListener]:
    made = LogoutListener()
    yield made
    made.close()


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory, listener: LogoutListener) -> Iterator[OutsideServer]:
    if not HAS_NPM:
        pytest.skip(NO_NPM)
    folder = tmp_path_factory.mktemp("providers")
    server = start_npm(folder, free_port(), listener.url)
    yield server
    server.end()


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database, providers: OutsideServer) -> TestServer:
    saml = ""
    if HAS_SAML:
        with urlopen(f"{providers.url}/saml/metadata", timeout=60) as answer:
            (tmp_path / "idp.xml").write_bytes(answer.read())
        saml = """
saml2_config:
  idp_name: School
  sp_config: {metadata: {local: [idp.xml]}}
  attribute_requirements: [{attribute: eduPersonAffiliation, value: staff}]
"""
    config = f"""
public_baseurl: {BASE}
sso: {{client_whitelist: ["{CLIENT}"]}}
oidc_providers:
- idp_id: town
  idp_name: Town hall
  issuer: {providers.url}/oidc
  skip_verification: true
  client_id: matrix
  client_secret: open sesame
  scopes: [openid, profile, email]
  backchannel_logout_enabled: true
  attribute_requirements: [{{attribute: groups, one_of: [staff]}}]
  user_mapping_provider:
    config:
      localpart_template: "{{{{ user.preferred_username }}}}"
      display_name_template: "{{{{ user.name }}}}"
      email_template: "{{{{ user.email }}}}"
{saml}"""
    return TestServer(tmp_path, sqlite_database, config, web=OutsideWeb(), now=time.time())


def redeem(server: TestServer, traveller: Traveller) -> User:
    assert traveller.url.startswith(CLIENT), traveller.words
    token = parse_qs(urlsplit(traveller.url).query)["loginToken"][0]
    answer = server.post("/_matrix/client/v3/login", {"type": "m.login.token", "token": token})
    assert answer.status == 200, answer.body
    return User(server, answer.json)


# OpenID Connect: oidc-provider.


def sign_in_at_the_town_hall(traveller: Traveller, name: str) -> None:
    traveller.go(f"{REDIRECT}/oidc-town?redirectUrl={CLIENT}")
    traveller.send(login=name, password="whatever")
    assert "Authorize" in traveller.words
    traveller.send()


def test_people_sign_in_with_openid_connect(
    server: TestServer, providers: OutsideServer, listener: LogoutListener
) -> None:
    traveller = Traveller(server, BASE)
    sign_in_at_the_town_hall(traveller, "alice")
    alice = redeem(server, traveller)
    assert alice.user_id == "@alice:example.org"
    assert server.get(f"/_matrix/client/v3/profile/{alice.user_id}").json["displayname"] == "Alice Liddell"
    assert alice.get("/_matrix/client/v3/account/3pid").json["threepids"][0]["address"] == "alice@example.com"
    traveller.go(f"{REDIRECT}/oidc-town?redirectUrl={CLIENT}")  # signed in there: nobody is asked
    assert redeem(server, traveller).user_id == alice.user_id
    traveller.go(f"{providers.url}/oidc/session/end")
    traveller.send(button="yes")
    (form,) = listener.forms
    assert server.post("/_synapse/client/oidc/backchannel_logout", body=form).status == 200
    assert alice.get("/_matrix/client/v3/account/whoami").status == 401


def test_who_is_in_another_group_is_refused(server: TestServer) -> None:
    traveller = Traveller(server, BASE)
    sign_in_at_the_town_hall(traveller, "bob")
    assert "not among those who may use this server" in traveller.words


def test_who_does_not_want_to_comes_back(server: TestServer) -> None:
    traveller = Traveller(server, BASE)
    traveller.go(f"{REDIRECT}/oidc-town?redirectUrl={CLIENT}")
    cancel = next(link for words, link in traveller.page.links.items() if "Cancel" in words)
    traveller.go(f"{urlsplit(traveller.url).scheme}://{urlsplit(traveller.url).netloc}{urlsplit(cancel).path}")
    assert "You did not sign in there" in traveller.words


# SAML 2: samlp.

needs_saml = pytest.mark.skipif(not HAS_SAML, reason=NO_NPM)


def answer_of(
    server: TestServer,
    path: str = "/saml",
    user: str = "alice",
    to: str = f"/_matrix/client/v3/login/sso/redirect/saml?redirectUrl={CLIENT}",
) -> Traveller:
    """Somebody at the page with which the provider sends them back. `to`: where they began."""
    traveller = Traveller(server, BASE)
    answer = traveller.home.open(to)
    assert answer.status == 302
    there = urlsplit(traveller.home.location)
    assert there.path == "/saml"
    traveller.go(f"{there.scheme}://{there.netloc}{path}?{there.query}&user={user}")
    return traveller


@needs_saml
def test_people_sign_in_with_saml(server: TestServer) -> None:
    traveller = answer_of(server)
    form = traveller.page.forms[0]
    traveller.home.cookies.clear()
    traveller.home.post(f"/{ACS}", form.fields)
    assert "opened in another browser" in traveller.home.words
    traveller = answer_of(server)
    traveller.home.post_from_elsewhere(f"/{ACS}", traveller.page.forms[0].fields)
    traveller.go(BASE.rstrip("/") + traveller.home.location)
    alice = redeem(server, traveller)
    assert alice.user_id == "@alice:example.org"
    assert server.get(f"/_matrix/client/v3/profile/{alice.user_id}").json["displayname"] == "Alice Liddell"
    assert alice.get("/_matrix/client/v3/account/3pid").json["threepids"][0]["address"] == "alice@example.com"


@needs_saml
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("unsigned", "Signature missing for assertion"),
        ("unsigned_altogether", "Signature missing for assertion"),
        ("for_others", "AudienceRestrictions conditions not satisfied"),
        ("expired", "Condition not OK"),
    ],
)
def test_assertions_that_are_refused(server: TestServer, path: str, reason: str) -> None:
    traveller = answer_of(server, f"/saml/{path}")
    with capturedLogs() as logged:
        traveller.send()
    assert "does not answer as it should" in traveller.words
    assert reason in str([event.get("why") for event in logged])


@needs_saml
def test_assertions_that_were_changed_or_taken(server: TestServer) -> None:
    first = answer_of(server)
    fields = first.page.forms[0].fields
    second = answer_of(server)
    other = second.page.forms[0].fields
    second.home.post(f"/{ACS}", {**fields, "RelayState": other["RelayState"]})  # the answer to another request
    assert "does not answer as it should" in second.home.words
    third = answer_of(server)
    good = base64.b64decode(third.page.forms[0].fields["SAMLResponse"]).decode()
    changed = base64.b64encode(good.replace(">alice<", ">admin<").encode()).decode()
    third.send(SAMLResponse=changed)
    assert "does not answer as it should" in third.words
    first.send()
    redeem(server, first)
    first.home.post(f"/{ACS}", fields)  # once more
    assert "was used before" in first.home.words
    for fields in ({}, {"SAMLResponse": "x", "RelayState": "y"}):
        first.home.post(f"/{ACS}", fields)
        assert first.home.status == 400


@needs_saml
def test_who_lacks_an_attribute(server: TestServer) -> None:
    traveller = answer_of(server, user="bob")
    traveller.send()
    assert "not among those who may use this server" in traveller.words


@needs_saml
def test_the_provider_is_told_of_this_server(server: TestServer) -> None:
    answer = server.get("/_synapse/client/saml2/metadata.xml")
    assert answer.headers["content-type"].startswith("application/samlmetadata+xml")
    root = fromstring(answer.body)
    assert root.attrib["entityID"] == f"{BASE}_synapse/client/saml2/metadata.xml"
    assert b'WantAssertionsSigned="true"' in answer.body
    assert f'Location="{BASE}{ACS}"'.encode() in answer.body


@needs_saml
def test_who_is_to_sign_in_again_is_asked_there(server: TestServer) -> None:
    button = "/_mahalla/upstream/sign_in?provider=saml&next=/%3Fhello"
    for to, wanted in ((button, False), (f"{button}&again=true", True)):
        traveller = answer_of(server, to=to)
        request = parse_qs(urlsplit(traveller.home.location).query)["SAMLRequest"][0]
        assert (b'ForceAuthn="true"' in zlib.decompress(base64.b64decode(request), -15)) is wanted
        traveller.send()
        assert traveller.home.path == "/?hello"


@needs_saml
def test_an_old_sign_in_is_none_of_now(server: TestServer) -> None:
    traveller = answer_of(server, to="/_mahalla/upstream/sign_in?provider=saml&next=/%3Fhello&again=true")
    text = base64.b64decode(traveller.page.forms[0].fields["SAMLResponse"]).decode()
    assert "AuthnInstant=" in text
    server.clock.advance(300)  # so long ago it began, for the answer of another sign-in
    later = answer_of(server, to="/_mahalla/upstream/sign_in?provider=saml&next=/%3Fhello&again=true")
    later.send()
    assert "were not asked there" in later.words


LOGOUT = "_synapse/client/saml2/logout"
WHOAMI = "/_matrix/client/v3/account/whoami"


def sign_in_at_the_school(server: TestServer) -> tuple[User, Traveller]:
    """A device of Alice's, and the browser in which she signed in."""
    traveller = answer_of(server)
    traveller.send()
    return redeem(server, traveller), traveller


def logout_request(providers: OutsideServer, traveller: Traveller, path: str = "/saml/logout") -> str:
    """With what the provider sends a browser here that signs out there."""
    traveller.go_no_further(f"{providers.url}{path}")
    return traveller.url


@needs_saml
def test_who_signs_out_there_is_signed_out_here(server: TestServer, providers: OutsideServer) -> None:
    other, _ = sign_in_at_the_school(server)
    alice, traveller = sign_in_at_the_school(server)
    request = logout_request(providers, traveller)
    assert request.startswith(f"{BASE}{LOGOUT}?SAMLRequest=")
    traveller.go(request)
    assert traveller.url.startswith(f"{providers.url}/saml/logout?SAMLResponse=")
    assert traveller.text == "OK"  # the provider takes our answer
    assert alice.get(WHOAMI).status == 401
    assert other.get(WHOAMI).status == 200  # another sign-in there


@needs_saml
def test_a_browser_that_came_from_there_is_signed_out(server: TestServer, providers: OutsideServer) -> None:
    traveller = answer_of(server, to="/_mahalla/upstream/sign_in?provider=saml&next=/_mahalla/account")
    traveller.send()
    assert traveller.home.path == "/_mahalla/account"
    elsewhere = Traveller(server, BASE)  # the provider asks in a frame, to which no cookie of ours comes
    elsewhere.go(logout_request(providers, elsewhere))
    traveller.go(f"{BASE}_mahalla/account")
    assert traveller.home.path.startswith("/_mahalla/sign_in")


@needs_saml
def test_a_request_in_a_form(server: TestServer, providers: OutsideServer) -> None:
    alice, traveller = sign_in_at_the_school(server)
    traveller.go(f"{providers.url}/saml/logout_by_form")
    fields = traveller.page.forms[0].fields
    text = base64.b64decode(fields["SAMLRequest"]).decode()
    changed = base64.b64encode(text.replace(">alice<", ">admin<").encode()).decode()
    traveller.home.post(f"/{LOGOUT}", {**fields, "SAMLRequest": changed})
    assert (traveller.home.status, alice.get(WHOAMI).status) == (403, 200)
    traveller.home.post(f"/{LOGOUT}", fields)
    assert "SAMLResponse=" in traveller.home.location
    assert alice.get(WHOAMI).status == 401


ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/"><soap:Body>{}</soap:Body></soap:Envelope>'
)


def envelope(server: TestServer, text: str, content_type: str = "text/xml; charset=utf-8") -> Answer:
    """What the provider sends from server to server; it comes with no browser of anybody."""
    headers = {"Content-Type": content_type, "SOAPAction": "http://www.oasis-open.org/committees/security"}
    return server.client.request("POST", f"/{LOGOUT}", body=text.encode(), headers=headers)


@needs_saml
def test_a_request_from_server_to_server(server: TestServer, providers: OutsideServer) -> None:
    alice, traveller = sign_in_at_the_school(server)
    traveller.go(f"{providers.url}/saml/logout_by_form")
    request = base64.b64decode(traveller.page.forms[0].fields["SAMLRequest"]).decode()
    unsigned = re.sub(r"<(\w+:)?Signature.*</(\w+:)?Signature>", "", request, flags=re.DOTALL)
    assert unsigned != request
    whole = ENVELOPE.format(request)
    doctype = '<!DOCTYPE a [<!ENTITY b "alice">]>'
    for wrong in (
        request,
        ENVELOPE.format(""),
        ENVELOPE.format(unsigned),
        ENVELOPE.format(unsigned + request),
        ENVELOPE.format(request + request),
        ENVELOPE.format(request.replace(">alice<", ">admin<")),
        whole.replace("?>", f"?>{doctype}", 1),
        whole.replace("?>", f"?>{doctype}", 1).replace(">alice<", ">&b;<"),
        whole.replace("schemas.xmlsoap.org", "example.org"),
        "<",
        "",
    ):
        refused = envelope(server, wrong)
        assert (refused.status, refused.body, alice.get(WHOAMI).status) == (403, b"", 200), wrong[:300]
    answer = envelope(server, whole)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/xml")
    (told,) = fromstring(answer.body).findall("{http://schemas.xmlsoap.org/soap/envelope/}Body/*")
    assert told.tag == "{urn:oasis:names:tc:SAML:2.0:protocol}LogoutResponse"
    assert told.attrib["InResponseTo"] == fromstring(request).attrib["ID"]
    assert b"urn:oasis:names:tc:SAML:2.0:status:Success" in answer.body
    assert alice.get(WHOAMI).status == 401
    assert envelope(server, whole).status == 200  # told once more, it is as it was
    assert b"bindings:SOAP" in server.get("/_synapse/client/saml2/metadata.xml").body


@needs_saml
def test_requests_that_are_refused(server: TestServer, providers: OutsideServer) -> None:
    alice, traveller = sign_in_at_the_school(server)
    request = logout_request(providers, traveller).removeprefix(BASE.rstrip("/"))
    unsigned = request.partition("&SigAlg")[0]
    bomb = zlib.compressobj(9, wbits=-15)
    large = base64.b64encode(bomb.compress(b" " * 10_000_000) + bomb.flush()).decode()
    for wrong in (
        unsigned,
        request.replace("RelayState=", "RelayState=x"),
        f"/{LOGOUT}?SAMLRequest=x",
        f"/{LOGOUT}?{urlencode({'SAMLRequest': large})}",
        request.replace("SigAlg=", "SigAlg=x"),
    ):
        traveller.home.open(wrong)
        assert (traveller.home.status, alice.get(WHOAMI).status) == (403, 200), wrong[:200]
    traveller.home.open(request)
    assert alice.get(WHOAMI).status == 401
    again, _ = sign_in_at_the_school(server)
    traveller.home.open(request)  # what was taken before ends nothing more
    assert again.get(WHOAMI).status == 200


def sign(folder: Path, query: str) -> str:
    """The path of a request with this query, as the provider signs it."""
    signature = rsa_key(folder).sign(query.encode(), PKCS1v15(), SHA256())
    return f"/{LOGOUT}?{query}&{urlencode({'Signature': base64.b64encode(signature)})}"


@needs_saml
def test_what_is_signed_is_the_query_as_it_was_sent(server: TestServer, providers: OutsideServer) -> None:
    alice, traveller = sign_in_at_the_school(server)
    sent = logout_request(providers, traveller).partition("?")[2].partition("&Signature=")[0]
    query = re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), sent)  # as some encode
    assert "%2f" in query
    request = sign(providers.folder, query)
    for wrong in (f"{request}&RelayState=x", request.replace("?", "?SAMLRequest=x&"), request.replace("%2f", "%2F")):
        traveller.home.open(wrong)
        assert (traveller.home.status, alice.get(WHOAMI).status) == (403, 200), wrong[:200]
    traveller.home.open(request)
    assert "SAMLResponse=" in traveller.home.location
    assert alice.get(WHOAMI).status == 401


@needs_saml
def test_a_request_that_failed_is_not_taken(
    server: TestServer, providers: OutsideServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, traveller = sign_in_at_the_school(server)
    request = logout_request(providers, traveller).removeprefix(BASE.rstrip("/"))

    def fail(*_: object) -> None:
        raise DatabaseUnavailable("it is down")

    with monkeypatch.context() as patch:
        patch.setattr(BrowserSessionStore, "get_origins_by_session", fail)
        traveller.home.open(request)
        assert (traveller.home.status, alice.get(WHOAMI).status) == (503, 200)
    traveller.home.open(request)
    assert alice.get(WHOAMI).status == 401


@needs_saml
def test_a_request_names_many_sessions(server: TestServer, providers: OutsideServer) -> None:
    alice, traveller = sign_in_at_the_school(server)
    sent = parse_qs(urlsplit(logout_request(providers, traveller)).query)
    text = zlib.decompress(base64.b64decode(sent["SAMLRequest"][0]), -15).decode()
    index = re.search(r"<([a-z0-9]*:?SessionIndex)>", text)
    assert index is not None
    others = "".join(f"<{index[1]}>{number}</{index[1]}>" for number in range(1200))
    packing = zlib.compressobj(9, wbits=-15)
    packed = packing.compress(text.replace(index[0], others + index[0]).encode()) + packing.flush()
    query = urlencode({"SAMLRequest": base64.b64encode(packed), "SigAlg": sent["SigAlg"][0]})
    traveller.home.open(sign(providers.folder, query))
    assert "SAMLResponse=" in traveller.home.location
    assert alice.get(WHOAMI).status == 401


@needs_saml
def test_who_signs_out_here_is_signed_out_there(server: TestServer, providers: OutsideServer) -> None:
    traveller = answer_of(server, to="/_mahalla/upstream/sign_in?provider=saml&next=/_mahalla/account")
    traveller.send()
    form = next(form for form in traveller.page.forms if form.action == "/_mahalla/sign_out")
    traveller.go(f"{BASE}_mahalla/sign_out", form.fields)
    assert "You are signed out" in traveller.words
    assert traveller.home.answer.headers["refresh"].startswith(f"0;url={providers.url}/saml/logout?SAMLRequest=")
    traveller.go(traveller.page.links["Go on"])
    assert traveller.home.path.startswith("/_mahalla/sign_in?next=")
    for path in ("https://evil.example/", "//evil.example"):  # what comes back leads to this server only
        traveller.home.open(f"/{LOGOUT}?{urlencode({'SAMLResponse': 'x', 'RelayState': path})}")
        assert traveller.home.path.startswith("/_mahalla/sign_in?next=%2F_mahalla%2Faccount")


@needs_saml
def test_with_a_key_of_our_own_the_request_is_signed(
    tmp_path: Path, sqlite_database: Database, providers: OutsideServer
) -> None:
    certificate, key = rsa_certificate(tmp_path)
    with urlopen(f"{providers.url}/saml/metadata", timeout=60) as answer:
        (tmp_path / "idp.xml").write_bytes(answer.read())
    sp_config = f"{{metadata: {{local: [idp.xml]}}, key_file: {key}, cert_file: {certificate}}}"
    config = f"public_baseurl: {BASE}\nsaml2_config: {{sp_config: {sp_config}}}\n"
    server = TestServer(tmp_path, sqlite_database, config, web=OutsideWeb(), now=time.time())
    assert b"SingleLogoutService" in server.get("/_synapse/client/saml2/metadata.xml").body
    traveller = answer_of(server, to="/_mahalla/upstream/sign_in?provider=saml&next=/_mahalla/account")
    traveller.send()
    form = next(form for form in traveller.page.forms if form.action == "/_mahalla/sign_out")
    traveller.go(f"{BASE}_mahalla/sign_out", form.fields)
    assert {"SAMLRequest", "SigAlg", "Signature"} <= parse_qs(urlsplit(traveller.page.links["Go on"]).query).keys()
