"""The requests of Element X in their order, from the typed server name to the end of the
session."""

from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.oauth import BASE, CONFIG, METADATA, Program, returned
from tests.helpers.room_actions import create
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list

V3 = "/_matrix/client/v3"
LOCALIZED = {
    **METADATA,
    "client_name#fr": "Element X en fran\u00e7ais",
    "tos_uri#fr": "https://element.io/fr/terms",
}
STATE = [
    ["m.room.name", ""],
    ["m.room.encryption", ""],
    ["m.room.member", "$LAZY"],
    ["m.room.member", "$ME"],
    ["m.room.topic", ""],
    ["m.room.avatar", ""],
    ["m.room.canonical_alias", ""],
    ["m.room.power_levels", ""],
    ["org.matrix.msc3401.call.member", "*"],
    ["m.room.join_rules", ""],
    ["m.room.tombstone", ""],
    ["m.room.create", ""],
    ["m.room.history_visibility", ""],
    ["io.element.functional_members", ""],
    ["m.space.parent", "*"],
    ["m.space.child", "*"],
    ["org.matrix.msc3672.beacon_info", "*"],
]


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG + "serve_server_wellknown: true\n")


def check_discovery(server: TestServer) -> None:
    """Check what Element X requires of a server."""
    known = server.get("/.well-known/matrix/client")
    assert known.json["m.homeserver"]["base_url"].rstrip("/") == BASE
    assert known.headers["access-control-allow-origin"] == "*"
    versions = server.get("/_matrix/client/versions").json
    assert {"v1.1", "v1.3", "v1.11", "v1.15"} <= set(versions["versions"])
    assert versions["unstable_features"]["org.matrix.simplified_msc3575"] is True
    found = server.get("/_matrix/client/v1/auth_metadata").json
    for name in (
        "issuer",
        *(f"{each}_endpoint" for each in ("authorization", "token", "revocation", "registration")),
    ):
        assert found[name].startswith(BASE), name
    assert {"query", "fragment"} <= set(found["response_modes_supported"])
    assert "code" in found["response_types_supported"]
    assert {"authorization_code", "refresh_token", METADATA["grant_types"][2]} <= set(
        found["grant_types_supported"]
    )
    assert "S256" in found["code_challenge_methods_supported"]
    assert "create" in found["prompt_values_supported"]
    assert found["device_authorization_endpoint"].startswith(BASE)
    flows = server.get(f"{V3}/login").json["flows"]
    sso = next(flow for flow in flows if flow["type"] == "m.login.sso")
    assert sso["oauth_aware_preferred"] is True
    assert sso["org.matrix.msc3824.delegated_oidc_compatibility"] is True


def check_account_links(program: Program, browser: Browser) -> None:
    """Check the links that it makes from the account management URI and actions."""
    actions = program.server_metadata["account_management_actions_supported"]
    for action in (
        "org.matrix.profile",
        "org.matrix.devices_list",
        "org.matrix.account_deactivate",
    ):
        assert action in actions
        browser.open(f"{program.path_of('account_management_uri')}?{urlencode({'action': action})}")
        assert browser.status == 200, action
    assert "org.matrix.device_view" in actions
    asked = {"action": "org.matrix.device_view", "device_id": program.device_id}
    browser.open(f"{program.path_of('account_management_uri')}?{urlencode(asked)}")
    assert "Element X" in browser.words


def follow(user: User) -> None:
    """Open its two concurrent sliding sync connections."""
    room_id = create(user, name="Tea")
    wanted = {"all_rooms": a_list([0, 19], limit=1, state=STATE)}
    offered = ("account_data", "receipts", "typing")
    rooms = SlidingClient(
        user, lists=wanted, extensions={name: {"enabled": True} for name in offered}
    )
    answer = rooms.sync()
    assert room_id in answer["rooms"]
    assert answer["rooms"][room_id]["name"] == "Tea"
    extensions = {"to_device": {"enabled": True}, "e2ee": {"enabled": True}}
    encryption = SlidingClient(user, "encryption", extensions=extensions)
    assert "device_one_time_keys_count" in encryption.sync()["extensions"]["e2ee"]


def test_element_x_signs_in_refreshes_and_signs_out(server: TestServer) -> None:
    check_discovery(server)
    server.register("alice")
    program, browser = Program(server, LOCALIZED), Browser(server)
    browser.open(program.request(login_hint="mxid:@alice:example.org"))
    assert browser.page.forms[0].fields["name"] == "@alice:example.org"
    browser.send("/_mahalla/sign_in", password="wonderland")
    browser.send(program.path_of("authorization_endpoint"), button="allow")
    assert urlsplit(browser.location)[:3] == ("io.element.android", "", "/")
    back = dict(
        parse_qsl(urlsplit(browser.location).query, strict_parsing=True)
    )  # it reads only the query
    assert back["state"] == "a state"
    answer = program.exchange(back["code"])
    assert (answer.json["token_type"], answer.headers["content-type"]) == (
        "Bearer",
        "application/json",
    )
    alice = program.take(answer)
    assert (alice.user_id, alice.device_id) == ("@alice:example.org", program.device_id)
    assert alice.get("/_matrix/client/versions").status == 200
    assert alice.get(f"{V3}/capabilities").status == 200
    follow(alice)
    check_account_links(program, browser)

    # the first token has expired
    server.clock.advance(answer.json["expires_in"] + 1)
    expired = alice.get(f"{V3}/account/whoami")
    assert (expired.status, expired.errcode, expired.json["soft_logout"]) == (
        401,
        "M_UNKNOWN_TOKEN",
        True,
    )
    repeated = program.take(program.refresh())
    assert repeated.device_id == alice.device_id
    follow(repeated)

    # to sign out, it revokes the access token: with it goes the session, the device, and what could
    # be refreshed
    assert sign_out(program).status == 200
    ended = repeated.get(f"{V3}/account/whoami")
    assert (ended.status, ended.errcode) == (401, "M_UNKNOWN_TOKEN")
    assert "soft_logout" not in ended.json
    assert program.refresh().json["error"] == "invalid_grant"
    browser.open(program.path_of("account_management_uri"))
    assert f"device_id={program.device_id}" not in browser.text


def test_element_x_registers_an_account(server: TestServer) -> None:
    program, browser = Program(server, LOCALIZED), Browser(server)
    browser.open(program.request(prompt="create"))
    assert browser.path.startswith("/_mahalla/register")
    browser.send(
        "/_mahalla/register", name="carol", password="wonderland", password_again="wonderland"
    )
    browser.send(program.path_of("authorization_endpoint"), button="allow")
    carol = program.take(program.exchange(returned(browser)["code"]))
    assert carol.user_id == "@carol:example.org"


def sign_out(program: Program) -> Answer:
    return program.form(
        "revocation_endpoint",
        token=str(program.tokens["access_token"]),
        token_type_hint="access_token",
        client_id=program.client_id,
    )
