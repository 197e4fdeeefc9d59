"""Application services: identity assertion, the accounts and devices that they create, and their
exclusive names."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from federation.protocol.errors import Exclusive
from homeserver.config.load import ConfigError, load_config
from homeserver.services.accounts.registration import RegistrationRequest
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.openid import CONFIG as OPENID
from tests.helpers.openid import TEMPLATES, OpenIDProvider
from tests.helpers.server import TestServer, User

TOKEN = "a token of the bridge to IRC"
OTHER = "a token of another bridge"
IRC = f"""
id: irc
url: http://127.0.0.1:1
as_token: {TOKEN}
hs_token: something secret
sender_localpart: _irc_bot
rate_limited: false
io.example.unknown: true
namespaces:
  users:
  - {{exclusive: true, regex: "@_irc_.*"}}
  - {{exclusive: false, regex: "@alice:.*"}}
  aliases: [{{exclusive: true, regex: "#_irc_.*"}}]
"""
XMPP = f"""
id: xmpp
url: null
as_token: {OTHER}
hs_token: something else
sender_localpart: _xmpp_bot
namespaces: {{users: [{{exclusive: false, regex: "@.*"}}]}}
"""
V3 = "/_matrix/client/v3"
TYPE = "m.login.application_service"
BOT, GHOST = "@_irc_bot:example.org", "@_irc_bob:example.org"


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    (tmp_path / "irc.yaml").write_text(IRC, encoding="utf-8")
    (tmp_path / "xmpp.yaml").write_text(XMPP, encoding="utf-8")
    return TestServer(
        tmp_path, sqlite_database, "app_service_config_files: [irc.yaml, xmpp.yaml]\n"
    )


def ask(server: TestServer, method: str, path: str, json: Any = None, token: str = TOKEN) -> Answer:
    return server.client.request(method, V3 + path, token=token, json=json)


def register(
    server: TestServer, name: str = "_irc_bob", token: str = TOKEN, **further: Any
) -> Answer:
    return ask(server, "POST", "/register", {"type": TYPE, "username": name, **further}, token)


def test_an_application_service_acts_for_its_user_and_its_namespaces(server: TestServer) -> None:
    assert ask(server, "GET", "/account/whoami").json["user_id"] == BOT
    missing = ask(server, "GET", f"/account/whoami?user_id={GHOST}")
    assert (missing.status, missing.errcode) == (403, "M_FORBIDDEN")
    assert register(server, inhibit_login=True).json == {
        "user_id": GHOST,
        "home_server": "example.org",
    }
    assert ask(server, "GET", f"/account/whoami?user_id={GHOST}").json["user_id"] == GHOST
    server.register("alice")
    server.register("carol")
    assert ask(server, "GET", "/account/whoami?user_id=@alice:example.org").status == 200
    assert ask(server, "GET", "/account/whoami?user_id=@carol:example.org").errcode == "M_FORBIDDEN"
    assert (
        ask(server, "GET", "/account/whoami?user_id=@carol:example.org", token=OTHER).status == 200
    )
    assert (
        ask(server, "GET", f"/account/whoami?user_id={GHOST}", token=OTHER).errcode == "M_FORBIDDEN"
    )
    for odd in (
        "",
        "x",
        "%00",
        "@_irc_x%00:example.org",
        "@_irc_x:elsewhere.org",
        "%ED%A0%80",
        "@" + "y" * 300,
    ):
        assert ask(server, "GET", f"/account/whoami?user_id={odd}").status in (400, 403)


def test_an_application_service_sends_events_as_its_users(server: TestServer) -> None:
    register(server, inhibit_login=True)
    room = ask(server, "POST", f"/createRoom?user_id={GHOST}", {"preset": "public_chat"}).json[
        "room_id"
    ]
    path = f"/rooms/{room}/send/m.room.message/t1?user_id={GHOST}&ts=1234"
    event_id = ask(server, "PUT", path, {"msgtype": "m.text", "body": "hi"}).json["event_id"]
    event = ask(server, "GET", f"/rooms/{room}/event/{event_id}?user_id={GHOST}").json
    assert (event["sender"], event["origin_server_ts"]) == (GHOST, 1234)


def test_accounts_are_created_without_a_password(server: TestServer) -> None:
    session = register(server, device_id="D").json
    assert (session["user_id"], session["device_id"]) == (GHOST, "D")
    assert User(server, session).get(f"{V3}/account/whoami").status == 200
    assert register(server).errcode == "M_USER_IN_USE"
    assert register(server, "bob").errcode == "M_EXCLUSIVE"
    # the name belongs to another service
    assert register(server, "_irc_x", OTHER).errcode == "M_EXCLUSIVE"
    assert register(server, "_irc_bot", OTHER).errcode == "M_EXCLUSIVE"
    assert ask(server, "POST", "/register", {"type": TYPE}).errcode == "M_MISSING_PARAM"
    body = {"type": TYPE, "username": "_irc_x"}
    assert server.post(f"{V3}/register", body).errcode == "M_MISSING_TOKEN"
    unknown = ask(server, "POST", "/register", body, "made up")
    assert (unknown.status, unknown.errcode) == (401, "M_UNKNOWN_TOKEN")


def test_an_application_service_logs_its_users_in(server: TestServer) -> None:
    assert {"type": TYPE} in server.get(f"{V3}/login").json["flows"]
    register(server, inhibit_login=True)

    def login(user: str, token: str = TOKEN) -> Answer:
        body = {"type": TYPE, "identifier": {"type": "m.id.user", "user": user}, "device_id": "D"}
        return ask(server, "POST", "/login", body, token)

    session = login("_irc_bob").json
    assert (session["user_id"], session["device_id"]) == (GHOST, "D")
    assert login(GHOST).status == 200
    assert login("_irc_nobody").errcode == "M_FORBIDDEN"
    assert login("carol").errcode == "M_EXCLUSIVE"
    assert login("@_irc_bob:elsewhere.org").errcode == "M_EXCLUSIVE"
    wrong = login("_irc_bob", "made up")
    assert (wrong.status, wrong.errcode) == (403, "M_FORBIDDEN")
    assert login("_irc_bob", server.register("alice").token).errcode == "M_FORBIDDEN"
    by_number = {
        "type": TYPE,
        "identifier": {"type": "m.id.phone", "country": "UZ", "phone": "901234567"},
    }
    assert (
        ask(server, "POST", "/login", by_number, OTHER).errcode == "M_EXCLUSIVE"
    )  # there is no user with these digits as name
    assert (
        server.post(f"{V3}/login", {"type": TYPE, "user": "_irc_bob"}).errcode == "M_MISSING_TOKEN"
    )
    server.run(server.app.user_data.accounts.do_set_flags(GHOST, locked=True))  # type: ignore[arg-type]
    assert login("_irc_bob").errcode == "M_USER_LOCKED"


@pytest.mark.parametrize("taken", [True, False])
def test_the_token_may_be_in_the_query_string(
    tmp_path: Path, sqlite_database: Database, taken: bool
) -> None:
    """If the server accepts such tokens at all. spec: client-server-api#using-access-tokens"""
    (tmp_path / "irc.yaml").write_text(IRC, encoding="utf-8")
    config = f"app_service_config_files: [irc.yaml]\naccept_token_in_query: {str(taken).lower()}\n"
    server = TestServer(tmp_path, sqlite_database, config)
    body = {"type": TYPE, "username": "_irc_bob", "inhibit_login": True}
    made = server.post(f"{V3}/register?access_token={quote(TOKEN)}", body)
    assert made.status == (200 if taken else 401)
    login = {"type": TYPE, "identifier": {"type": "m.id.user", "user": GHOST}}
    assert server.post(f"{V3}/login?access_token={quote(TOKEN)}", login).status == (
        200 if taken else 401
    )
    if taken:
        assert server.post(f"{V3}/login?access_token=x", login).errcode == "M_FORBIDDEN"
        both = server.client.request(
            "POST", f"{V3}/login?access_token={quote(TOKEN)}", json=login, token="x"
        )
        assert both.errcode == "M_FORBIDDEN"  # the header counts


