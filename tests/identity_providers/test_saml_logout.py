"""Single logout with a third-party SAML provider (samlp), in both directions."""

import base64
import re
import time
import zlib
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import urlopen
from xml.etree.ElementTree import fromstring

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from federation.protocol.ids import UserID
from storage.engine.database import Database
from storage.engine.interface import DatabaseUnavailable
from storage.login.browser_sessions import BrowserSessionStore
from tests.helpers.http import Answer
from tests.helpers.identity_providers import (
    BASE,
    ProviderProcess,
    rsa_certificate,
    rsa_key,
)
from tests.helpers.npm_sign_ins import answer_of, needs_saml, redeem
from tests.helpers.server import TestServer, User
from tests.helpers.sso_browser import BlockingWeb, SSOBrowser

ACS = "_synapse/client/saml2/authn_response"
LOGOUT = "_synapse/client/saml2/logout"
WHOAMI = "/_matrix/client/v3/account/whoami"


def sign_in_at_the_school(server: TestServer) -> tuple[User, SSOBrowser]:
    """Sign Alice in; return her device and her browser."""
    traveller = answer_of(server)
    traveller.send()
    return redeem(server, traveller), traveller


def logout_request(
    providers: ProviderProcess, traveller: SSOBrowser, path: str = "/saml/logout"
) -> str:
    """Return the query with which the provider redirects a browser that signs out there."""
    traveller.open_without_redirect(f"{providers.url}{path}")
    return traveller.url


@needs_saml
def test_a_logout_at_the_provider_ends_the_session(
    server: TestServer, providers: ProviderProcess
) -> None:
    other, _ = sign_in_at_the_school(server)
    alice, traveller = sign_in_at_the_school(server)
    request = logout_request(providers, traveller)
    assert request.startswith(f"{BASE}{LOGOUT}?SAMLRequest=")
    traveller.go(request)
    assert traveller.url.startswith(f"{providers.url}/saml/logout?SAMLResponse=")
    assert traveller.text == "OK"  # the provider accepts our response
    assert alice.get(WHOAMI).status == 401
    assert other.get(WHOAMI).status == 200  # another session at the provider


@needs_saml
def test_a_logout_at_the_provider_ends_the_browser_session(
    server: TestServer, providers: ProviderProcess
) -> None:
    stays = answer_of(server, to="/_mahalla/upstream/sign_in?provider=saml&next=/_mahalla/account")
    stays.send()
    traveller = answer_of(
        server, to="/_mahalla/upstream/sign_in?provider=saml&next=/_mahalla/account"
    )
    traveller.send()
    assert traveller.home.path == "/_mahalla/account"
    elsewhere = SSOBrowser(
        server, BASE
    )  # the provider uses a frame, to which the browser sends no cookie of ours
    elsewhere.go(logout_request(providers, elsewhere))
    for each, path in ((traveller, "/_mahalla/sign_in"), (stays, "/_mahalla/account")):
        each.go(f"{BASE}_mahalla/account")
        assert each.home.path.startswith(path)


@needs_saml
@pytest.mark.parametrize("way", ["everywhere", "there"])
def test_a_logout_ends_pending_flows(
    server: TestServer, providers: ProviderProcess, way: str
) -> None:
    sign_in_at_the_school(server)
    traveller = answer_of(server)
    fields = traveller.page.forms[0].fields
    answer = server.client.request("POST", f"/{ACS}", body=urlencode(fields).encode())
    held = answer.headers["location"]
    assert held.startswith("/_mahalla/upstream/go_on?flow=")
    if way == "everywhere":
        server.run(server.app.accounts.sessions.do_log_out_everywhere(UserID("@alice:example.org")))
    else:
        elsewhere = SSOBrowser(server, BASE)
        elsewhere.go(logout_request(providers, elsewhere))
    traveller.home.open(held)
    assert (traveller.home.status, "location" in traveller.home.answer.headers) == (400, False)


@needs_saml
def test_a_logout_request_in_a_form_ends_the_session(
    server: TestServer, providers: ProviderProcess
) -> None:
    alice, traveller = sign_in_at_the_school(server)
    traveller.go(f"{providers.url}/saml/logout_by_post")
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
    '<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/">'
    "<soap:Body>{}</soap:Body></soap:Envelope>"
)


def envelope(
    server: TestServer, text: str, content_type: str = "text/xml; charset=utf-8"
) -> Answer:
    """Return a SOAP request, which the provider sends without a browser."""
    headers = {
        "Content-Type": content_type,
        "SOAPAction": "http://www.oasis-open.org/committees/security",
    }
    return server.client.request("POST", f"/{LOGOUT}", body=text.encode(), headers=headers)


