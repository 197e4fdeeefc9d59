"""Approval of new accounts by an administrator (MSC3866): API, page, and e-mails."""

from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from federation.protocol.ids import UserID
from homeserver.config.load import ConfigError, load_config
from homeserver.services.accounts.registration import RegistrationRequest
from storage.engine.database import Database
from storage.threepids.threepids import ThreepidRow, ThreepidStore
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser
from tests.helpers.logins import log_in, password_auth
from tests.helpers.oauth import CONFIG as OAUTH
from tests.helpers.oauth import Program
from tests.helpers.room_actions import ok
from tests.helpers.server import TestServer, User

NEEDS_APPROVAL = f"""{OAUTH}
registration_requires_approval: true
"""
WITH_EMAIL = f"""{NEEDS_APPROVAL}
email: {{smtp_host: mail.example.org, notif_from: "server@example.org"}}
rc_3pid_validation: *unlimited
registration_approval_emails: {{admin@example.org: ru}}
"""
REGISTER = "/_matrix/client/v3/register"
LOGIN = "/_matrix/client/v3/login"
ERRCODE = "ORG.MATRIX.MSC3866_USER_AWAITING_APPROVAL"
APPROVALS = "/_mahalla/approvals"
DUMMY = {"type": "m.login.dummy"}
ROOT = UserID("@root:example.org")


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, NEEDS_APPROVAL)


def register_approved(server: TestServer, name: str, *, is_admin: bool = False) -> None:
    requested = RegistrationRequest(
        username=name, password="wonderland", inhibit_login=True, is_admin=is_admin
    )
    server.run(server.app.login.registration.do_register_privileged(requested))


def register_awaiting(server: TestServer, name: str = "alice") -> UserID:
    """Register an account that awaits approval."""
    answer = server.post(REGISTER, {"username": name, "password": "wonderland", "auth": DUMMY})
    assert (answer.status, answer.errcode) == (403, ERRCODE), answer.body
    return UserID(f"@{name}:example.org")


def sign_in(server: TestServer, name: str) -> User:
    return User(server, ok(log_in(server, name)))


def admin_browser(server: TestServer, languages: str = "en") -> Browser:
    register_approved(server, "root", is_admin=True)
    browser = Browser(server, languages)
    browser.open(APPROVALS)
    browser.send("/_mahalla/sign_in", name="root", password="wonderland")
    assert browser.path == APPROVALS
    return browser


def test_an_account_awaiting_approval_cannot_sign_in(server: TestServer) -> None:
    session = server.post(REGISTER, {"username": "alice", "password": "wonderland"}).json["session"]
    wanted = {"username": "alice", "password": "wonderland", "auth": {**DUMMY, "session": session}}
    for _ in range(2):  # a repeated request gets the same response
        answer = server.post(REGISTER, wanted)
        assert (answer.status, answer.errcode) == (403, ERRCODE)
        assert answer.json["approval_notice_medium"] == "m.none"
        assert "access_token" not in answer.json
    assert server.get(f"{REGISTER}/available?username=alice").errcode == "M_USER_IN_USE"
    login = password_auth("alice")
    refused = server.post(LOGIN, login)
    assert (refused.status, refused.errcode) == (403, ERRCODE)
    assert server.post(LOGIN, {**login, "password": "wrong"}).errcode == "M_FORBIDDEN"
    browser = Browser(server)
    browser.open(Program(server).request())
    browser.send("/_mahalla/sign_in", name="alice", password="wonderland")
    assert browser.status == 403
    assert "has to approve your account" in browser.words
    browser.send("/_mahalla/sign_in", name="alice", password="wrong")
    assert "has to approve your account" not in browser.words
    assert server.run(server.app.accounts.stores.accounts.get_accounts(["@alice:example.org"]))
    assert server.run(server.app.accounts.stores.devices.get_devices(["@alice:example.org"])) == {}
    assert [record for record in audit_records(server) if record[0].startswith("sign_in")] == [
        ("sign_in_refused", "awaiting_approval"),
        ("sign_in_failed", None),
        ("sign_in_failed", None),
    ]


def test_an_account_awaiting_approval_is_not_in_the_user_directory(
    tmp_path: Path, sqlite_database: Database
) -> None:
    config = f"{NEEDS_APPROVAL}user_directory: {{search_all_users: true}}\n"
    server = TestServer(tmp_path, sqlite_database, config)
    alice = register_awaiting(server)
    register_approved(server, "bob")
    bob = sign_in(server, "bob")

    async def update_directory() -> None:
        for job in server.app.search.jobs:
            await job.step(100)

    server.run(update_directory())
    search = "/_matrix/client/v3/user_directory/search"
    assert bob.post(search, {"search_term": "alice"}).json["results"] == []
    server.run(server.app.login.approvals.do_approve(alice, by=ROOT))
    assert [
        each["user_id"] for each in bob.post(search, {"search_term": "alice"}).json["results"]
    ] == [alice]


