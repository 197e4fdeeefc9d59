"""The account page: its contents, its forms, and who may submit them."""

from pathlib import Path
from typing import Any

import pytest

from storage.engine.database import Database
from storage.threepids.identity_bindings import IdentityBindingRow, IdentityBindingStore
from storage.threepids.threepids import ThreepidRow
from storage.upstream.external_ids import ExternalIdRow, ExternalIdStore
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser, press
from tests.helpers.email_addresses import link_in_email
from tests.helpers.keys import cross_signing_key
from tests.helpers.logins import password_auth
from tests.helpers.oauth import CONFIG, Program
from tests.helpers.server import TestServer, User

ACCOUNT = "/_mahalla/account"
SIGN_IN = "/_mahalla/sign_in"
WHOAMI = "/_matrix/client/v3/account/whoami"
MAIL = f"""{CONFIG}
email: {{smtp_host: mail.example.org, notif_from: "server@example.org"}}
rc_3pid_validation: *unlimited
"""


def sign_in(browser: Browser, path: str = ACCOUNT, password: str = "wonderland") -> None:
    browser.open(path)
    browser.send(SIGN_IN, name="alice", password=password)
    assert browser.status == 200


def master_key(user: User, seed: int) -> dict[str, Any]:
    return {"master_key": cross_signing_key(user, "master", seed)[1]}


def test_the_user_sees_and_ends_sessions(program: Program, browser: Browser) -> None:
    alice = program.sign_in(browser)
    program.server.run(program.server.app.accounts.last_seen.flush())
    browser.open(ACCOUNT)
    assert "Element X" in browser.words
    browser.open(f"{ACCOUNT}?action=org.matrix.device_view&device_id={alice.device_id}")
    assert "element.io" in browser.words
    assert "2023-11-14" in browser.words
    assert alice.get(WHOAMI).status == 200
    browser.open(f"{ACCOUNT}?action=org.matrix.device_delete&device_id={alice.device_id}")
    assert alice.get(WHOAMI).status == 200  # opening a link changes nothing
    press(browser, "end_device")
    assert "The session has ended." in browser.words
    assert alice.get(WHOAMI).status == 401
    assert program.refresh().json["error"] == "invalid_grant"


@pytest.mark.parametrize("action", ["session_end", "org.matrix.session_view"])
def test_unstable_names_of_actions_are_accepted(
    program: Program, browser: Browser, action: str
) -> None:
    alice = program.sign_in(browser)
    browser.open(f"{ACCOUNT}?action={action}&device_id={alice.device_id}")
    assert "End this session" in browser.words


def test_devices_of_other_users_are_not_found(server: TestServer, browser: Browser) -> None:
    bob = server.register("bob")
    sign_in(browser)
    browser.open(f"{ACCOUNT}?action=org.matrix.device_delete&device_id={bob.device_id}")
    assert "End this session" not in browser.words
    form = browser.page.forms[-1].fields
    browser.post(ACCOUNT, {**form, "do": "end_device", "device_id": bob.device_id})
    assert bob.get(WHOAMI).status == 200


@pytest.mark.parametrize("action", ["cross_signing_reset", "account_deactivate", "device_delete"])
def test_a_browser_of_another_account_shows_which_account_it_is(
    server: TestServer, program: Program, browser: Browser, action: str
) -> None:
    """A client of alice links to the page, and the browser is signed in as bob."""
    alice = program.sign_in(Browser(server))
    server.register("bob")
    here = f"{ACCOUNT}?action=org.matrix.{action}"
    if action == "device_delete":
        here += f"&device_id={alice.device_id}"
    browser.open(ACCOUNT)
    browser.send(SIGN_IN, name="bob", password="wonderland")
    browser.open(here)
    assert "You are signed in as @bob:example.org Not you?" in browser.words
    assert ("You have no such session" in browser.words) is (action == "device_delete")
    browser.send("/_mahalla/sign_out")
    browser.send(SIGN_IN, name="alice", password="wonderland")
    assert "You are signed in as @alice:example.org" in browser.words
    wanted = {
        "cross_signing_reset": "reset",
        "account_deactivate": "deactivate",
        "device_delete": "end_device",
    }[action]
    assert [form.fields["do"] for form in browser.page.forms if "do" in form.fields] == [wanted]


