"""Policies: consent at registration, new versions, and requests blocked before the consent."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from federation.protocol.ids import UserID
from homeserver.commands.setup import find_problems
from homeserver.config.load import ConfigError, load_config
from homeserver.services.terms.policies import parse_text
from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from tests.conftest import run_coroutine
from tests.helpers.browser import Browser
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.oauth import CONFIG as OAUTH
from tests.helpers.oauth import Program
from tests.helpers.server import TestServer, User, move_user

TERMS = {"type": "m.login.terms"}
REGISTER = "/_matrix/client/v3/register"
ROOMS = "/_matrix/client/v3/createRoom"
TICKS = {"agree_terms": "true", "agree_privacy": "true"}
BLOCKED = "Please agree first: %(consent_uri)s"


def policies(version: str = "1.2", *, blocked: bool = True, at_registration: bool = True) -> str:
    return f"""{OAUTH}
user_consent:
  require_at_registration: {str(at_registration).lower()}
  {f"block_events_error: '{BLOCKED}'" if blocked else ""}
  policies:
    terms:
      version: "{version}"
      documents:
        en: {{name: Terms of use, url: "https://example.org/terms"}}
        uz: {{name: Foydalanish shartlari, path: shartlar.txt}}
    privacy:
      version: "2"
      documents: {{ru: {{name: О данных, url: "https://example.org/ru"}}}}
