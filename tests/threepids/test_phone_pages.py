"""Pages with phone numbers: the account page, the registration, the password reset."""

from pathlib import Path

import msgspec
import pytest

from federation.protocol.ids import UserID
from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.threepids.threepids import ThreepidRow, ThreepidStore
from tests.helpers.browser import Browser, press
from tests.helpers.server import TestServer
from tests.helpers.sms import SMSGateway

ACCOUNT = "/_mahalla/account"
SIGN_IN = "/_mahalla/sign_in"
CONFIG = """
public_baseurl: https://matrix.example.org/
sms_gateway: {url: https://sms.example.org/send}
rc_text_messages: {per_number: *unlimited, per_address: *unlimited}
"""
NUMBER = "+998 90 123-45-67"


@pytest.fixture
def gateway() -> SMSGateway:
    return SMSGateway()


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database, gateway: SMSGateway) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG, web=gateway)


def test_an_added_number_resets_the_password(server: TestServer, gateway: SMSGateway) -> None:
    server.register("alice")
    browser = Browser(server)
    browser.open(ACCOUNT)
    browser.send(SIGN_IN, name="alice", password="wonderland")
    press(browser, "send_code", number="90 123-45-67")
    assert "This is not a mobile number" in browser.words
    press(browser, "send_code", number=NUMBER)
    assert "We sent a code." in browser.words
    assert not any("998901234567" in path for path in browser.visited)
    press(browser, "take_number", code=gateway.code, old_password="wrong")
    assert "The password is wrong." in browser.words
    press(browser, "take_number", code="no", old_password="wonderland")
    assert "The code is wrong" in browser.words
    press(browser, "take_number", code=gateway.code, old_password="wonderland")
    assert "The number was added." in browser.words
    assert "+998901234567" in browser.words
    assert "A phone number was added" in browser.words

    forgetful = Browser(server)
    forgetful.open(SIGN_IN)
    forgetful.follow("Forgot your password?")
    forgetful.send(number=NUMBER)
    forgetful.send(code=gateway.code, password="new", password_again="other")
    assert "The two passwords differ" in forgetful.words
    forgetful.send(code="no", password="new", password_again="new")
    assert "The code is wrong" in forgetful.words
    forgetful.send(code=gateway.code, password="new", password_again="new")
    assert "Your password was changed" in forgetful.words
    forgetful.follow("Sign in")
    assert "Or your phone number" in forgetful.words
    forgetful.send(SIGN_IN, name=NUMBER, password="new")
    assert forgetful.path == ACCOUNT
    press(forgetful, "remove_number")
    assert "The number was removed." in forgetful.words
    assert "+998901234567" not in forgetful.words


def test_pages_do_not_reveal_whether_a_number_is_known(
    server: TestServer, gateway: SMSGateway
) -> None:
    """The password reset shows the same pages for every number."""
    alice, now = server.register("alice"), int(server.clock.seconds() * 1000)
    row = ThreepidRow("msisdn", "998901234567", alice.user_id, now, now)
    server.run(
        server.app.database.write("number", ThreepidStore(server.app.database).add_threepid, row)
    )
    read = []
    for number in (NUMBER, "+998 91 234-56-78"):
        browser = Browser(server)
        browser.open("/_mahalla/reset_password")
        pages = []
        browser.send(number=number)
        for _ in range(5):
            pages.append(
                (
                    browser.status,
                    browser.words.replace("998901234567", "N").replace("998912345678", "N"),
                )
            )
            browser.send(code="no", password="looking-glass", password_again="looking-glass")
        read.append(pages)
    assert read[0] == read[1]
    assert "If an account has this number, we sent a code to" in read[0][0][1]
    assert "Request a new one." in read[0][-1][1]
    assert {msgspec.json.decode(body)["to"] for _, _, body in gateway.requests} == {"+998901234567"}


def test_registration_with_a_known_number_is_reported_only_by_message(
    tmp_path: Path, sqlite_database: Database, gateway: SMSGateway
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + "registrations_require_3pid: [msisdn]\n", web=gateway
    )
    store = AccountStore(server.app.database)
    alice = UserID("@alice:example.org")
    server.run(server.app.database.write("account", store.add_account, AccountRow(alice, None, 0)))
    row = ThreepidRow("msisdn", "998901234567", alice, 0, 0)
    server.run(
        server.app.database.write("number", ThreepidStore(server.app.database).add_threepid, row)
    )
    browser = Browser(server)
    browser.open("/_mahalla/register")
    browser.send(number=NUMBER)
    assert "We sent a code to +998901234567" in browser.words
    assert "already belongs to an account on example.org" in gateway.last["text"]