def test_forms_of_other_sites_are_refused(program: Program, browser: Browser) -> None:
    alice = program.sign_in(browser)
    for do in ("end_device", "deactivate", "reset", "password"):
        fields = {"do": do, "device_id": alice.device_id, "old_password": "wonderland"}
        assert browser.post(ACCOUNT, fields).status == 403
    assert alice.get(WHOAMI).status == 200
    nobody = Browser(program.server)
    nobody.open(SIGN_IN)
    nobody.post(ACCOUNT, {**nobody.page.forms[0].fields, "do": "deactivate"})
    assert nobody.path.startswith(SIGN_IN)


def test_a_name_is_changed(server: TestServer, browser: Browser) -> None:
    sign_in(browser)
    press(browser, "name", name="Alice <in> Wonderland")
    assert "Your name was changed." in browser.words
    assert "Alice &lt;in&gt; Wonderland" in browser.text
    found = server.get("/_matrix/client/v3/profile/@alice:example.org").json
    assert found["displayname"] == "Alice <in> Wonderland"


def test_a_suspended_account_keeps_its_name(server: TestServer, browser: Browser) -> None:
    sign_in(browser)
    store = server.app.accounts.stores.accounts
    server.run(
        server.app.database.write("suspend", store.set_flags, "@alice:example.org", suspended=True)
    )
    press(browser, "name", name="Mallory")
    assert (browser.status, "Your account is suspended" in browser.words) == (403, True)
    assert (
        server.get("/_matrix/client/v3/profile/@alice:example.org").json["displayname"] == "alice"
    )


def test_a_suspended_account_keeps_its_addresses(server: TestServer, browser: Browser) -> None:
    store, threepids = server.app.accounts.stores.accounts, server.app.email.threepids
    for medium, address in (("email", "alice@example.org"), ("msisdn", "998901234567")):
        row = ThreepidRow(medium, address, "@alice:example.org", 1, 1)
        server.run(server.app.database.write("t", threepids.add_threepid, row))
    sign_in(browser)
    server.run(
        server.app.database.write("suspend", store.set_flags, "@alice:example.org", suspended=True)
    )
    for removal in ("remove_address", "remove_number"):
        browser.open(ACCOUNT)
        press(browser, removal)
        assert (browser.status, "Your account is suspended" in browser.words) == (403, True)
    known = server.run(threepids.get_threepids(["@alice:example.org"]))["@alice:example.org"]
    assert len(known) == 2


def test_a_password_is_changed(program: Program, browser: Browser) -> None:
    alice = program.sign_in(browser)
    sign_in(other := Browser(program.server))
    browser.open(ACCOUNT)
    press(browser, "password", old_password="wrong", password="new", password_again="new")
    assert (browser.status, "The password is wrong." in browser.words) == (403, True)
    press(browser, "password", old_password="wonderland", password="new", password_again="other")
    assert "The two passwords differ" in browser.words
    assert alice.get(WHOAMI).status == 200
    press(browser, "password", old_password="wonderland", password="new", password_again="new")
    assert "Your password was changed" in browser.words  # this browser keeps its session
    assert alice.get(WHOAMI).status == 401
    other.open(ACCOUNT)
    assert other.path.startswith(SIGN_IN)
    sign_in(other, password="new")


def test_an_app_replaces_the_keys_once_after_permission(program: Program, browser: Browser) -> None:
    alice = program.sign_in(browser)
    path = "/_matrix/client/v3/keys/device_signing/upload"
    first, second, third = (master_key(alice, seed) for seed in (1, 2, 3))
    assert alice.post(path, first).status == 200
    asked = alice.post(path, second)
    assert asked.status == 401
    assert asked.json["flows"] == [
        {"stages": ["m.oauth"]},
        {"stages": ["org.matrix.cross_signing_reset"]},
    ]
    url = asked.json["params"]["m.oauth"]["url"]
    assert (
        url == "https://matrix.example.org/_mahalla/account?action=org.matrix.cross_signing_reset"
    )
    auth = {"session": asked.json["session"]}
    assert alice.post(path, {**second, "auth": auth}).status == 401
    assert (
        alice.post(path, {**second, "auth": {**auth, "type": "m.oauth"}}).errcode == "M_FORBIDDEN"
    )
    browser.open(url.removeprefix("https://matrix.example.org"))
    press(browser, "reset", old_password="wrong")
    assert alice.post(path, {**second, "auth": auth}).status == 401
    press(browser, "reset", old_password="wonderland")
    assert "Return to your app within ten minutes" in browser.words
    assert alice.post(path, {**second, "auth": auth}).status == 200
    assert alice.post(path, third).status == 401  # once
    happened = [event for event, _ in audit_records(program.server)]
    assert [event for event in happened if event.startswith("keys")] == [
        "keys_reset_allowed",
        "keys_replaced",
    ]