"""


@pytest.fixture(autouse=True)
def text(tmp_path: Path) -> None:
    (tmp_path / "shartlar.txt").write_text("# Umumiy\n\nBirinchi\nqator.\n\n- bir\n- <b>ikki</b>\n")


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, policies())


def register(server: TestServer, name: str = "alice") -> User:
    answer = server.post(REGISTER, {"username": name, "password": "wonderland", "auth": TERMS})
    assert answer.status == 200, answer.body
    return User(server, answer.json)


def with_new_version(folder: Path, database: Database, text: str) -> TestServer:
    """Restart the server with another configuration."""
    return TestServer(folder, database, text, seed=2)


def consents(server: TestServer, user_id: str) -> list[tuple[str, str]]:
    rows = server.run(server.app.pages.consents.get_consents(UserID(user_id)))
    return sorted((row.policy_id, row.version) for row in rows)


def admin(server: TestServer) -> User:
    user = register(server, "root")
    server.run(server.app.user_data.accounts.do_set_flags(user.user_id, is_admin=True))
    return user


def test_registration_has_a_terms_stage(server: TestServer) -> None:
    challenge = server.post(REGISTER, {"username": "alice", "password": "wonderland"})
    assert challenge.json["flows"] == [{"stages": ["m.login.terms"]}]
    offered = challenge.json["params"]["m.login.terms"]["policies"]
    assert offered["terms"]["version"] == "1.2"
    assert offered["terms"]["en"] == {"name": "Terms of use", "url": "https://example.org/terms"}
    assert (
        offered["terms"]["uz"]["url"] == "https://matrix.example.org/_mahalla/policies/terms/1.2/uz"
    )
    assert offered["privacy"]["ru"]["name"] == "О данных"
    auth = {**TERMS, "session": challenge.json["session"]}
    done = server.post(REGISTER, {"username": "alice", "password": "wonderland", "auth": auth})
    assert done.status == 200
    assert consents(server, "@alice:example.org") == [("privacy", "2"), ("terms", "1.2")]
    assert User(server, done.json).post(ROOMS).status == 200
    repeated = server.post(REGISTER, {"username": "bob", "auth": {"type": "m.login.dummy"}})
    assert repeated.status == 401


def test_the_server_serves_a_policy_text(server: TestServer) -> None:
    browser = Browser(server, "ru")
    browser.open("/_mahalla/policies/terms/1.2/uz")
    assert browser.status == 200
    assert '<article lang="uz">' in browser.text
    assert "<h2>Umumiy</h2>" in browser.text
    assert "<p>Birinchi qator.</p>" in browser.text
    assert "<li>&lt;b&gt;ikki&lt;/b&gt;</li>" in browser.text
    assert "script-src" not in browser.answer.headers["content-security-policy"]
    for path in ("terms/1.1/uz", "terms/1.2/en", "other/1/en"):
        assert server.get(f"/_mahalla/policies/{path}").errcode == "M_NOT_FOUND"


def test_a_new_version_needs_a_new_consent(tmp_path: Path, sqlite_database: Database) -> None:
    alice = register(TestServer(tmp_path, sqlite_database, policies()))
    room = alice.post(ROOMS).json["room_id"]
    server = with_new_version(tmp_path, sqlite_database, policies("1.3"))
    alice = move_user(server, alice)
    message = f"/_matrix/client/v3/rooms/{room}/send/m.room.message"
    refused = alice.put(f"{message}/1", {"msgtype": "m.text", "body": "tea"})
    assert (refused.status, refused.errcode) == (403, "M_CONSENT_NOT_GIVEN")
    link = refused.json["consent_uri"]
    assert link.startswith("https://matrix.example.org/_mahalla/consent?")
    assert refused.json["error"] == BLOCKED.replace("%(consent_uri)s", link)
    assert alice.post(ROOMS).errcode == "M_CONSENT_NOT_GIVEN"
    assert (
        alice.put(f"/_matrix/client/v3/rooms/{room}/state/m.room.topic", {"topic": "x"}).status
        == 403
    )
    # reading, uploading keys, leaving and signing out need no consent
    assert alice.get("/_matrix/client/v3/sync").status == 200
    assert alice.get(f"/_matrix/client/v3/rooms/{room}/messages?dir=b").status == 200
    assert alice.post("/_matrix/client/v3/keys/upload").status == 200
    assert alice.post("/_matrix/client/v3/account/password", {"new_password": "x"}).status == 401
    typing = f"/_matrix/client/v3/rooms/{room}/typing/{alice.user_id}"
    assert alice.put(typing, {"typing": True}).errcode == "M_CONSENT_NOT_GIVEN"

    browser = Browser(server, "uz")
    browser.open(link.removeprefix("https://matrix.example.org"))
    assert browser.status == 200
    assert "@alice:example.org" in browser.text
    assert "Foydalanish shartlari" in browser.text
    assert "О данных" not in browser.text  # its current version is accepted already
    browser.send("/_mahalla/consent")
    assert browser.status == 400
    assert 'role="alert"' in browser.text
    assert alice.post(ROOMS).status == 403
    browser.open(link.removeprefix("https://matrix.example.org"))
    browser.send("/_mahalla/consent", agree_terms="true")
    assert browser.status == 200
    assert alice.put(f"{message}/2", {"msgtype": "m.text", "body": "tea"}).status == 200
    assert consents(server, alice.user_id) == [("privacy", "2"), ("terms", "1.2"), ("terms", "1.3")]
    events = [record["event"] for record in _audit(server, alice.user_id)]
    assert "terms_accepted" in events


def _audit(server: TestServer, user_id: str) -> list[dict[str, str]]:
    records = server.get(f"/_mahalla/admin/v1/users/{user_id}/audit", token=admin(server).token)
    found: list[dict[str, str]] = records.json["records"]
    return found


def test_a_token_and_its_consents_are_read_in_one_query(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig
) -> None:
    counter = QueryCounter()
    database = open_inline(database_config, counter)
    alice = register(TestServer(tmp_path, database, policies()))
    for version, status in (("1.2", 200), ("1.3", 403)):
        server = with_new_version(tmp_path, database, policies(version))
        counter.clear()
        assert move_user(server, alice).post(
            "/_matrix/client/v3/rooms/!none:example.org/leave"
        ).status in (
            403,
            404,
        )
        assert counter.queries["get_access_token"] == 1
        assert not {"get_accounts", "get_policy_consents"} & counter.queries.keys()
        assert move_user(server, alice).post(ROOMS, {}).status == status
    run_coroutine(database.close(), None)


def test_links_are_for_one_user_and_one_version(tmp_path: Path, sqlite_database: Database) -> None:
    first = TestServer(tmp_path, sqlite_database, policies(at_registration=False))
    session = first.post(
        REGISTER, {"username": "alice", "password": "wonderland", "auth": {"type": "m.login.dummy"}}
    )
    alice = User(first, session.json)
    refused = alice.post(ROOMS)
    assert refused.errcode == "M_CONSENT_NOT_GIVEN"
    link = urlsplit(refused.json["consent_uri"])
    browser = Browser(first)
    browser.open(f"{link.path}?{link.query.replace('alice', 'mallory')}")
    assert browser.path.startswith("/_mahalla/sign_in")
    browser.open(f"{link.path}?{link.query}")
    forged = dict(browser.page.forms[0].fields)
    browser.post(link.path, {**forged, "form_token": "x", **TICKS})
    assert browser.status == 403
    assert alice.post(ROOMS).status == 403

    later = with_new_version(tmp_path, sqlite_database, policies("1.3"))
    old = Browser(later)
    old.open(f"{link.path}?{link.query}")
    assert old.path.startswith("/_mahalla/sign_in")
    old.send("/_mahalla/sign_in", name="alice", password="wonderland")
    # a form from before the versions changed is refused
    old.send("/_mahalla/consent", versions="0" * 32, **TICKS)
    assert old.status == 400
    assert "have changed since" in old.words
    assert consents(later, alice.user_id) == []
    old.send("/_mahalla/consent", **TICKS)
    assert old.status == 200
    assert move_user(later, alice).post(ROOMS).status == 200


def test_requests_are_not_blocked_without_block_events_error(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, policies(blocked=False, at_registration=False))
    assert server.register("alice").post(ROOMS).status == 200


def test_bots_need_no_consent(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, policies(at_registration=False))
    bot = server.register("bot")
    assert bot.post(ROOMS).status == 403

    async def make_bot() -> None:
        def write(txn: object) -> None:
            txn.execute("UPDATE accounts SET user_type = 'bot' WHERE user_id = ?", (bot.user_id,))  # type: ignore[attr-defined]
            server.app.accounts.stores.accounts.set_account_changed(txn, bot.user_id)  # type: ignore[arg-type]

        await sqlite_database.write("make_bot", write)

    server.run(make_bot())
    assert bot.post(ROOMS).status == 200


def test_the_registration_page_asks_for_consent(server: TestServer) -> None:
    browser = Browser(server)
    browser.open("/_mahalla/register")
    assert "Terms of use" in browser.words
    wanted = {"name": "alice", "password": "wonderland", "password_again": "wonderland"}
    browser.send("/_mahalla/register", **wanted, agree_terms="true")
    assert browser.status == 403
    assert "accept each of the documents" in browser.words
    browser.send("/_mahalla/register", **wanted, **TICKS, versions="0")
    assert "have changed since" in browser.words
    browser.open("/_mahalla/register")
    browser.send("/_mahalla/register", **wanted, **TICKS)
    assert browser.path == "/_mahalla/account"
    assert "The terms were accepted" in browser.words
    assert consents(server, "@alice:example.org") == [("privacy", "2"), ("terms", "1.2")]
    browser.follow("Terms of service")
    assert "Thank you" in browser.words


def test_an_app_is_authorized_after_the_consent(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, policies(at_registration=False))
    server.register("alice")
    browser = Browser(server)
    browser.open(Program(server).request())
    browser.send("/_mahalla/sign_in", name="alice", password="wonderland")
    assert browser.path.startswith("/_mahalla/consent?")
    browser.send("/_mahalla/consent", **TICKS)
    assert browser.path.startswith("/_mahalla/oauth/authorize?")
    assert "Allow" in browser.words
    browser.send("/_mahalla/oauth/authorize", button="allow")
    assert "code=" in browser.location
    for path in ("/_mahalla/link", "/_mahalla/account"):
        browser.open(path)
        assert browser.path == path


def test_the_fallback_page_completes_the_stage(server: TestServer) -> None:
    session = server.post(REGISTER, {"username": "alice", "password": "wonderland"}).json["session"]
    browser = Browser(server)
    browser.open(f"/_matrix/client/v3/auth/m.login.terms/fallback/web?session={session}")
    assert browser.status == 200
    browser.send(None, **TICKS)
    assert browser.status == 200
    assert "window.onAuthDone" in browser.text
    done = server.post(
        REGISTER, {"username": "alice", "password": "wonderland", "auth": {"session": session}}
    )
    assert done.status == 200
    assert consents(server, "@alice:example.org") == [("privacy", "2"), ("terms", "1.2")]
    for wrong in ("x", "", "%00"):
        browser.open(f"/_matrix/client/v3/auth/m.login.terms/fallback/web?session={wrong}")
        assert browser.status == 400


def test_administrators_list_consents(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, policies(at_registration=False))
    alice, bob = server.register("alice"), server.register("bob")
    root = server.register("root")
    server.run(server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
    server.run(server.app.pages.consents.do_accept(alice.user_id, "127.0.0.1"))
    assert root.get("/_mahalla/admin/v1/policies").json == {
        "policies": {
            "terms": {"version": "1.2", "agreed": 1},
            "privacy": {"version": "2", "agreed": 1},
        }
    }
    agreed = root.get("/_mahalla/admin/v1/policies/terms/users").json
    assert [user["user_id"] for user in agreed["users"]] == [alice.user_id]
    assert agreed["users"][0]["agreed_ts"] == 1_700_000_000_000
    others = root.get("/_mahalla/admin/v1/policies/terms/users?agreed=false&limit=1").json
    assert others["users"] == [{"user_id": bob.user_id, "agreed_ts": None}]
    rest = root.get(
        f"/_mahalla/admin/v1/policies/terms/users?agreed=false&from={others['next']}"
    ).json
    assert [user["user_id"] for user in rest["users"]] == [root.user_id]
    assert root.get(f"/_mahalla/admin/v1/users/{bob.user_id}/consents").json == {
        "consents": [],
        "owed": ["terms", "privacy"],
    }
    assert root.get("/_mahalla/admin/v1/policies/other/users").errcode == "M_NOT_FOUND"
    assert root.get("/_mahalla/admin/v1/policies/terms/users?limit=0").errcode == "M_INVALID_PARAM"
    assert alice.get("/_mahalla/admin/v1/policies").errcode == "M_FORBIDDEN"


@pytest.mark.parametrize(
    ("policies", "complaint"),
    [
        (
            "{terms: {version: '1', documents: {}}}",
            "must contain the document in at least one language",
        ),
        (
            "{terms: {version: '1 2', documents: {en: {name: T, url: 'https://a.example'}}}}",
            "must have 1 to 255 characters",
        ),
        ("{terms: {version: '1', documents: {en: {name: T}}}}", "either `url` or `path`"),
        (
            "{terms: {version: '1', documents: {en: {name: T, url: 'javascript:1'}}}}",
            "must start with http:// or https://",
        ),
        (
            "{terms: {version: '1', documents: {'e n': {name: T, url: 'https://a.example'}}}}",
            "must have language codes",
        ),
        (
            "{'a b': {version: '1', documents: {en: {name: T, url: 'https://a.example'}}}}",
            "must have names of letters",
        ),
        (
            "{terms: {version: '1', documents: {en: {name: T, path: a.txt}}}}",
            "needs `public_baseurl`",
        ),
    ],
)
def test_invalid_policies_are_refused(tmp_path: Path, policies: str, complaint: str) -> None:
    path = tmp_path / "homeserver.yaml"
    path.write_text(f"server_name: example.org\nuser_consent: {{policies: {policies}}}\n")
    with pytest.raises(ConfigError) as refused:
        load_config([path], {})
    assert complaint in "\n".join(refused.value.lines)


def test_an_unreadable_policy_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "homeserver.yaml"
    documents = "{terms: {version: '1', documents: {en: {name: T, path: a.txt}}}}"
    path.write_text(
        f"server_name: example.org\npublic_baseurl: https://a.example\nuser_consent:"
        f" {{policies: {documents}}}\n"
    )
    config = load_config([path], {}).config
    assert any(
        "user_consent.policies.terms" in line and "cannot be read" in line
        for line in find_problems(config)
    )
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    assert any("is not text in UTF-8" in line for line in find_problems(config))


def test_a_text_is_parsed_into_blocks() -> None:
    assert [
        (block.kind, block.lines) for block in parse_text("a\nb\n# c\n- d\ne\n\n- f\n#g\n")
    ] == [
        ("paragraph", ("a", "b")),
        ("heading", ("c",)),
        ("list", ("d e",)),
        ("list", ("f #g",)),
    ]
