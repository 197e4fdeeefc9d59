"""Sign-in with third-party providers: oidc-provider for OpenID Connect, samlp for SAML 2."""

import base64
import zlib
from urllib.parse import parse_qs, urlsplit
from xml.etree.ElementTree import fromstring

import pytest
from twisted.logger import capturedLogs

from tests.helpers.identity_providers import (
    BASE,
    ProviderProcess,
)
from tests.helpers.npm_sign_ins import (
    CLIENT,
    REDIRECT,
    LogoutListener,
    answer_of,
    needs_saml,
    redeem,
)
from tests.helpers.server import TestServer
from tests.helpers.sso_browser import SSOBrowser
from tests.helpers.upstream import check_imported_profile

ACS = "_synapse/client/saml2/authn_response"


# OpenID Connect: oidc-provider.


def sign_in_at_the_town_hall(traveller: SSOBrowser, name: str) -> None:
    traveller.go(f"{REDIRECT}/oidc-town?redirectUrl={CLIENT}")
    traveller.send(login=name, password="whatever")
    assert "Authorize" in traveller.words
    traveller.send()


def test_a_user_signs_in_with_openid_connect(
    server: TestServer, providers: ProviderProcess, listener: LogoutListener
) -> None:
    traveller = SSOBrowser(server, BASE)
    sign_in_at_the_town_hall(traveller, "alice")
    alice = redeem(server, traveller)
    assert alice.user_id == "@alice:example.org"
    check_imported_profile(server, alice)
    traveller.go(
        f"{REDIRECT}/oidc-town?redirectUrl={CLIENT}"
    )  # already signed in at the provider, which does not ask again
    assert redeem(server, traveller).user_id == alice.user_id
    traveller.go(f"{providers.url}/oidc/session/end")
    traveller.send(button="yes")
    (form,) = listener.forms
    assert server.post("/_synapse/client/oidc/backchannel_logout", body=form).status == 200
    assert alice.get("/_matrix/client/v3/account/whoami").status == 401


def test_a_user_of_another_group_is_refused(server: TestServer) -> None:
    traveller = SSOBrowser(server, BASE)
    sign_in_at_the_town_hall(traveller, "bob")
    assert "not allowed to use this server" in traveller.words


def test_a_cancelled_sign_in_shows_a_page(server: TestServer) -> None:
    traveller = SSOBrowser(server, BASE)
    traveller.go(f"{REDIRECT}/oidc-town?redirectUrl={CLIENT}")
    cancel = next(link for words, link in traveller.page.links.items() if "Cancel" in words)
    traveller.go(urlsplit(traveller.url)._replace(path=urlsplit(cancel).path, query="").geturl())
    assert "You did not sign in there" in traveller.words


# SAML 2: samlp.


@needs_saml
def test_a_user_signs_in_with_saml(server: TestServer) -> None:
    traveller = answer_of(server)
    form = traveller.page.forms[0]
    traveller.home.cookies.clear()
    traveller.home.post(f"/{ACS}", form.fields)
    assert "opened in another browser" in traveller.home.words
    traveller = answer_of(server)
    traveller.home.post_from_other_site(f"/{ACS}", traveller.page.forms[0].fields)
    traveller.go(BASE.rstrip("/") + traveller.home.location)
    alice = redeem(server, traveller)
    assert alice.user_id == "@alice:example.org"
    check_imported_profile(server, alice)


@needs_saml
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("only_response_signed", "Signature missing for assertion"),
        ("unsigned", "Signature missing for assertion"),
        ("wrong_audience", "AudienceRestrictions conditions not satisfied"),
        ("expired", "Condition not OK"),
    ],
)
def test_invalid_assertions_are_refused(server: TestServer, path: str, reason: str) -> None:
    traveller = answer_of(server, f"/saml/{path}")
    with capturedLogs() as logged:
        traveller.send()
    assert "sign-in service is not working" in traveller.words
    assert reason in str([event.get("why") for event in logged])


@needs_saml
def test_changed_or_used_assertions_are_refused(server: TestServer) -> None:
    first = answer_of(server)
    fields = first.page.forms[0].fields
    second = answer_of(server)
    other = second.page.forms[0].fields
    second.home.post(
        f"/{ACS}", {**fields, "RelayState": other["RelayState"]}
    )  # the response to another request
    assert "sign-in service is not working" in second.home.words
    third = answer_of(server)
    good = base64.b64decode(third.page.forms[0].fields["SAMLResponse"]).decode()
    changed = base64.b64encode(good.replace(">alice<", ">admin<").encode()).decode()
    third.send(SAMLResponse=changed)
    assert "sign-in service is not working" in third.words
    first.send()
    redeem(server, first)
    first.home.post(f"/{ACS}", fields)  # used again
    assert "was already used" in first.home.words
    for fields in ({}, {"SAMLResponse": "x", "RelayState": "y"}):
        first.home.post(f"/{ACS}", fields)
        assert first.home.status == 400


@needs_saml
def test_a_missing_required_attribute_is_refused(server: TestServer) -> None:
    traveller = answer_of(server, user="bob")
    traveller.send()
    assert "not allowed to use this server" in traveller.words


@needs_saml
def test_the_metadata_of_this_server_are_valid(server: TestServer) -> None:
    answer = server.get("/_synapse/client/saml2/metadata.xml")
    assert answer.headers["content-type"].startswith("application/samlmetadata+xml")
    root = fromstring(answer.body)
    assert root.attrib["entityID"] == f"{BASE}_synapse/client/saml2/metadata.xml"
    assert b'WantAssertionsSigned="true"' in answer.body
    assert f'Location="{BASE}{ACS}"'.encode() in answer.body


@needs_saml
def test_reauthentication_is_required_and_checked(server: TestServer) -> None:
    button = "/_mahalla/upstream/sign_in?provider=saml&next=/%3Fhello"
    for to, wanted in ((button, False), (f"{button}&again=true", True)):
        traveller = answer_of(server, to=to)
        request = parse_qs(urlsplit(traveller.home.location).query)["SAMLRequest"][0]
        assert (b'ForceAuthn="true"' in zlib.decompress(base64.b64decode(request), -15)) is wanted
        traveller.send()
        assert traveller.home.path == "/?hello"


@needs_saml
def test_an_expired_saml_flow_is_refused(server: TestServer) -> None:
    traveller = answer_of(
        server, to="/_mahalla/upstream/sign_in?provider=saml&next=/%3Fhello&again=true"
    )
    text = base64.b64decode(traveller.page.forms[0].fields["SAMLResponse"]).decode()
    assert "AuthnInstant=" in text
    server.clock.advance(300)  # the flow began too long ago, for the response to another request
    later = answer_of(
        server, to="/_mahalla/upstream/sign_in?provider=saml&next=/%3Fhello&again=true"
    )
    later.send()
    assert "did not ask you to" in later.words
