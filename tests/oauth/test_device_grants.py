"""The device authorization grant: a user types the code of a device without a browser."""

from pathlib import Path
from typing import Any

from federation.protocol.ids import UserID
from storage.engine.database import Database
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.oauth import CONFIG, METADATA, Program
from tests.helpers.server import TestServer

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
LINK = "/_mahalla/link"


def ask(program: Program) -> dict[str, Any]:
    answer = program.form(
        "device_authorization_endpoint", client_id=program.client_id, scope=program.scope
    )
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


def poll(program: Program, asked: dict[str, Any], **changed: str) -> Answer:
    return program.token(**{"grant_type": GRANT, "device_code": asked["device_code"], **changed})


def error_of(answer: Answer) -> str:
    assert answer.status in (400, 401)
    return str(answer.json["error"])


def sign_in(browser: Browser) -> None:
    browser.send("/_mahalla/sign_in", name="alice", password="wonderland")


def test_a_user_allows_a_device(program: Program, browser: Browser) -> None:
    asked = ask(program)
    assert asked["verification_uri"] == "https://matrix.example.org/_mahalla/link"
    assert (
        asked["verification_uri_complete"]
        == f"{asked['verification_uri']}?user_code={asked['user_code']}"
    )
    assert (asked["expires_in"], asked["interval"]) == (1200, 5)
    assert error_of(poll(program, asked)) == "authorization_pending"
    browser.open(f"{LINK}?user_code={asked['user_code']}")
    sign_in(browser)
    assert "Sign in Element X on another device?" in browser.words
    assert asked["user_code"] in browser.words
    browser.send(LINK, button="allow")
    assert "The device is signed in" in browser.words
    program.server.clock.advance(5)
    answer = poll(program, asked)
    alice = program.take(answer)
    assert audit_records(program.server)[-2:] == [
        ("app_allowed", f"Element X ({program.client_id})"),
        ("session_began", None),
    ]
    assert (alice.user_id, alice.device_id) == ("@alice:example.org", program.device_id)
    assert program.refresh().status == 200
    assert error_of(poll(program, asked)) == "invalid_grant"  # the device code is used once


def test_the_user_types_the_code(program: Program, browser: Browser) -> None:
    asked = ask(program)
    browser.open(LINK)
    sign_in(browser)
    browser.send(LINK, user_code="BCDF-GHJK")
    assert browser.status == 404
    assert "This code is wrong or has expired" in browser.words
    browser.send(LINK, user_code=f" {asked['user_code'].lower().replace('-', ' ')} ")
    browser.send(LINK, button="deny")
    assert "The device was not signed in" in browser.words
    assert error_of(poll(program, asked)) == "access_denied"
    assert error_of(poll(program, asked)) == "invalid_grant"


def test_opening_the_link_allows_nothing(program: Program, browser: Browser) -> None:
    asked = ask(program)
    browser.open(LINK)
    sign_in(browser)
    browser.open(f"{LINK}?user_code={asked['user_code']}&decision=allow")
    assert error_of(poll(program, asked)) == "authorization_pending"
    fields = {"user_code": asked["user_code"], "decision": "allow"}
    assert browser.post(LINK, fields).status == 403
    program.server.clock.advance(10)
    assert error_of(poll(program, asked)) == "authorization_pending"


def test_a_client_that_polls_too_often_slows_down(program: Program) -> None:
    asked = ask(program)
    assert error_of(poll(program, asked)) == "authorization_pending"
    program.server.clock.advance(3)
    assert error_of(poll(program, asked)) == "slow_down"
    program.server.clock.advance(6)
    assert error_of(poll(program, asked)) == "slow_down"
    program.server.clock.advance(15)
    assert error_of(poll(program, asked)) == "authorization_pending"


def test_a_device_code_expires(program: Program, browser: Browser) -> None:
    asked = ask(program)
    browser.open(f"{LINK}?user_code={asked['user_code']}")
    sign_in(browser)
    program.server.clock.advance(1200)
    assert error_of(poll(program, asked)) == "expired_token"
    browser.send(LINK, button="allow")
    assert browser.status == 404
    program.server.clock.advance(3601)
    assert program.server.run(program.server.app.oauth.device_grants.do_sweep(10)) == 1
    assert error_of(poll(program, asked)) == "invalid_grant"


def test_a_device_code_is_for_one_client(program: Program) -> None:
    other = Program(program.server, {**METADATA, "client_name": "Other"})
    asked = ask(program)
    assert error_of(poll(program, asked, client_id=other.client_id)) == "invalid_grant"
    assert error_of(poll(program, {"device_code": "unknown"})) == "invalid_grant"
    assert error_of(poll(program, asked)) == "authorization_pending"


def test_invalid_device_requests_are_refused(program: Program) -> None:
    browserless = {**METADATA, "grant_types": ["authorization_code"]}
    other = Program(program.server, browserless)
    endpoint = "device_authorization_endpoint"
    assert (
        error_of(other.form(endpoint, client_id=other.client_id, scope=program.scope))
        == "unauthorized_client"
    )
    assert (
        error_of(other.form(endpoint, client_id="nobody", scope=program.scope)) == "invalid_client"
    )
    assert (
        error_of(program.form(endpoint, client_id=program.client_id, scope="openid"))
        == "invalid_scope"
    )
    assert error_of(program.form(endpoint, client_id=program.client_id)) == "invalid_request"


def test_guessing_user_codes_is_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    limits = CONFIG.replace(
        "rc_oauth: {}", "rc_oauth: {user_code: {per_second: 0.01, burst_count: 3}}"
    )
    server = TestServer(tmp_path, sqlite_database, limits)
    server.register("alice")
    program, browser = Program(server), Browser(server)
    asked = ask(program)
    browser.open(LINK)
    sign_in(browser)
    for _ in range(3):
        browser.send(LINK, user_code="BCDF-GHJK")
        assert browser.status == 404
    browser.send(LINK, user_code=asked["user_code"])
    assert browser.status == 429
    assert "Too many attempts" in browser.words


def test_locking_the_account_ends_the_decision(program: Program, browser: Browser) -> None:
    asked = ask(program)
    browser.open(f"{LINK}?user_code={asked['user_code']}")
    sign_in(browser)
    browser.send(LINK, button="allow")
    accounts = program.server.app.user_data.accounts
    for locked in (True, False):
        program.server.run(accounts.do_set_flags(UserID("@alice:example.org"), locked=locked))
    assert error_of(poll(program, asked)) == "invalid_grant"