def test_accounts_created_by_administrators_are_approved(server: TestServer) -> None:
    register_approved(server, "bob")
    assert sign_in(server, "bob").get("/_matrix/client/v3/account/whoami").status == 200


def test_an_administrator_approves_and_declines_on_the_page(server: TestServer) -> None:
    alice, mallory = register_awaiting(server), register_awaiting(server, "mallory")
    browser = admin_browser(server)
    assert alice in browser.text
    assert "2023-11-14" in browser.words
    form = next(form for form in browser.page.forms if form.fields.get("user_id") == alice)
    browser.post(APPROVALS, {**form.fields, "decision": "approve"})
    assert "The account was approved." in browser.words
    assert alice not in browser.text
    assert sign_in(server, "alice").get("/_matrix/client/v3/account/whoami").status == 200
    form = next(form for form in browser.page.forms if form.fields.get("user_id") == mallory)
    browser.post(APPROVALS, {**form.fields, "decision": "decline"})
    assert "The account was closed." in browser.words
    assert "No account is awaiting approval." in browser.words
    login = password_auth("mallory")
    assert server.post(LOGIN, login).status == 403
    # a forged form cannot close an account that does not await approval
    browser.post(APPROVALS, {**form.fields, "user_id": alice, "decision": "decline"})
    assert "no longer awaiting approval" in browser.words
    assert sign_in(server, "alice").get("/_matrix/client/v3/account/whoami").status == 200
    browser.post(APPROVALS, {"user_id": alice, "decision": "approve"})
    assert browser.status == 403


def test_the_page_is_for_administrators_only(server: TestServer) -> None:
    alice = register_awaiting(server)
    register_approved(server, "bob")
    browser = Browser(server)
    browser.open(APPROVALS)
    browser.send("/_mahalla/sign_in", name="bob", password="wonderland")
    assert browser.status == 403
    assert alice not in browser.text
    browser.open("/_mahalla/account")
    token = browser.page.forms[0].fields["form_token"]
    browser.post(APPROVALS, {"form_token": token, "user_id": alice, "decision": "approve"})
    assert browser.status == 403
    assert server.run(server.app.login.approvals.get_awaiting(10))


def confirm(server: TestServer, browser: Browser, address: str) -> None:
    browser.open("/_mahalla/register")
    browser.send("/_mahalla/register/email", address=address)
    email = next(email for to, email in reversed(server.relay.emails) if to == address)
    text = email.get_body(("plain",))
    assert text is not None
    link = next(line for line in text.get_content().splitlines() if "confirm_email" in line)
    other = Browser(server)
    other.open(link.removeprefix("https://matrix.example.org"))
    other.send("/_mahalla/confirm_email")
    browser.send("/_mahalla/register")


def test_administrators_and_users_get_emails_about_approvals(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, WITH_EMAIL)
    browser = Browser(server, "uz")
    confirm(server, browser, "alice@example.com")
    server.relay.emails.clear()
    browser.send(
        "/_mahalla/register", name="alice", password="wonderland", password_again="wonderland"
    )
    assert browser.status == 200
    assert "tasdiqlanganda sizga xat keladi" in browser.words.lower()
    [(to, email)] = server.relay.emails
    assert to == "admin@example.org"
    assert "ждёт подтверждения" in email["Subject"]
    html = email.get_body(("html",))
    assert html is not None
    assert 'href="https://matrix.example.org/_mahalla/approvals"' in html.get_content()
    register_awaiting(server, "bob")
    assert len(server.relay.emails) == 1  # one e-mail an hour; the page shows both accounts
    server.clock.advance(3601)
    register_awaiting(server, "carol")
    # an hour later there is another e-mail
    assert [to for to, _ in server.relay.emails] == ["admin@example.org"] * 2

    server.relay.emails.clear()
    refused = server.post(
        LOGIN,
        password_auth("alice"),
    )
    assert refused.json["approval_notice_medium"] == "m.email"
    assert server.run(server.app.login.approvals.do_approve(UserID("@alice:example.org"), by=ROOT))
    [(to, email)] = server.relay.emails
    assert to == "alice@example.com"
    assert "tasdiqlandi" in email["Subject"]
    assert not server.run(
        server.app.login.approvals.do_approve(UserID("@alice:example.org"), by=ROOT)
    )
    assert len(server.relay.emails) == 1


