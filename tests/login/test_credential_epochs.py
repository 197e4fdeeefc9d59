"""Credential epochs: a write is refused if a new password, a sign-out everywhere or a lock has
invalidated its authentication in the meantime."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from federation.api.request import RequestContext
from federation.protocol.errors import UserLocked
from federation.protocol.ids import UserID
from homeserver.services.login.credential_epoch import AuthenticationInvalidated
from homeserver.services.login.passwords import Passwords
from homeserver.web.sign_in import SIGN_IN_PATH, sign_in_link
from storage.accounts.accounts import AccountRow
from storage.engine.database import Database
from storage.login.browser_sessions import BrowserSessionRow, BrowserSessionStore
from tests.helpers.accounts import AccountsServer, User
from tests.helpers.browser import Browser
from tests.helpers.executors import InlineThreads
from tests.helpers.oauth import CONFIG, Program
from tests.helpers.server import TestServer

ALICE = UserID("@alice:example.org")
NEW = "a new password"


@pytest.fixture
def server(database: Database) -> AccountsServer:
    return AccountsServer(database, login_tokens=True)


def run_synchronously(work: Coroutine[Any, Any, object]) -> None:
    done: list[object] = []
    Deferred.fromCoroutine(work).addCallback(done.append)
    assert done


def change(server: AccountsServer) -> None:
    run_synchronously(server.accounts.do_set_password(ALICE, NEW, log_out_all=True))


def lock(server: AccountsServer) -> None:
    run_synchronously(server.accounts.do_set_flags(ALICE, locked=True))


def deactivate(server: AccountsServer) -> None:
    run_synchronously(server.deactivation.do_deactivate(ALICE, erase=False))


@pytest.mark.parametrize(
    ("event", "status", "errcode"),
    [
        (change, 403, "M_FORBIDDEN"),
        (lock, 401, "M_USER_LOCKED"),
        (deactivate, 403, "M_USER_DEACTIVATED"),
    ],
)
def test_a_change_of_the_account_refuses_a_sign_in_in_progress(
    server: AccountsServer, event: Callable[[AccountsServer], None], status: int, errcode: str
) -> None:
    server.register()
    server.threads.meanwhile = lambda: event(server)
    answer = server.login(device_id="LATE")
    assert (answer.status, answer.errcode) == (status, errcode)
    if event is change:
        assert User(server, server.login(password=NEW).json, NEW).get("devices/LATE").status == 404


def test_a_sign_in_during_a_sign_out_everywhere_is_retried(server: AccountsServer) -> None:
    alice = server.register()
    server.threads.meanwhile = lambda: alice.post("logout/all", {})
    answer = server.login()
    assert answer.status == 200
    assert User(server, answer.json, alice.password).is_signed_in()
    assert not alice.is_signed_in()


async def test_a_new_hash_of_the_same_password_invalidates_nothing(
    server: AccountsServer,
) -> None:
    weak = Passwords(threads=InlineThreads(), rounds=3, pepper="pepper")
    account = AccountRow("@alice:example.org", await weak.hash("wonderland"), 0)
    await server.database.write("add_account", server.account_store.add_account, account)
    server.threads.meanwhile = server.login
    assert server.login().status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("account/password", {"new_password": "the thief's own"}),
        ("account/deactivate", {}),
        ("delete_devices", {"devices": ["A"]}),
        ("/_matrix/client/v1/login/get_token", {}),
    ],
)
async def test_a_confirmation_with_the_old_password_is_refused(
    server: AccountsServer, path: str, body: dict[str, object]
) -> None:
    thief = server.register()
    server.threads.meanwhile = lambda: change(server)
    answer = thief.post(path, {**body, "auth": thief.password_auth()})
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    assert server.login(password=NEW).status == 200


def test_a_password_change_is_refused_if_another_was_faster(server: AccountsServer) -> None:
    thief = server.register()
    proof = thief.password_auth()

    def hashing() -> None:  # called when the old password is checked, before the new one is hashed
        server.threads.meanwhile = lambda: change(server)

    server.threads.meanwhile = hashing
    answer = thief.post("account/password", {"new_password": "the thief's own", "auth": proof})
    assert answer.status == 403
    assert server.login(password=NEW).status == 200


def run_change(server: TestServer) -> None:
    server.run(server.app.user_data.accounts.do_set_password(ALICE, NEW, log_out_all=True))


def run_lock(server: TestServer) -> None:
    server.run(server.app.user_data.accounts.do_set_flags(ALICE, locked=True))
    server.run(server.app.user_data.accounts.do_set_flags(ALICE, locked=False))


@pytest.mark.parametrize("event", [run_change, run_lock])
def test_a_change_of_the_account_refuses_a_browser_sign_in_in_progress(
    tmp_path: Path, database: Database, event: Callable[[TestServer], None]
) -> None:
    server = TestServer(tmp_path, database)
    server.register("alice")
    browser = Browser(server)
    browser.open(sign_in_link("/_mahalla/account"))
    server.threads.meanwhile = lambda: event(server)
    browser.send(name="alice", password="wonderland")
    assert browser.status in (401, 403)
    browser.open("/_mahalla/account")
    assert browser.path.startswith(SIGN_IN_PATH)


@pytest.mark.parametrize("event", [run_change, run_lock])
def test_an_ended_browser_session_authorizes_no_app(
    tmp_path: Path,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    event: Callable[[TestServer], None],
) -> None:
    server = TestServer(tmp_path, database, CONFIG)
    server.register("alice")
    browser = Browser(server)
    program = Program(server)
    program.ask(browser)
    read = BrowserSessionStore.get_browser_session

    async def read_and_end(
        self: BrowserSessionStore, token_hash: bytes, now: int
    ) -> BrowserSessionRow | None:
        row = await read(self, token_hash, now)
        monkeypatch.undo()
        event(server)
        return row

    monkeypatch.setattr(BrowserSessionStore, "get_browser_session", read_and_end)
    browser.send(program.path_of("authorization_endpoint"), button="allow")
    assert browser.path.startswith(SIGN_IN_PATH)


@pytest.mark.parametrize(
    ("action", "do", "fields"),
    [
        ("", "password", {"password": "the thief's own", "password_again": "the thief's own"}),
        ("org.matrix.account_deactivate", "deactivate", {}),
        ("org.matrix.cross_signing_reset", "reset", {}),
    ],
)
def test_the_account_page_refuses_the_old_password(
    tmp_path: Path, sqlite_database: Database, action: str, do: str, fields: dict[str, str]
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    server.register("alice")
    browser = Browser(server)
    browser.open(sign_in_link(f"/_mahalla/account?action={action}"))
    browser.send(name="alice", password="wonderland")
    form = next(form for form in browser.page.forms if form.fields.get("do") == do)
    server.threads.meanwhile = lambda: run_change(server)
    browser.post("/_mahalla/account", {**form.fields, **fields, "old_password": "wonderland"})
    assert browser.path.startswith(SIGN_IN_PATH)
    browser.send(name="alice", password=NEW)
    assert browser.status == 200
    assert not browser.path.startswith(SIGN_IN_PATH)


async def test_operations_of_an_old_epoch_are_refused(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    server.register("alice")
    context = RequestContext("1", "GET", b"/", "127.0.0.1", {})
    programs, sessions = server.app.accounts.application_passwords, server.app.pages.sessions
    await server.app.user_data.accounts.do_set_flags(ALICE, locked=True)
    with pytest.raises(UserLocked):
        await programs.do_create(ALICE, "Bot", None, epoch=0)
    await server.app.user_data.accounts.do_set_flags(ALICE, locked=False)
    with pytest.raises(AuthenticationInvalidated):
        await programs.do_create(ALICE, "Bot", None, epoch=0)
    with pytest.raises(AuthenticationInvalidated):
        await sessions.do_begin(ALICE, context, 0)
    with pytest.raises(AuthenticationInvalidated):
        await server.app.login.resets.do_allow(ALICE, "127.0.0.1", 0)
    assert not await server.app.login.resets.is_allowed(ALICE)
    assert await sessions.do_begin(ALICE, context, 1)
