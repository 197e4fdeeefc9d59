"""Fallback pages for stages of user-interactive authentication, and confirmations that hold for
more than one operation."""

import re
from pathlib import Path
from typing import Any

import pytest

from federation.protocol.ids import UserID
from storage.engine.database import Database
from storage.login.uia import ConfirmationStore
from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.logins import log_in, password_auth
from tests.helpers.oauth import CONFIG
from tests.helpers.server import TestServer, User
from tests.oauth.conftest import browser, server

__all__ = ["browser", "server"]

REGISTER = "/_matrix/client/v3/register"
DEVICES = "/_matrix/client/v3/delete_devices"
MAIL = f"""{CONFIG}
email: {{smtp_host: mail.example.org, notif_from: "server@example.org"}}
rc_3pid_validation: *unlimited
"""


def fallback(stage: str, session: str) -> str:
    return f"/_matrix/client/v3/auth/{stage}/fallback/web?session={session}"


def another(server: TestServer, name: str = "alice") -> User:
    """Sign the same user in on another device."""
    return User(server, log_in(server, name).json)


def end(user: User, other: User, auth: object = None) -> Answer:
    """Delete one device from another."""
    body = {"devices": [other.device_id]}
    return user.post(DEVICES, body if auth is None else {**body, "auth": auth})


def test_the_password_stage_is_completed_on_a_page(server: TestServer, browser: Browser) -> None:
    alice, other = another(server), another(server)
    session = end(alice, other).json["session"]
    browser.open(fallback("m.login.password", session))
    assert "sign out devices" in browser.words
    assert "@alice:example.org" in browser.words
    browser.send(password="wrong")
    assert (browser.status, "The password is wrong." in browser.words) == (403, True)
    assert end(alice, other, {"session": session}).status == 401
    browser.send(password="wonderland")
    assert "Thank you, the operation is confirmed" in browser.words
    assert "onAuthDone" in browser.text
    policy = browser.answer.headers["content-security-policy"]
    assert "script-src 'sha256-" in policy
    assert end(alice, other, {"session": session}).status == 200
    browser.open(fallback("m.login.password", session))
    assert browser.status == 400  # the UIA session was used


def test_forms_of_other_sites_are_refused(server: TestServer, browser: Browser) -> None:
    alice, other = another(server), another(server)
    session = end(alice, other).json["session"]
    path = fallback("m.login.password", session).partition("?")[0]
    assert browser.post(path, {"session": session, "password": "wonderland"}).status == 403
    assert end(alice, other, {"session": session}).status == 401


@pytest.mark.parametrize("session", ["", "unknown", "%00", "x" * 3000])
@pytest.mark.parametrize(
    "stage", ["m.login.password", "m.login.dummy", "m.login.email.identity", "m.login.made_up"]
)
def test_unknown_sessions_and_stages_are_refused(
    browser: Browser, stage: str, session: str
) -> None:
    assert browser.open(fallback(stage, session)).status == 400


def test_the_registration_token_stage_is_completed_on_a_page(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, CONFIG + "registration_requires_token: true\n")
    token = server.run(server.app.login.registration.do_create_token(uses_allowed=1, seconds=None))
    body = {"username": "bob", "password": "builder"}
    asked = server.post(REGISTER, body).json
    assert asked["flows"] == [{"stages": ["m.login.registration_token"]}]
    browser = Browser(server)
    browser.open(fallback("m.login.registration_token", asked["session"]))
    assert "create an account" in browser.words
    browser.send(token="wrong")
    assert (browser.status, "This registration token is not valid" in browser.words) == (403, True)
    browser.send(token=token)
    assert "Thank you, the operation is confirmed" in browser.words
    made = server.post(REGISTER, {**body, "auth": {"session": asked["session"]}})
    assert (made.status, made.json["user_id"]) == (200, "@bob:example.org")
    second = server.post(REGISTER, {**body, "username": "carol"}).json
    browser.open(fallback("m.login.registration_token", second["session"]))
    browser.send(token=token)
    assert browser.status == 403  # its only use is spent


def test_a_registration_token_confirms_only_a_registration(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, CONFIG)
    alice = server.register("alice")
    token = server.run(server.app.login.registration.do_create_token(uses_allowed=1, seconds=None))
    browser = Browser(server)
    browser.open(
        fallback("m.login.registration_token", end(alice, another(server)).json["session"])
    )
    browser.send(token=token)
    assert browser.status == 403


def test_a_password_is_required_to_confirm(server: TestServer, browser: Browser) -> None:
    body = {"username": "bob", "password": "builder"}
    session = server.post(REGISTER, body).json["session"]
    browser.open(fallback("m.login.dummy", session))
    assert server.post(REGISTER, {**body, "auth": {"session": session}}).status == 401
    browser.send()
    assert server.post(REGISTER, {**body, "auth": {"session": session}}).status == 200


