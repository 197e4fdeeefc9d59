"""The default password policy: at least eight characters, wherever a password is set."""

from pathlib import Path

import pytest

from federation.protocol.ids import UserID
from homeserver.services.accounts.registration import RegistrationRequest
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer

V3 = "/_matrix/client/v3"
DEFAULT = "public_baseurl: https://matrix.example.org/\npassword_config: {enabled: true}\n"
"""The second option replaces the one that tests have by default."""


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, DEFAULT)


def test_the_api_refuses_a_short_password(server: TestServer) -> None:
    body = {"username": "alice", "password": "queen17", "auth": {"type": "m.login.dummy"}}
    refused = server.post(f"{V3}/register", body)
    assert (refused.status, refused.errcode) == (400, "M_WEAK_PASSWORD")
    assert "at least 8 characters" in refused.json["error"]
    alice = server.register("alice", "queen178")
    change = {"new_password": "x", "auth": password_auth(alice.user_id, "queen178")}
    assert alice.post(f"{V3}/account/password", change).errcode == "M_WEAK_PASSWORD"
    change["new_password"] = "x" * 8
    assert alice.post(f"{V3}/account/password", change).status == 200


def test_pages_show_and_enforce_the_minimum_length(server: TestServer) -> None:
    browser = Browser(server)
    browser.open("/_mahalla/register")
    assert "At least 8 characters." in browser.words
    assert 'minlength="8"' in browser.text
    browser.send(name="alice", password="queen17", password_again="queen17")
    assert (browser.status, "The password must have at least 8 characters." in browser.words) == (
        400,
        True,
    )
    browser.send(name="alice", password="queen178", password_again="queen178")
    browser.open("/_mahalla/account")
    form = next(form for form in browser.page.forms if form.fields.get("do") == "password")
    new = {"old_password": "queen178", "password": "short", "password_again": "short"}
    browser.post(form.action, {**form.fields, **new})
    assert "The password must have at least 8 characters." in browser.words


def test_the_admin_api_refuses_a_short_password(server: TestServer) -> None:
    boss = server.register("boss")
    database = server.app.database
    server.run(
        database.write("make_admin", AccountStore(database).set_flags, boss.user_id, is_admin=True)
    )
    path = "/_synapse/admin/v2/users/@carol:example.org"
    assert boss.put(path, {"password": "tea"}).errcode == "M_WEAK_PASSWORD"
    assert boss.put(path, {"password": "tea and cake"}).status == 201


def test_an_existing_short_password_still_signs_in(server: TestServer) -> None:
    requested = RegistrationRequest(username="alice", password="tea", inhibit_login=True)
    registered = server.run(server.app.login.registration.do_register_privileged(requested))
    assert registered.user_id == UserID("@alice:example.org")
    login = password_auth("alice", "tea")
    assert server.post(f"{V3}/login", login).status == 200


def test_the_operator_can_disable_the_policy(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "password_config: {policy: {enabled: false}}\n")
    assert server.register("alice", "x").user_id == "@alice:example.org"