def test_the_permission_ends_after_ten_minutes(program: Program, browser: Browser) -> None:
    alice = program.sign_in(browser)
    path = "/_matrix/client/v3/keys/device_signing/upload"
    assert alice.post(path, master_key(alice, 1)).status == 200
    browser.open(f"{ACCOUNT}?action=org.matrix.cross_signing_reset")
    press(browser, "reset", old_password="wonderland")
    program.server.clock.advance(600)
    alice = program.take(program.refresh())
    assert alice.post(path, master_key(alice, 2)).status == 401


def test_an_account_is_closed(program: Program, browser: Browser) -> None:
    alice = program.sign_in(browser)
    browser.open(f"{ACCOUNT}?action=org.matrix.account_deactivate")
    press(browser, "deactivate", old_password="wrong")
    assert alice.get(WHOAMI).status == 200
    press(browser, "deactivate", old_password="wonderland")
    assert "Your account is closed" in browser.words
    assert alice.get(WHOAMI).status == 401
    browser.open(ACCOUNT)
    assert browser.path.startswith(SIGN_IN)
    browser.send(SIGN_IN, name="alice", password="wonderland")
    assert browser.status == 403


def test_an_account_without_a_password_authenticates_again(
    server: TestServer, browser: Browser
) -> None:
    sign_in(browser)
    store = server.app.accounts.stores.accounts
    server.run(
        server.app.database.write(
            "no_password", store.set_password_hash, "@alice:example.org", None
        )
    )
    server.clock.advance(16 * 60)
    browser.open(f"{ACCOUNT}?action=org.matrix.account_deactivate")
    assert "Your password" not in browser.words
    press(browser, "deactivate")
    assert browser.path.startswith(SIGN_IN)
    browser.open(ACCOUNT)
    assert browser.path.startswith(SIGN_IN)


def test_the_user_downloads_the_account_data(server: TestServer, browser: Browser) -> None:
    sign_in(browser)
    alice = _user(server)
    alice.put(
        f"/_matrix/client/v3/user/{alice.user_id}/account_data/org.example.tea", {"milk": False}
    )
    answer = browser.open("/_mahalla/account/export")
    assert answer.headers["content-disposition"] == 'attachment; filename="account.json"'
    assert answer.json["user_id"] == "@alice:example.org"
    assert answer.json["account_data"]["org.example.tea"] == {"milk": False}
    assert (
        Browser(server)
        .open("/_mahalla/account/export")
        .headers["content-type"]
        .startswith("text/html")
    )


def test_earlier_activity_is_folded(server: TestServer, browser: Browser) -> None:
    for _ in range(3):
        _user(server)
    browser.open(ACCOUNT)
    browser.send(SIGN_IN, name="alice", password="wrong")
    browser.send(SIGN_IN, name="alice", password="wonderland")
    shown, folded = browser.text.partition("Recent activity")[2].split("Earlier activity")
    assert "<details>" in shown
    assert shown.count("<li>") == 3
    assert "A wrong password was typed" in shown
    assert folded.partition("</details>")[0].count("An app signed in") == 3


def test_a_session_without_a_name_shows_its_user_agent(
    server: TestServer, browser: Browser
) -> None:
    sign_in(browser)
    alice = _user(server)
    path, program = "/_matrix/client/v3/account/whoami", {"User-Agent": "Thunderbird/140"}
    server.client.request("GET", path, token=alice.token, headers=program, ip="10.0.0.7")
    server.run(server.app.accounts.last_seen.flush())
    browser.open(ACCOUNT)
    shown = browser.words.partition("Recent activity")[0]
    assert "Unnamed app" in shown
    assert shown.count(alice.device_id) == 1
    assert "· 10.0.0.7" in shown
    assert "Thunderbird/140" in shown
    browser.open(f"{ACCOUNT}?action=org.matrix.device_view&device_id={alice.device_id}")
    assert browser.words.count(alice.device_id) == 1