def test_users_cannot_register_names_of_an_application_service(server: TestServer) -> None:
    alice = server.register("alice")
    body = {"username": "_irc_eve", "password": "x", "auth": {"type": "m.login.dummy"}}
    assert server.post(f"{V3}/register", body).status == 400
    room = alice.post(f"{V3}/createRoom", {}).json["room_id"]
    alias = "%23_irc_tea:example.org"
    assert alice.put(f"{V3}/directory/room/{alias}", {"room_id": room}).errcode == "M_EXCLUSIVE"
    assert alice.post(f"{V3}/createRoom", {"room_alias_name": "_irc_tea"}).errcode == "M_EXCLUSIVE"
    own = ask(server, "POST", "/createRoom", {"room_alias_name": "_irc_tea"})
    assert own.status == 200
    assert alice.delete(f"{V3}/directory/room/{alias}").errcode == "M_EXCLUSIVE"
    assert ask(server, "POST", "/createRoom", {"room_alias_name": "tea"}).errcode == "M_EXCLUSIVE"
    register(server, inhibit_login=True)
    assert ask(server, "DELETE", f"/directory/room/{alias}?user_id={GHOST}").status == 200


async def test_administrators_cannot_create_names_of_an_application_service(
    server: TestServer,
) -> None:
    for name in ("_irc_eve", "_irc_bot"):
        with pytest.raises(Exclusive):
            await server.app.login.registration.do_register_privileged(
                RegistrationRequest(username=name, password="wonderland")
            )