def test_the_email_stage_is_completed_on_a_page(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, MAIL + "registrations_require_3pid: [email]\n")
    body = {"username": "bob", "password": "builder"}
    session = server.post(REGISTER, body).json["session"]
    browser = Browser(server)
    browser.open(fallback("m.login.email.identity", session))
    browser.send(address="no address")
    assert browser.status == 400
    browser.send(address="bob@example.org")
    assert "We sent an e-mail" in browser.words
    browser.send()
    assert "The address is not confirmed yet" in browser.words
    text = server.relay.emails[-1][1].get_body(("plain",))
    assert text is not None
    [link] = re.findall(r"https://matrix\.example\.org(/\S+)", str(text.get_content()))
    reader = Browser(server)
    reader.open(link)
    reader.send("/_mahalla/confirm_email")
    browser.send()
    assert "Thank you, the operation is confirmed" in browser.words
    made = User(server, server.post(REGISTER, {**body, "auth": {"session": session}}).json)
    threepids = made.get("/_matrix/client/v3/account/3pid").json["threepids"]
    assert [each["address"] for each in threepids] == ["bob@example.org"]


@pytest.fixture
def lenient(tmp_path: Path, sqlite_database: Database) -> TestServer:
    server = TestServer(tmp_path, sqlite_database, CONFIG + "ui_auth: {session_timeout: 10m}\n")
    server.register("alice")
    return server


def test_a_confirmation_holds_for_a_time_on_its_device(lenient: TestServer) -> None:
    alice, other = another(lenient), another(lenient)
    first, second, third = (another(lenient) for _ in range(3))
    assert end(alice, first).status == 401
    assert end(alice, first, password_auth("alice")).status == 200
    assert end(alice, second).status == 200
    assert end(other, third).status == 401
    lenient.clock.advance(599)
    assert end(alice, third).status == 200
    lenient.clock.advance(1)
    assert end(alice, other).status == 401


def test_dangerous_operations_are_confirmed_each_time(lenient: TestServer) -> None:
    alice = another(lenient)
    assert end(alice, another(lenient), password_auth("alice")).status == 200
    assert alice.post("/_matrix/client/v3/account/password", {"new_password": "new"}).status == 401
    assert alice.post("/_matrix/client/v3/account/deactivate").status == 401


def test_a_password_change_ends_a_confirmation_from_a_page(
    server: TestServer, browser: Browser
) -> None:
    alice, other = another(server), another(server)
    session = end(alice, other).json["session"]
    browser.open(fallback("m.login.password", session))
    browser.send(password="wonderland")
    assert "Thank you, the operation is confirmed" in browser.words
    server.run(
        server.app.user_data.accounts.do_set_password(UserID(alice.user_id), "another password")
    )
    assert end(alice, other, {"session": session}).status == 401


def test_a_password_change_ends_a_confirmation(lenient: TestServer) -> None:
    alice, first, second = (another(lenient) for _ in range(3))
    assert end(alice, first, password_auth("alice")).status == 200
    accounts = lenient.app.user_data.accounts
    lenient.run(
        accounts.do_set_password(UserID(alice.user_id), "another password")
    )  # all sessions continue
    assert end(alice, second).status == 401


def test_a_confirmation_during_a_password_change_is_refused(
    lenient: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, first, second = (another(lenient) for _ in range(3))
    set_confirmed = ConfirmationStore.set_confirmed
    accounts = lenient.app.user_data.accounts

    async def too_late(self: ConfirmationStore, *args: Any) -> None:
        monkeypatch.undo()
        await accounts.do_set_password(UserID(alice.user_id), "another password")
        await set_confirmed(self, *args)

    monkeypatch.setattr(ConfirmationStore, "set_confirmed", too_late)
    assert end(alice, first, password_auth("alice")).status == 403
    assert ConfirmationStore.set_confirmed is set_confirmed
    assert end(alice, second).status == 401


def test_a_new_session_on_the_device_has_no_confirmation(lenient: TestServer) -> None:
    alice = another(lenient)
    assert end(alice, another(lenient), password_auth("alice")).status == 200
    body = {**password_auth("alice"), "device_id": alice.device_id}
    new_session = User(lenient, lenient.post("/_matrix/client/v3/login", body).json)
    assert end(new_session, another(lenient)).status == 401


def test_by_default_each_operation_is_confirmed(server: TestServer) -> None:
    alice = another(server)
    assert end(alice, another(server), password_auth("alice")).status == 200
    assert end(alice, another(server)).status == 401