@needs_saml
def test_a_logout_request_by_soap_ends_the_session(
    server: TestServer, providers: ProviderProcess
) -> None:
    alice, traveller = sign_in_at_the_school(server)
    traveller.go(f"{providers.url}/saml/logout_by_post")
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
        assert (refused.status, refused.body, alice.get(WHOAMI).status) == (403, b"", 200), wrong[
            :300
        ]
    answer = envelope(server, whole)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/xml")
    (received,) = fromstring(answer.body).findall(
        "{http://schemas.xmlsoap.org/soap/envelope/}Body/*"
    )
    assert received.tag == "{urn:oasis:names:tc:SAML:2.0:protocol}LogoutResponse"
    assert received.attrib["InResponseTo"] == fromstring(request).attrib["ID"]
    assert b"urn:oasis:names:tc:SAML:2.0:status:Success" in answer.body
    assert alice.get(WHOAMI).status == 401
    assert envelope(server, whole).status == 200  # repeating it changes nothing
    assert b"bindings:SOAP" in server.get("/_synapse/client/saml2/metadata.xml").body


@needs_saml
def test_invalid_logout_requests_are_refused(
    server: TestServer, providers: ProviderProcess
) -> None:
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
    repeated, _ = sign_in_at_the_school(server)
    traveller.home.open(request)  # a used request ends nothing
    assert repeated.get(WHOAMI).status == 200


def sign(folder: Path, query: str) -> str:
    """Return the path of a request with this query, signed as the provider does."""
    signature = rsa_key(folder).sign(query.encode(), PKCS1v15(), SHA256())
    return f"/{LOGOUT}?{query}&{urlencode({'Signature': base64.b64encode(signature)})}"


@needs_saml
def test_an_old_logout_request_is_refused(server: TestServer, providers: ProviderProcess) -> None:
    """An intercepted request that was never used cannot end later sessions."""
    alice, traveller = sign_in_at_the_school(server)
    sent = parse_qs(urlsplit(logout_request(providers, traveller)).query)
    text = zlib.decompress(base64.b64decode(sent["SAMLRequest"][0]), -15).decode()

    def issued(seconds: int, name: str) -> str:
        """Return the path of a request that was issued this many seconds ago."""
        instant = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds))
        then = re.sub('IssueInstant="[^"]*"', f'IssueInstant="{instant}"', text, count=1)
        then = re.sub(' ID="[^"]*"', f' ID="{name}"', then, count=1)
        packing = zlib.compressobj(9, wbits=-15)
        packed = packing.compress(then.encode()) + packing.flush()
        query = urlencode({"SAMLRequest": base64.b64encode(packed), "SigAlg": sent["SigAlg"][0]})
        return sign(providers.folder, query)

    for seconds in (400, 3600, 12 * 3600, -120):
        traveller.home.open(issued(seconds, f"_a{abs(seconds)}"))
        assert (traveller.home.status, alice.get(WHOAMI).status) == (403, 200), seconds
    traveller.home.open(issued(200, "_b"))
    assert alice.get(WHOAMI).status == 401


@needs_saml
def test_the_signature_covers_the_query_as_sent(
    server: TestServer, providers: ProviderProcess
) -> None:
    alice, traveller = sign_in_at_the_school(server)
    sent = logout_request(providers, traveller).partition("?")[2].partition("&Signature=")[0]
    query = re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), sent)  # another valid encoding
    assert "%2f" in query
    request = sign(providers.folder, query)
    for wrong in (
        f"{request}&RelayState=x",
        request.replace("?", "?SAMLRequest=x&"),
        request.replace("%2f", "%2F"),
    ):
        traveller.home.open(wrong)
        assert (traveller.home.status, alice.get(WHOAMI).status) == (403, 200), wrong[:200]
    traveller.home.open(request)
    assert "SAMLResponse=" in traveller.home.location
    assert alice.get(WHOAMI).status == 401