def test_an_invalid_address_does_not_prevent_approval(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, WITH_EMAIL)
    alice = register_awaiting(server)
    row = ThreepidRow("email", "alice..b@example.com", alice, 1, 1)
    server.run(sqlite_database.write("add", ThreepidStore(sqlite_database).add_threepid, row))
    server.relay.emails.clear()
    assert server.run(server.app.login.approvals.do_approve(alice, by=ROOT))
    assert not server.relay.emails
    sign_in(server, "alice")


def test_auto_join_rooms_are_joined_after_approval(
    tmp_path: Path, sqlite_database: Database
) -> None:
    config = f"{NEEDS_APPROVAL}auto_join_rooms: ['#all:example.org']\n"
    server = TestServer(tmp_path, sqlite_database, config)
    register_approved(server, "root", is_admin=True)
    root = sign_in(server, "root")
    room = root.post(
        "/_matrix/client/v3/createRoom", {"preset": "public_chat", "room_alias_name": "all"}
    ).json["room_id"]
    alice = register_awaiting(server)
    members = f"/_matrix/client/v3/rooms/{room}/joined_members"
    assert alice not in root.get(members).json["joined"]
    server.run(server.app.login.approvals.do_approve(alice, by=ROOT))
    assert alice in root.get(members).json["joined"]


def test_an_approval_is_revoked(server: TestServer) -> None:
    register_approved(server, "alice")
    alice = sign_in(server, "alice")
    server.run(server.app.login.approvals.do_revoke(alice.user_id, by=ROOT))
    login = password_auth("alice")
    assert server.post(LOGIN, login).errcode == ERRCODE
    assert [each.user_id for each in server.run(server.app.login.approvals.get_awaiting(10))] == [
        alice.user_id
    ]


@pytest.mark.parametrize(
    "address",
    ["admin", "a..b@example.org", "a b@example.org", "@example.org", "a@", "ä@example.org", "a@b>"],
)
def test_invalid_administrator_addresses_are_refused(tmp_path: Path, address: str) -> None:
    path = tmp_path / "homeserver.yaml"
    path.write_text(
        "server_name: example.org\npublic_baseurl: https://a.example\nemail: {smtp_host:"
        " mail.example.org}\n"
        f"registration_approval_emails: {{'{address}': en}}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="must be e-mail addresses"):
        load_config([path], {})


def test_the_admin_api_lists_and_approves_accounts(server: TestServer) -> None:
    alice = register_awaiting(server)
    register_approved(server, "root", is_admin=True)
    register_approved(server, "bob")
    root, bob = sign_in(server, "root"), sign_in(server, "bob")
    assert root.get("/_mahalla/admin/v1/approvals").json == {
        "waiting": [{"user_id": alice, "since_ts": 1_700_000_000_000, "emails": []}]
    }
    path = f"/_mahalla/admin/v1/users/{alice}/approval"
    assert bob.put(path, {"approved": True}).errcode == "M_FORBIDDEN"
    assert bob.get("/_mahalla/admin/v1/approvals").errcode == "M_FORBIDDEN"
    assert root.put(path, {}).status == 400
    assert root.put(path, {"approved": True}).json == {"approved": True}
    assert sign_in(server, "alice").user_id == alice
    assert root.put(path, {"approved": False}).status == 200
    assert [
        each["user_id"] for each in root.get("/_mahalla/admin/v1/approvals").json["waiting"]
    ] == [alice]
    assert (
        root.put(
            "/_mahalla/admin/v1/users/@nobody:example.org/approval", {"approved": True}
        ).errcode
        == "M_NOT_FOUND"
    )
    assert (
        root.put(
            "/_mahalla/admin/v1/users/@nobody:example.org/approval", {"approved": False}
        ).errcode
        == "M_NOT_FOUND"
    )


def test_an_account_created_by_jwt_awaits_approval(
    tmp_path: Path, sqlite_database: Database
) -> None:
    secret = "a secret of thirty-two bytes at least"
    config = (
        f"{NEEDS_APPROVAL}jwt_config: {{enabled: true, secret: '{secret}', algorithm: HS256}}\n"
    )
    server = TestServer(tmp_path, sqlite_database, config)
    token = jwt.encode({"alg": "HS256"}, {"sub": "alice"}, OctKey.import_key(secret))
    login = {"type": "org.matrix.login.jwt", "token": token}
    for _ in range(2):
        assert server.post(LOGIN, login).errcode == ERRCODE
    server.run(server.app.login.approvals.do_approve(UserID("@alice:example.org"), by=ROOT))
    assert server.post(LOGIN, login).status == 200
