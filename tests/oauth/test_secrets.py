"""No secret appears in logs, audit records, errors or the database. The test uses passwords,
tokens, codes, cookies and client secrets on every path, also in failing requests, and then searches
for them."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from homeserver.observe.access_log import FormattedAccessLog
from homeserver.observe.logs import JsonObserver, TextObserver
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.database_dump import dump_database
from tests.helpers.http import Answer, Pending
from tests.helpers.logins import log_in, password_auth
from tests.helpers.oauth import CONFIG, Program
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"
ACCOUNT = "/_mahalla/account"
SHARED = "shared-registration-secret"
FURTHER = f"""{CONFIG}
email:
  smtp_host: mail.example.org
  notif_from: "%(app)s <noreply@example.org>"
  app_name: Example
rc_3pid_validation: *unlimited
login_via_existing_session: {{enabled: true, require_ui_auth: true}}
registration_shared_secret: {SHARED}
oauth: {{introspection_clients: {{calendar: introspection-secret}}}}
jwt_config: {{enabled: true, secret: jwt-signing-secret, algorithm: HS256}}
"""


class Secrets:
    """The secrets that were sent or received. `shown`: may appear in no error response;
    `sessions`: UIA session ids, which may appear in a 401 response."""

    def __init__(self) -> None:
        self.shown: set[str] = {SHARED, "introspection-secret", "jwt-signing-secret"}
        self.sessions: set[str] = set()

    def password(self, what: str) -> str:
        """Make and record a unique password."""
        secret = f"Secret-{what}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
        self.shown.add(secret)
        return secret

    def learn(self, answer: Answer) -> Answer:
        """Record the secrets of a JSON response."""
        for name, value in answer.json.items():
            if name in (
                "access_token",
                "refresh_token",
                "login_token",
                "device_code",
                "user_code",
                "token",
            ):
                self.shown.add(str(value))
            if name == "session":
                self.sessions.add(str(value))
        return answer


@implementer(ILogObserver)
class Recorder:
    """Records log events of all levels, access log lines and responses."""

    def __init__(self, server: TestServer) -> None:
        self._server = server
        self.events: list[LogEvent] = []
        self.answers: list[tuple[str, Pending]] = []

    @contextmanager
    def open(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        start = self._server.client.start

        def listening(method: str, path: str, **further: Any) -> Pending:
            pending = start(method, path, **further)
            self.answers.append((f"{method} {path.partition('?')[0]}", pending))
            return pending

        monkeypatch.setattr(self._server.client, "start", listening)
        globalLogPublisher.addObserver(self)
        try:
            yield
        finally:
            globalLogPublisher.removeObserver(self)

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)

    def logs(self) -> str:
        """Return all log texts, in every format."""
        lines: list[str] = []
        for observer in (
            TextObserver(write=lines.append, minimum=LogLevel.debug),
            JsonObserver(write=lines.append, minimum=LogLevel.debug),
        ):
            for event in self.events:
                observer(event)
        for as_json in (True, False):
            access = FormattedAccessLog(
                write=lines.append, write_soon=lambda make: lines.append(make()), as_json=as_json
            )
            for record in self._server.client.access_log.records:
                access.write(record)
        return "".join(lines)


def by_password(name: str, password: str, session: str | None = None) -> dict[str, object]:
    proof: dict[str, object] = password_auth(name, password)
    return proof if session is None else {**proof, "session": session}


def use_the_older_api(server: TestServer, secrets: Secrets) -> None:
    password = secrets.password("registered")
    requested = {"username": "bob", "password": password}
    asked = secrets.learn(server.post(f"{V3}/register", requested))
    server.post(f"{V3}/register", {**requested, "auth": {"session": asked.json["session"] + "x"}})
    auth = {"type": "m.login.dummy", "session": asked.json["session"]}
    bob = User(
        server, secrets.learn(server.post(f"{V3}/register", {**requested, "auth": auth})).json
    )
    server.post(
        f"{V3}/register", {**requested, "auth": {"type": "m.login.dummy"}}
    )  # the name is taken
    for name in ("bob", "nobody", "@bob:elsewhere.org", "\0"):
        assert log_in(server, name, secrets.password("wrong")).status == 403
    for body in (
        b'{"type": "m.login.password", "password": "%s"' % secrets.password("cut").encode(),
        b'{"type": "m.login.password", "identifier": "%s"}'
        % secrets.password("identifier").encode(),
        b'{"type": 7, "password": "%s"}' % secrets.password("seven").encode(),
    ):
        assert server.post(f"{V3}/login", body=body).status == 400
    answer = secrets.learn(log_in(server, "bob", password, refresh_token=True, device_id="PHONE"))
    secrets.learn(server.post(f"{V3}/refresh", {"refresh_token": answer.json["refresh_token"]}))
    server.post(f"{V3}/refresh", {"refresh_token": answer.json["refresh_token"] + "x"})
    server.get(f"{V3}/account/whoami?access_token={bob.token}")
    server.get(f"{V3}/account/whoami?access_token={bob.token}x")
    server.get(f"{V3}/account/whoami", token=bob.token + "x")
    asked = secrets.learn(bob.post("/_matrix/client/v1/login/get_token"))
    session = asked.json["session"]
    refused = bob.post(
        "/_matrix/client/v1/login/get_token",
        {"auth": by_password("bob", secrets.password("no"), session)},
    )
    assert refused.status == 401
    given = secrets.learn(
        bob.post(
            "/_matrix/client/v1/login/get_token", {"auth": by_password("bob", password, session)}
        )
    )
    for status in (200, 403):
        token = {"type": "m.login.token", "token": given.json["login_token"]}
        assert secrets.learn(server.post(f"{V3}/login", token)).status == status
    jwt = {"type": "org.matrix.login.jwt", "token": secrets.password("jwt")}
    assert server.post(f"{V3}/login", jwt).status == 403
    asked = secrets.learn(bob.delete(f"{V3}/devices/PHONE"))
    auth = by_password("bob", password, asked.json["session"])
    assert bob.delete(f"{V3}/devices/PHONE", {"auth": auth}).status == 200
    # password change
    requested = {"new_password": secrets.password("x" * 600)}
    assert bob.post(f"{V3}/account/password", requested).status == 400
    changed = secrets.password("changed")
    assert (
        bob.post(
            f"{V3}/account/password",
            {"new_password": changed, "auth": by_password("bob", password)},
        ).status
        == 200
    )
    reset_password(server, secrets, bob, changed)


def reset_password(server: TestServer, secrets: Secrets, bob: User, password: str) -> None:
    def letter(kind: str, name: str) -> dict[str, str]:
        secret = secrets.password(name)
        body = {"client_secret": secret, "email": "bob@example.com", "send_attempt": 1}
        sid = server.post(f"{V3}/{kind}/email/requestToken", body).json["sid"]
        text = server.relay.emails[-1][1].get_body(("plain",))
        assert text is not None
        [link] = re.findall(r"https://matrix\.example\.org(/\S+)", text.get_content())
        secrets.shown.add(re.findall(r"token=(\w+)", link)[0])
        page = Browser(server)
        page.open(link.replace("token=", "token=x"))
        page.open(link)
        page.send()
        return {"sid": str(sid), "client_secret": secret}

    creds = letter("account/3pid", "client-secret-of-an-address")
    assert (
        bob.post(f"{V3}/account/3pid/add", {**creds, "auth": by_password("bob", password)}).status
        == 200
    )
    requested = {"new_password": secrets.password("reset")}
    asked = secrets.learn(server.post(f"{V3}/account/password", requested))
    creds = letter("account/password", "client-secret-of-a-reset")
    for secret, status in (
        (secrets.password("client-secret-of-somebody"), 401),
        (creds["client_secret"], 200),
    ):
        proof = {
            "type": "m.login.email.identity",
            "threepid_creds": {**creds, "client_secret": secret},
        }
        auth = {**proof, "session": asked.json["session"]}
        assert server.post(f"{V3}/account/password", {**requested, "auth": auth}).status == status


def use_the_oauth_api(server: TestServer, secrets: Secrets) -> None:
    password = secrets.password("alice")
    secrets.learn(
        server.post(
            f"{V3}/register",
            {"username": "alice", "password": password, "auth": {"type": "m.login.dummy"}},
        )
    )
    program, browser = Program(server), Browser(server)
    secrets.sessions.add("Secret-state")  # the state returns to the same browser
    browser.open(program.request(state="Secret-state"))
    browser.send("/_mahalla/sign_in", name="alice", password=secrets.password("wrong-on-the-page"))
    browser.send("/_mahalla/sign_in", name="alice", password=password)
    code = program.code(browser)
    secrets.shown.update({code, *browser.cookies.values()})
    verifier = secrets.password("verifier").ljust(43, "v")
    assert program.exchange(code, code_verifier=verifier).status == 400
    program.take(secrets.learn(program.exchange(program.code(browser))))
    stolen = str(program.tokens["refresh_token"])
    program.take(secrets.learn(program.refresh()))
    program.form(
        "introspection_endpoint",
        token=str(program.tokens["access_token"]),
        client_id="calendar",
        client_secret="x",
    )
    found = {"client_id": "calendar", "client_secret": "introspection-secret"}
    assert (
        program.form(
            "introspection_endpoint", token=str(program.tokens["access_token"]), **found
        ).status
        == 200
    )
    assert program.refresh(stolen).status == 400
    repeated = program.code(browser)
    secrets.shown.add(repeated)
    secrets.learn(program.exchange(repeated))
    assert program.exchange(repeated).status == 400
    program.form(
        "revocation_endpoint",
        token=str(program.tokens["access_token"]) + "x",
        client_id=program.client_id,
    )
    asked = secrets.learn(
        program.form(
            "device_authorization_endpoint", client_id=program.client_id, scope=program.scope
        )
    )
    browser.open(f"/_mahalla/link?user_code={asked.json['user_code']}")
    browser.send("/_mahalla/link", button="allow")
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    server.clock.advance(5)
    secrets.learn(program.token(grant_type=grant, device_code=asked.json["device_code"]))
    # the account page
    browser.open("/_mahalla/account/application_passwords")
    for typed in (secrets.password("not-hers"), password):
        form = next(form for form in browser.page.forms if form.fields.get("do") == "make")
        browser.post(form.action, {**form.fields, "name": "Bot", "days": "", "old_password": typed})
    made = re.findall(r"<code>(mhp_\w+)</code>", browser.text)
    assert made
    secrets.shown.update(made)
    assert secrets.learn(log_in(server, "alice", made[0])).status == 200
    assert log_in(server, "alice", made[0] + "x").status == 403
    program.take(secrets.learn(program.exchange(program.code(browser))))
    assert (
        program.form(
            "revocation_endpoint",
            token=str(program.tokens["access_token"]),
            client_id=program.client_id,
        ).status
        == 200
    )


def administer(server: TestServer, secrets: Secrets, database: Database) -> None:
    path = "/_synapse/admin/v1/register"
    nonce = server.get(path).json["nonce"]
    requested = {"username": "root", "password": secrets.password("root"), "admin": True}
    assert (
        server.post(path, {**requested, "nonce": nonce, "mac": secrets.password("mac")}).status
        == 403
    )
    root = server.register("root", secrets.password("root"))
    server.run(
        database.write("make_admin", AccountStore(database).set_flags, root.user_id, is_admin=True)
    )
    secrets.shown.add(root.token)
    of_carol = "/_synapse/admin/v2/users/@carol:example.org"
    assert root.put(of_carol, {"password": secrets.password("carol")}).status == 201
    assert root.put(of_carol, {"password": ["x", secrets.password("listed")]}).status == 400
    new = {"new_password": secrets.password("anew")}
    assert root.post("/_synapse/admin/v1/reset_password/@carol:example.org", new).status == 200
    token = {"token": secrets.password("registration"), "uses_allowed": 1}
    assert root.post("/_synapse/admin/v1/registration_tokens/new", token).status == 200
    assert root.post("/_synapse/admin/v1/registration_tokens/new", token).status == 400


def break_down(server: TestServer, secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Provoke unexpected errors, which are logged with a traceback."""

    async def fail(*_given: object) -> None:
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(server.app.accounts.passwords, "verify", fail)
        assert log_in(server, "alice", secrets.password("broken")).status == 500
        browser = Browser(server)
        browser.open(ACCOUNT)
        browser.send("/_mahalla/sign_in", name="alice", password=secrets.password("broken-page"))
        assert browser.status == 500


def test_no_secret_appears_in_logs_records_or_errors(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, secrets = TestServer(tmp_path, sqlite_database, FURTHER), Secrets()
    recorder = Recorder(server)
    with recorder.open(monkeypatch):
        use_the_older_api(server, secrets)
        use_the_oauth_api(server, secrets)
        administer(server, secrets, sqlite_database)
        break_down(server, secrets, monkeypatch)
    assert len(secrets.shown) > 50
    logs = recorder.logs()
    assert "out of order" in logs  # the recorder works
    assert "GET /_matrix/client/v3/account/whoami?access_token=…" in logs
    assert [secret for secret in secrets.shown | secrets.sessions if secret in logs] == []
    for path, pending in recorder.answers:
        if pending.answer.status >= 400:
            received = pending.answer.body.decode()
            assert [secret for secret in secrets.shown if secret in received] == [], path
    kept = server.run(dump_database(sqlite_database))  # audit records too
    assert kept.count("audit_records: ") > 20
    read_by_administrators = secrets.password("registration")
    assert [secret for secret in secrets.shown | secrets.sessions if secret in kept] == [
        read_by_administrators
    ]