def test_a_failing_gateway_does_not_reveal_known_numbers(
    server: TestServer, gateway: SMSGateway
) -> None:
    alice, now = server.register("alice"), int(server.clock.seconds() * 1000)
    row = ThreepidRow("msisdn", "998901234567", alice.user_id, now, now)
    server.run(
        server.app.database.write("number", ThreepidStore(server.app.database).add_threepid, row)
    )
    gateway.is_away = True
    statuses = []
    for number in (NUMBER, "+998 91 234-56-78"):
        browser = Browser(server)
        browser.open("/_mahalla/reset_password")
        browser.send(number=number)
        statuses.append(browser.status)
    assert statuses == [200, 200]


def test_too_many_wrong_codes_need_a_new_code(server: TestServer, gateway: SMSGateway) -> None:
    server.register("alice")
    browser = Browser(server)
    browser.open(ACCOUNT)
    browser.send(SIGN_IN, name="alice", password="wonderland")
    press(browser, "send_code", number=NUMBER)
    for _ in range(4):
        press(browser, "take_number", code="no", old_password="wonderland")
    assert "Request a new one." in browser.words
    browser.open(ACCOUNT)
    press(browser, "send_code", number=NUMBER)
    press(browser, "take_number", code=gateway.code, old_password="wonderland")
    assert "The number was added." in browser.words


def test_a_code_survives_signing_in_again(server: TestServer, gateway: SMSGateway) -> None:
    alice = server.register("alice")
    store = server.app.accounts.stores.accounts
    password_hash = server.run(store.get_accounts([alice.user_id]))[alice.user_id].password_hash
    browser = Browser(server)
    browser.open(ACCOUNT)
    browser.send(SIGN_IN, name="alice", password="wonderland")
    server.run(
        server.app.database.write("no_password", store.set_password_hash, alice.user_id, None)
    )
    server.clock.advance(16 * 60)
    browser.open(ACCOUNT)
    press(browser, "send_code", number=NUMBER)
    press(browser, "take_number", code=gateway.code)
    assert browser.path.startswith(SIGN_IN)
    server.run(
        server.app.database.write(
            "a_password", store.set_password_hash, alice.user_id, password_hash
        )
    )
    browser.send(SIGN_IN, name="alice", password="wonderland")
    press(browser, "take_number", code=gateway.code, old_password="wonderland")
    assert "The number was added." in browser.words


def test_a_user_registers_with_a_number(
    tmp_path: Path, sqlite_database: Database, gateway: SMSGateway
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + "registrations_require_3pid: [msisdn]\n", web=gateway
    )
    browser = Browser(server)
    browser.open("/_mahalla/register")
    browser.send(number="12")
    assert "This is not a mobile number" in browser.words
    browser.send(number=NUMBER)
    assert "We sent a code to +998901234567" in browser.words
    browser.send(code="no")
    assert "The code is wrong" in browser.words
    browser.send(code=gateway.code)
    browser.send(name="alice", password="wonderland", password_again="other")
    assert "The two passwords differ" in browser.words
    browser.send(name="alice", password="wonderland", password_again="wonderland")
    assert browser.path == ACCOUNT
    assert "+998901234567" in browser.words


def test_a_user_registers_with_an_address_and_a_number(
    tmp_path: Path, sqlite_database: Database, gateway: SMSGateway
) -> None:
    config = (
        CONFIG
        + "email: {smtp_host: mail.example.org}\nregistrations_require_3pid: [email, msisdn]\n"
    )
    server = TestServer(tmp_path, sqlite_database, config, web=gateway)
    browser = Browser(server)
    browser.open("/_mahalla/register")
    browser.send(address="alice@example.org")
    text = server.relay.emails[-1][1].get_body(("plain",))
    assert text is not None
    link = next(word for word in str(text.get_content()).split() if word.startswith("https://"))
    other = Browser(server)
    other.open(link.removeprefix("https://matrix.example.org"))
    other.send("/_mahalla/confirm_email")
    browser.send()
    browser.send(number=NUMBER)
    browser.send(code=gateway.code)
    browser.send(name="alice", password="wonderland", password_again="wonderland")
    assert browser.path == ACCOUNT
    assert "+998901234567" in browser.words
    assert "alice@example.org" in browser.words