def test_identity_providers_cannot_create_names_of_an_application_service(
    tmp_path: Path, sqlite_database: Database
) -> None:
    (tmp_path / "irc.yaml").write_text(IRC, encoding="utf-8")
    further = (
        OPENID + TEMPLATES + "  allow_existing_users: true\napp_service_config_files: [irc.yaml]\n"
    )
    provider = OpenIDProvider()
    server = TestServer(tmp_path, sqlite_database, further, web=provider)
    register(server, inhibit_login=True)
    browser = Browser(server)
    browser.open(f"{V3}/login/sso/redirect/oidc-town?redirectUrl=https://client.example/done")
    browser.open(
        provider.sign_in(browser.location, sub="1", preferred_username="_irc_bob", name="Bob")
    )
    assert browser.status == 403
    assert "belongs to somebody else" in browser.words


def test_users_of_an_application_service_may_have_any_display_name(
    tmp_path: Path, sqlite_database: Database
) -> None:
    (tmp_path / "irc.yaml").write_text(IRC, encoding="utf-8")
    further = 'app_service_config_files: [irc.yaml]\ndisplay_names: {forbidden: ["support.*"]}\n'
    server = TestServer(tmp_path, sqlite_database, further)
    register(server, inhibit_login=True)
    name = {"displayname": "Support (IRC)"}
    assert (
        server.register("dave").put(f"{V3}/profile/@dave:example.org/displayname", name).status
        == 403
    )
    assert ask(server, "PUT", f"/profile/{GHOST}/displayname?user_id={GHOST}", name).status == 200


def test_an_application_service_creates_and_removes_devices(server: TestServer) -> None:
    register(server, inhibit_login=True)
    path = f"/devices/BRIDGE?user_id={GHOST}"
    assert ask(server, "PUT", path, {"display_name": "Bridge"}).status == 201
    assert ask(server, "PUT", path, {"display_name": "The bridge"}).status == 200
    found = ask(server, "GET", path).json
    assert (found["device_id"], found["display_name"]) == ("BRIDGE", "The bridge")
    whoami = ask(server, "GET", f"/account/whoami?user_id={GHOST}&device_id=BRIDGE").json
    assert whoami["device_id"] == "BRIDGE"
    unknown = ask(server, "GET", f"/account/whoami?user_id={GHOST}&device_id=OTHER")
    assert (unknown.status, unknown.errcode) == (400, "M_UNKNOWN_DEVICE")
    assert ask(server, "DELETE", path, {}).status == 200
    assert ask(server, "GET", path).status == 404
    alice = server.register("alice")
    assert alice.put(f"{V3}/devices/NEW", {"display_name": "x"}).status == 404


def test_an_application_service_cannot_act_for_locked_and_deactivated_accounts(
    server: TestServer,
) -> None:
    register(server, inhibit_login=True)
    path = f"/account/whoami?user_id={GHOST}"
    server.run(server.app.user_data.accounts.do_set_flags(GHOST, locked=True))  # type: ignore[arg-type]
    assert ask(server, "GET", path).errcode == "M_USER_LOCKED"
    server.run(server.app.user_data.deactivation.do_deactivate(GHOST, erase=False))  # type: ignore[arg-type]
    assert ask(server, "GET", path).errcode == "M_FORBIDDEN"


def test_without_application_services_their_requests_are_refused(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    assert {"type": TYPE} not in server.get(f"{V3}/login").json["flows"]
    assert register(server).errcode == "M_UNKNOWN_TOKEN"
    assert ask(server, "GET", "/account/whoami").errcode == "M_UNKNOWN_TOKEN"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "key: value"),
        ("id: a", "missing required field"),
        (IRC.replace(TOKEN, "short"), "at least 16 characters"),
        (IRC.replace("@_irc_.*", "@_irc_("), "not a valid regular expression"),
        (IRC.replace("_irc_bot", "Irc Bot"), "sender_localpart cannot be a user name"),
        (IRC.replace("exclusive: true, ", ""), "exclusive"),
        (XMPP.replace("id: xmpp", "id: irc"), "the same id"),
        (XMPP.replace(OTHER, TOKEN), "the same as_token"),
    ],
)
def test_invalid_registration_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "irc.yaml").write_text(IRC, encoding="utf-8")
    (tmp_path / "other.yaml").write_text(text, encoding="utf-8")
    path = tmp_path / "homeserver.yaml"
    path.write_text(
        "server_name: example.org\napp_service_config_files: [irc.yaml, other.yaml]\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=said):
        load_config([path], {})


def test_limitations_and_missing_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "irc.yaml").write_text(IRC, encoding="utf-8")
    path = tmp_path / "homeserver.yaml"
    path.write_text(
        "server_name: example.org\napp_service_config_files: [irc.yaml]\n", encoding="utf-8"
    )
    [notice] = load_config([path], {}).notices
    assert "receive no transactions yet" in notice
    path.write_text(
        "server_name: example.org\napp_service_config_files: [none.yaml]\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config([path], {})
