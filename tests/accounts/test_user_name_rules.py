"""Reserved user names, and rules for display names."""

from pathlib import Path

import pytest

from federation.protocol.ids import UserID
from homeserver.config.load import ConfigError, load_config
from homeserver.services.accounts.registration import RegistrationRequest
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.oauth import CONFIG as OAUTH
from tests.helpers.server import TestServer

RESERVED = f"{OAUTH}reserved_usernames: ['admin*', support, '/dean[0-9]+/']\n"
NAMES = f"{OAUTH}display_names: {{maximum_length: 10, pattern: '[^@:]+', forbidden: [admin]}}\n"
REGISTER = "/_matrix/client/v3/register"
NAME = "/_matrix/client/v3/profile/@alice:example.org/displayname"


@pytest.mark.parametrize("name", ["admin", "Administrator", "support", "dean7"])
def test_reserved_names(tmp_path: Path, sqlite_database: Database, name: str) -> None:
    server = TestServer(tmp_path, sqlite_database, RESERVED)
    assert server.get(f"{REGISTER}/available?username={name}").errcode == "M_EXCLUSIVE"
    refused = server.post(
        REGISTER, {"username": name, "password": "x", "auth": {"type": "m.login.dummy"}}
    )
    assert (refused.status, refused.errcode) == (400, "M_EXCLUSIVE")
    browser = Browser(server)
    browser.open("/_mahalla/register")
    browser.send(
        "/_mahalla/register", name=name, password="wonderland", password_again="wonderland"
    )
    assert browser.status == 400
    assert "This name is taken." in browser.words
    requested = RegistrationRequest(username=name, password="wonderland", inhibit_login=True)
    made = server.run(server.app.login.registration.do_register_privileged(requested))
    assert made.user_id == UserID(f"@{name.lower()}:example.org")


def test_names_that_only_resemble_reserved_ones(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, RESERVED)
    for name in ("supporter", "dean", "the_admin"):
        assert server.get(f"{REGISTER}/available?username={name}").json == {"available": True}
        server.register(name)


def test_display_name_rules(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, NAMES)
    alice = server.register("alice")
    assert alice.put(NAME, {"displayname": "Alisa"}).status == 200
    for wrong in ("a" * 11, "Alice @", "The ADMIN", "ａｄｍｉｎ"):
        refused = alice.put(NAME, {"displayname": wrong})
        assert (refused.status, refused.errcode) == (403, "M_FORBIDDEN"), wrong
    assert alice.put(NAME, {"displayname": 5}).errcode == "M_BAD_JSON"
    assert alice.put(NAME, {"displayname": ""}).status == 200  # an empty name is no name
    assert alice.put(NAME, {"displayname": "Alisa"}).status == 200
    # the rules apply in a single room too
    room = alice.post("/_matrix/client/v3/createRoom").json["room_id"]
    member = f"/_matrix/client/v3/rooms/{room}/state/m.room.member/{alice.user_id}"
    refused = alice.put(member, {"membership": "join", "displayname": "The ADMIN"})
    assert (refused.status, refused.errcode) == (403, "M_FORBIDDEN")
    assert alice.put(member, {"membership": "join", "displayname": "Lisa"}).status == 200
    server.run(server.app.profiles.profiles.do_set_display_name(alice.user_id, "Admin by decree"))
    assert alice.put(member, {"membership": "join", "displayname": "Admin by decree"}).status == 200
    assert alice.put(NAME, {"displayname": "Alisa"}).status == 200
    browser = Browser(server)
    browser.open("/_mahalla/account")
    browser.send("/_mahalla/sign_in", name="alice", password="wonderland")
    form = next(form for form in browser.page.forms if form.fields.get("do") == "name")
    browser.post(form.action, {**form.fields, "name": "Admin"})
    assert browser.status == 403
    assert "This name is not allowed" in browser.words
    assert alice.get(NAME).json == {"displayname": "Alisa"}
    browser.post(form.action, {**form.fields, "name": "Alice"})
    assert alice.get(NAME).json == {"displayname": "Alice"}
    server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, is_admin=True))
    assert alice.put(NAME, {"displayname": "The admin"}).status == 200


@pytest.mark.parametrize(
    "config",
    [
        "reserved_usernames: ['/(/']",
        "display_names: {pattern: '('}",
        "display_names: {forbidden: ['[']}",
    ],
)
def test_invalid_rules_are_refused(tmp_path: Path, config: str) -> None:
    path = tmp_path / "homeserver.yaml"
    path.write_text(f"server_name: example.org\n{config}\n")
    with pytest.raises(ConfigError, match="must be"):
        load_config([path], {})