def test_the_downloaded_file_has_all_stored_data(server: TestServer, browser: Browser) -> None:
    sign_in(browser)
    alice, database, now = _user(server), server.app.database, int(server.clock.seconds() * 1000)
    stores = server.app.accounts.stores
    server.run(
        database.write(
            "agree", stores.policy_consents.add_consents, alice.user_id, {"privacy": "1.0"}, now
        ),
    )
    link = ExternalIdRow("oidc-town", "17", alice.user_id, now)
    server.run(database.write("link", ExternalIdStore(database).add_link, link))
    bound = IdentityBindingRow(alice.user_id, "email", "alice@example.com", "identity.example.org")
    server.run(database.write("bind", IdentityBindingStore(database).add_binding, bound))
    sent = server.client.request(
        "POST",
        "/_matrix/media/v3/upload?filename=tea.txt",
        token=alice.token,
        body=b"tea",
        headers={"Content-Type": "text/plain"},
    )
    kept = browser.open("/_mahalla/account/export").json
    assert kept["consents"] == [{"policy": "privacy", "version": "1.0", "ts": now}]
    assert kept["sign_in_services"] == [
        {"provider": "oidc-town", "subject": "17", "linked_ts": now}
    ]
    assert kept["identity_servers"] == [
        {"medium": "email", "address": "alice@example.com", "id_server": "identity.example.org"}
    ]
    file = {
        "uri": sent.json["content_uri"],
        "name": "tea.txt",
        "type": "text/plain",
        "size": 3,
        "created_ts": now,
    }
    assert kept["files"] == {"count": 1, "size": 3, "newest": [file]}
    assert {"session_began", "browser_signed_in", "registered"} <= {
        record["event"] for record in kept["records"]
    }


def _user(server: TestServer) -> User:
    body = password_auth("alice")
    return User(server, server.post("/_matrix/client/v3/login", body).json)


@pytest.fixture
def mailing(tmp_path: Path, sqlite_database: Database) -> TestServer:
    server = TestServer(tmp_path, sqlite_database, MAIL)
    server.register("alice")
    return server


def confirm(server: TestServer) -> str:
    """Press the button behind the link, in another browser; return where the page continues."""
    other = Browser(server)
    other.open(link_in_email(server))
    other.send("/_mahalla/confirm_email")
    return str(other.page.links["Continue to matrix.example.org"]).removeprefix(
        "https://matrix.example.org"
    )


def test_an_added_address_resets_the_password(mailing: TestServer) -> None:
    browser = Browser(mailing)
    sign_in(browser)
    press(browser, "send_email", address="Alice@Example.org")
    assert "We sent an e-mail" in browser.words
    press(browser, "take_address", old_password="wonderland")
    assert "The address is not confirmed yet" in browser.words
    browser.open(confirm(mailing))
    press(browser, "take_address", old_password="wonderland")
    assert "The address was added." in browser.words
    assert "alice@example.org" in browser.words

    forgetful = Browser(mailing)
    forgetful.open(SIGN_IN)
    forgetful.follow("Forgot your password?")
    forgetful.send(address="nobody@example.org")
    of_nobody = forgetful.words
    forgetful.open("/_mahalla/reset_password")
    forgetful.send(address="alice@example.org")
    assert of_nobody == forgetful.words.replace("alice@", "nobody@")
    forgetful.send()
    forgetful.send(password="new", password_again="new")
    assert "The address is not confirmed yet" in forgetful.words
    forgetful.open(confirm(mailing))
    forgetful.send(password="new", password_again="new")
    assert "Your password was changed" in forgetful.words
    forgetful.follow("Sign in")
    forgetful.send(SIGN_IN, name="alice@example.org", password="new")
    assert forgetful.path == ACCOUNT
    press(forgetful, "remove_address")
    assert "The address was removed." in forgetful.words


def test_a_user_registers_with_an_address_and_a_token(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(
        tmp_path,
        sqlite_database,
        MAIL + "registration_requires_token: true\nregistrations_require_3pid: [email]\n",
    )
    token = server.run(server.app.login.registration.do_create_token(uses_allowed=1, seconds=None))
    program, browser = Program(server), Browser(server)
    browser.open(program.request(prompt="create"))
    browser.send(address="bob@example.org")
    assert "We sent an e-mail to bob@example.org" in browser.words
    browser.open(confirm(server))
    requested = {"name": "bob", "password": "builder", "password_again": "builder"}
    browser.send(**requested, registration_token="wrong")
    assert browser.status == 403
    browser.send(**requested, registration_token=token)
    assert "Allow Element X to use your account?" in browser.words
    assert "@bob:example.org" in browser.words


def test_a_server_without_email_says_so(browser: Browser) -> None:
    browser.open(SIGN_IN)
    assert "Forgot your password?" not in browser.words
    assert browser.open("/_mahalla/reset_password").status == 404


def test_closed_registration_is_refused(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, CONFIG + "enable_registration: false\n")
    browser = Browser(server)
    browser.open("/_mahalla/register")
    assert browser.status == 403
    assert "Registration is closed" in browser.words
    metadata: dict[str, Any] = server.get("/_matrix/client/v1/auth_metadata").json
    assert metadata["prompt_values_supported"] == ["login"]