@needs_saml
def test_a_failed_request_can_be_repeated(
    server: TestServer, providers: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, traveller = sign_in_at_the_school(server)
    request = logout_request(providers, traveller).removeprefix(BASE.rstrip("/"))

    def fail(*_: object) -> None:
        raise DatabaseUnavailable("it is down")

    with monkeypatch.context() as patch:
        patch.setattr(BrowserSessionStore, "get_browsers_by_session_prefix", fail)
        traveller.home.open(request)
        assert (traveller.home.status, alice.get(WHOAMI).status) == (503, 200)
    traveller.home.open(request)
    assert alice.get(WHOAMI).status == 401


@needs_saml
def test_a_logout_request_ends_several_sessions(
    server: TestServer, providers: ProviderProcess
) -> None:
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
@pytest.mark.parametrize("waits", ["answer", "token"])
def test_a_logout_request_without_a_session_ends_pending_flows(
    server: TestServer, providers: ProviderProcess, waits: str
) -> None:
    """The user has no session here yet."""
    traveller = answer_of(server)
    if waits == "token":
        traveller.send()
    else:
        fields = traveller.page.forms[0].fields
        held = server.client.request("POST", f"/{ACS}", body=urlencode(fields).encode()).headers[
            "location"
        ]
    elsewhere = SSOBrowser(server, BASE)
    sent = parse_qs(urlsplit(logout_request(providers, elsewhere)).query)
    text = zlib.decompress(base64.b64decode(sent["SAMLRequest"][0]), -15).decode()
    whole, found = re.subn(
        r"<([a-z0-9]*:?)SessionIndex>.*</\1SessionIndex>", "", text, flags=re.DOTALL
    )
    assert found == 1
    packing = zlib.compressobj(9, wbits=-15)
    packed = packing.compress(whole.encode()) + packing.flush()
    query = urlencode({"SAMLRequest": base64.b64encode(packed), "SigAlg": sent["SigAlg"][0]})
    elsewhere.home.open(sign(providers.folder, query))
    assert "SAMLResponse=" in elsewhere.home.location
    if waits == "answer":
        traveller.home.open(held)
        assert (traveller.home.status, "location" in traveller.home.answer.headers) == (400, False)
    else:
        token = parse_qs(urlsplit(traveller.url).query)["loginToken"][0]
        assert (
            server.post(
                "/_matrix/client/v3/login", {"type": "m.login.token", "token": token}
            ).status
            == 403
        )


@needs_saml
def test_a_logout_here_ends_the_session_at_the_provider(
    server: TestServer, providers: ProviderProcess
) -> None:
    traveller = answer_of(
        server, to="/_mahalla/upstream/sign_in?provider=saml&next=/_mahalla/account"
    )
    traveller.send()
    form = next(form for form in traveller.page.forms if form.action == "/_mahalla/sign_out")
    traveller.go(f"{BASE}_mahalla/sign_out", form.fields)
    assert "You are signed out" in traveller.words
    assert traveller.home.answer.headers["refresh"].startswith(
        f"0;url={providers.url}/saml/logout?SAMLRequest="
    )
    traveller.go(traveller.page.links["Continue"])
    assert traveller.home.path.startswith("/_mahalla/sign_in?next=")
    for path in (
        "https://evil.example/",
        "//evil.example",
    ):  # the response redirects only to paths of this server
        traveller.home.open(f"/{LOGOUT}?{urlencode({'SAMLResponse': 'x', 'RelayState': path})}")
        assert traveller.home.path.startswith("/_mahalla/sign_in?next=%2F_mahalla%2Faccount")


@needs_saml
def test_the_logout_request_is_signed_if_a_key_is_configured(
    tmp_path: Path, sqlite_database: Database, providers: ProviderProcess
) -> None:
    certificate, key = rsa_certificate(tmp_path)
    with urlopen(f"{providers.url}/saml/metadata", timeout=60) as answer:
        (tmp_path / "idp.xml").write_bytes(answer.read())
    sp_config = f"{{metadata: {{local: [idp.xml]}}, key_file: {key}, cert_file: {certificate}}}"
    config = f"public_baseurl: {BASE}\nsaml2_config: {{sp_config: {sp_config}}}\n"
    server = TestServer(tmp_path, sqlite_database, config, web=BlockingWeb(), now=time.time())
    assert b"SingleLogoutService" in server.get("/_synapse/client/saml2/metadata.xml").body
    traveller = answer_of(
        server, to="/_mahalla/upstream/sign_in?provider=saml&next=/_mahalla/account"
    )
    traveller.send()
    form = next(form for form in traveller.page.forms if form.action == "/_mahalla/sign_out")
    traveller.go(f"{BASE}_mahalla/sign_out", form.fields)
    assert {"SAMLRequest", "SigAlg", "Signature"} <= parse_qs(
        urlsplit(traveller.page.links["Continue"]).query
    ).keys()
