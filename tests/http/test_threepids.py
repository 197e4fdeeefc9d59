"""E-mail addresses: confirmed by a letter, for registration, for the account, for a forgotten
password, to sign in with."""

import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from msgspec.structs import replace

from homeserver.services.email.smtp import CannotDeliver
from storage.engine.database import Database
from storage.threepids.threepids import ThreepidStore
from tests.helpers.http import Answer
from tests.helpers.kept import read_everything
from tests.helpers.records import told
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"
MAIL = """
public_baseurl: https://matrix.example.org/
email: {smtp_host: mail.example.org, notif_from: "%(app)s <noreply@example.org>", app_name: Example}
rc_3pid_validation: *unlimited
"""
SECRET = "client_secret.0"
MISLEADING = (
    "https://evil.example\\@good.example/",
    "https://good.example@evil.example/",
    "https:///evil.example/",
    "https:evil.example",
    "https://good.example\t.evil.example/",
)
"""Addresses of which one program reads another host than the next."""


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database, MAIL)


def request_token(
    server: TestServer, kind: str, email: str = "alice@example.com", **further: Any
) -> Answer:
    body = {"client_secret": SECRET, "email": email, "send_attempt": 1, **further}
    return server.post(f"{V3}/{kind}/email/requestToken", body)


def link_in(server: TestServer, number: int = -1) -> str:
    """The path and query of the link in a letter."""
    _, letter = server.relay.letters[number]
    text = letter.get_body(("plain",))
    assert text is not None
    [link] = re.findall(r"https://matrix\.example\.org(/\S+)", text.get_content())
    return str(link)


def press(server: TestServer, link: str) -> Answer:
    """Open the page and press its button."""
    page = server.get(link)
    assert page.status == 200
    html = page.body.decode()
    action = re.search(r'<form method="post" action="([^"]+)">', html)
    assert action is not None
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', html))
    body = urlencode({name: unescape(value) for name, value in fields.items()}).encode()
    return server.client.request("POST", action[1], body=body)


def confirm(
    server: TestServer, kind: str, email: str = "alice@example.com", **further: Any
) -> dict[str, str]:
    """Credentials of an address that was confirmed."""
    answer = request_token(server, kind, email, **further)
    assert answer.status == 200, answer.body
    assert press(server, link_in(server)).status == 200
    return {"sid": answer.json["sid"], "client_secret": SECRET}


def by_email(creds: dict[str, str]) -> dict[str, object]:
    return {"type": "m.login.email.identity", "threepid_creds": creds}


def proof(name: str, password: str = "wonderland") -> dict[str, object]:
    return {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": name},
        "password": password,
    }


def add(server: TestServer, user: User, email: str = "alice@example.com") -> None:
    name = user.user_id[1:].partition(":")[0]
    answer = user.post(
        f"{V3}/account/3pid/add", {**confirm(server, "account/3pid", email), "auth": proof(name)}
    )
    assert answer.status == 200, answer.body


def test_an_account_with_a_confirmed_address(server: TestServer) -> None:
    creds = confirm(server, "register")
    recipient, letter = server.relay.letters[0]
    assert recipient == "alice@example.com"
    assert letter["From"] == "Example <noreply@example.org>"
    assert letter["Subject"] == "Confirm your e-mail address for example.org"
    html = letter.get_body(("html",))
    assert html is not None
    assert link_in(server) in unescape(html.get_content())

    wish = {"username": "alice", "password": "wonderland"}
    asked = server.post(f"{V3}/register", wish)
    assert {"stages": ["m.login.email.identity"]} in asked.json["flows"]
    made = server.post(f"{V3}/register", {**wish, "auth": by_email(creds)})
    assert made.status == 200, made.body
    alice = User(server, made.json)
    [address] = alice.get(f"{V3}/account/3pid").json["threepids"]
    assert (address["medium"], address["address"]) == ("email", "alice@example.com")
    assert address["validated_at"] <= address["added_at"]
    again = server.post(
        f"{V3}/register", {"username": "bob", "password": "b", "auth": by_email(creds)}
    )
    assert (again.status, again.errcode) == (401, "M_THREEPID_AUTH_FAILED")


def test_an_address_is_added_and_signs_in_and_is_removed(server: TestServer) -> None:
    alice = server.register("alice")
    assert alice.get(f"{V3}/capabilities").json["capabilities"]["m.3pid_changes"] == {
        "enabled": True
    }
    creds = confirm(server, "account/3pid", " Alice@Example.COM ")
    asked = alice.post(f"{V3}/account/3pid/add", creds)
    assert (asked.status, asked.json["flows"]) == (401, [{"stages": ["m.login.password"]}])
    assert alice.post(f"{V3}/account/3pid/add", {**creds, "auth": proof("alice")}).status == 200
    assert (
        alice.post(f"{V3}/account/3pid/add", {**creds, "auth": proof("alice")}).errcode
        == "M_THREEPID_AUTH_FAILED"
    )

    def login(address: str, password: str = "wonderland") -> Answer:
        identifier = {"type": "m.id.thirdparty", "medium": "email", "address": address}
        return server.post(
            f"{V3}/login",
            {"type": "m.login.password", "identifier": identifier, "password": password},
        )

    assert login("ALICE@example.com").json["user_id"] == alice.user_id
    assert login("alice@example.com", "wrong").errcode == "M_FORBIDDEN"
    assert login("nobody@example.com").errcode == "M_FORBIDDEN"
    older = {
        "type": "m.login.password",
        "medium": "email",
        "address": "alice@example.com",
        "password": "wonderland",
    }
    assert server.post(f"{V3}/login", older).status == 200

    removed = alice.post(
        f"{V3}/account/3pid/delete", {"medium": "email", "address": "alice@EXAMPLE.com"}
    )
    assert removed.json == {"id_server_unbind_result": "no-support"}
    assert alice.get(f"{V3}/account/3pid").json == {"threepids": []}
    assert login("alice@example.com").errcode == "M_FORBIDDEN"


def test_a_forgotten_password(server: TestServer) -> None:
    alice = server.register("alice")
    add(server, alice)
    wish = {"new_password": "looking glass"}
    asked = server.post(f"{V3}/account/password", wish)
    assert (asked.status, asked.json["flows"]) == (401, [{"stages": ["m.login.email.identity"]}])
    answer = request_token(server, "account/password")
    creds = {"sid": answer.json["sid"], "client_secret": SECRET}
    auth = {**by_email(creds), "session": asked.json["session"]}
    early = server.post(f"{V3}/account/password", {**wish, "auth": auth})
    assert (early.status, early.errcode) == (401, "M_THREEPID_AUTH_FAILED")
    assert "new password" in server.relay.letters[-1][1]["Subject"]
    assert request_token(server, "account/password", send_attempt=2).status == 200
    assert told(server)[-3:] == [
        ("address_added", "alice@example.com"),
        *[("password_reset_asked", "alice@example.com")] * 2,
    ]

    assert press(server, link_in(server)).status == 200
    assert server.post(f"{V3}/account/password", {**wish, "auth": auth}).status == 200
    assert alice.get(f"{V3}/account/whoami").errcode == "M_UNKNOWN_TOKEN"
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
    assert server.post(f"{V3}/login", {**login, "password": "wonderland"}).status == 403
    assert server.post(f"{V3}/login", {**login, "password": "looking glass"}).status == 200


def test_who_is_suspended_adds_addresses_and_removes_none(server: TestServer) -> None:
    alice = server.register("alice")
    add(server, alice)
    server.run(server.app.people.accounts.do_set_flags(alice.user_id, suspended=True))
    add(server, alice, "second@example.com")
    known = [row["address"] for row in alice.get(f"{V3}/account/3pid").json["threepids"]]
    assert known == ["alice@example.com", "second@example.com"]
    for address in known:
        body = {"medium": "email", "address": address}
        refused = alice.post(f"{V3}/account/3pid/delete", body)
        assert (refused.status, refused.errcode) == (403, "M_USER_SUSPENDED")
        assert alice.post(f"{V3}/account/3pid/unbind", body).errcode == "M_USER_SUSPENDED"


def test_a_letter_serves_its_own_purpose(server: TestServer) -> None:
    alice = server.register("alice")
    add(server, alice)
    creds = confirm(server, "register", "bob@example.com")
    bob = server.register("bob")
    refused = bob.post(f"{V3}/account/3pid/add", {**creds, "auth": proof("bob")})
    assert refused.errcode == "M_THREEPID_AUTH_FAILED"
    reset = confirm(server, "account/password")
    assert (
        bob.post(f"{V3}/account/3pid/add", {**reset, "auth": proof("bob")}).errcode
        == "M_THREEPID_AUTH_FAILED"
    )
    wrong = {**reset, "client_secret": "another"}
    answer = server.post(f"{V3}/account/password", {"new_password": "x", "auth": by_email(wrong)})
    assert (answer.status, answer.errcode) == (401, "M_THREEPID_AUTH_FAILED")


def test_an_address_is_one_account_s(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    creds = confirm(server, "account/3pid", client_secret=SECRET)
    add(server, alice, "other@example.com")
    assert request_token(server, "account/3pid", "other@example.com").errcode == "M_THREEPID_IN_USE"
    assert request_token(server, "register", "other@example.com").errcode == "M_THREEPID_IN_USE"
    assert (
        request_token(server, "account/password", "nobody@example.com").errcode
        == "M_THREEPID_NOT_FOUND"
    )
    # Two confirm the same address; who comes first has it.
    second = confirm(server, "register", "alice@example.com")
    assert alice.post(f"{V3}/account/3pid/add", {**creds, "auth": proof("alice")}).status == 200
    wish = {"username": "carol", "password": "c", "auth": by_email(second)}
    assert server.post(f"{V3}/register", wish).errcode == "M_THREEPID_IN_USE"
    assert server.get(f"{V3}/register/available?username=carol").json == {"available": True}
    assert bob.get(f"{V3}/account/3pid").json == {"threepids": []}


def test_a_repeated_request_sends_no_second_letter(server: TestServer) -> None:
    first = request_token(server, "register").json["sid"]
    assert request_token(server, "register").json["sid"] == first
    assert len(server.relay.letters) == 1
    old = link_in(server)
    assert request_token(server, "register", send_attempt=2).json["sid"] == first
    assert len(server.relay.letters) == 2
    # The later letter takes the place of the earlier one.
    assert server.get(old).status == 400
    assert press(server, link_in(server)).status == 200


def test_looking_at_the_page_confirms_nothing(server: TestServer) -> None:
    sid = request_token(server, "register", next_link="https://app.example/go?on=1").json["sid"]
    page = server.get(link_in(server), headers={"Accept-Language": "uz"})
    assert "Bu sizning manzilingizmi?" in page.body.decode()
    assert "default-src 'none'" in page.headers["content-security-policy"]
    wish = {
        "username": "alice",
        "password": "a",
        "auth": by_email({"sid": sid, "client_secret": SECRET}),
    }
    assert server.post(f"{V3}/register", wish).errcode == "M_THREEPID_AUTH_FAILED"
    done = press(server, link_in(server))
    assert 'href="https://app.example/go?on=1"' in done.body.decode()
    assert server.post(f"{V3}/register", wish).status == 200


def test_hosts_that_people_may_be_led_on_to(tmp_path: Path, sqlite_database: Database) -> None:
    further = "next_link_domain_whitelist: [app.example]\n"
    server = TestServer(tmp_path, sqlite_database, MAIL + further)
    body = {"client_secret": SECRET, "email": "alice@example.com", "send_attempt": 1}
    for link in (
        "https://evil.example/",
        "https://app.example.evil.example/",
        "https://evil.example/app.example",
    ):
        answer = server.post(f"{V3}/register/email/requestToken", {**body, "next_link": link})
        assert answer.errcode == "M_INVALID_PARAM"
    request_token(server, "register", next_link="https://App.Example:8443/go")
    assert "Continue to App.Example:8443" in press(server, link_in(server)).body.decode()


def test_where_a_letter_of_before_leads(server: TestServer, database: Database) -> None:
    """It was asked for when the address was taken."""
    sid = request_token(server, "register", next_link="https://app.example/").json["sid"]
    store = ThreepidStore(database)
    row = server.run(store.get_validation(sid))
    assert row is not None
    server.run(database.write("t", store.set_validation, replace(row, next_link=MISLEADING[0])))
    done = press(server, link_in(server))
    assert done.status == 200
    assert "evil.example" not in done.body.decode()


def test_a_letter_in_the_reader_s_language(server: TestServer) -> None:
    body = {"client_secret": SECRET, "email": "a@example.com", "send_attempt": 1}
    server.post(
        f"{V3}/register/email/requestToken", body, headers={"Accept-Language": "ru-RU,ru;q=0.9"}
    )
    letter = server.relay.letters[0][1]
    assert letter["Subject"] == "Подтвердите адрес электронной почты для example.org"
    assert letter["Content-Language"] == "ru"


def test_links_grow_old(server: TestServer) -> None:
    creds = confirm(server, "register")
    request_token(server, "register", "bob@example.com")
    server.clock.advance(3601)
    assert server.get(link_in(server)).status == 400
    wish = {"username": "alice", "password": "a", "auth": by_email(creds)}
    assert server.post(f"{V3}/register", wish).errcode == "M_THREEPID_AUTH_FAILED"
    server.clock.advance(3600)
    assert server.run(server.app.mail.validations.do_sweep(10)) == 2


def test_links_that_were_made_up(server: TestServer) -> None:
    request_token(server, "register")
    path, query = urlsplit(link_in(server)).path, parse_qs(urlsplit(link_in(server)).query)
    for sid, token in (
        ("", ""),
        (query["sid"][0], "x"),
        ("x", query["token"][0]),
        ("\0", "\0"),
        ("é" * 300, "é"),
    ):
        assert server.get(f"{path}?{urlencode({'sid': sid, 'token': token})}").status == 400
        body = urlencode({"sid": sid, "token": token}).encode()
        assert server.client.request("POST", path, body=body).status == 400
    assert server.client.request("POST", path, body=b"\xff&&&&=%zz").status == 400
    assert server.client.request("POST", path, body=b"&" * 4000).status == 400


@pytest.mark.parametrize(
    "further",
    [
        {"email": "nobody"},
        {"email": "a b@example.com"},
        {"email": "a@example.com\r\nBcc: x@example.com"},
        {"email": "a@example.com, b@example.com"},
        {"email": "a" * 300 + "@example.com"},
        {"client_secret": "with space"},
        {"client_secret": ""},
        {"next_link": "javascript:alert(1)"},
        *({"next_link": link} for link in MISLEADING),
    ],
)
def test_requests_that_are_refused(server: TestServer, further: dict[str, str]) -> None:
    body = {"client_secret": SECRET, "email": "a@example.com", "send_attempt": 1, **further}
    answer = server.post(f"{V3}/register/email/requestToken", body)
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    assert not server.relay.letters


def test_a_mail_server_that_is_away(server: TestServer) -> None:
    server.relay.failure = CannotDeliver("no connection", for_good=False)
    assert request_token(server, "register").status == 200
    server.clock.advance(100)
    assert not server.relay.letters
    server.relay.failure = None
    server.clock.advance(4 * 3600)
    assert len(server.relay.letters) == 1


def test_a_recipient_that_is_refused_is_given_up(server: TestServer) -> None:
    server.relay.failure = CannotDeliver("550 no such user", for_good=True)
    request_token(server, "register")
    server.relay.failure = None
    server.clock.advance(5 * 3600)
    assert not server.relay.letters


def test_letters_survive_a_restart(tmp_path: Path, database: Database) -> None:
    first = TestServer(tmp_path, database, MAIL)
    first.relay.failure = CannotDeliver("no connection", for_good=False)
    request_token(first, "register")
    second = TestServer(tmp_path, database, MAIL, seed=2, now=first.clock.seconds() + 3600)
    second.app.mail.start()
    assert len(second.relay.letters) == 1


def test_a_closed_account_gives_its_address_back(server: TestServer) -> None:
    alice = server.register("alice")
    add(server, alice)
    assert alice.post(f"{V3}/account/deactivate", {"auth": proof("alice")}).status == 200
    assert request_token(server, "register").status == 200


def test_a_server_that_wants_addresses_of_the_institution(
    tmp_path: Path, database: Database
) -> None:
    rules = "registrations_require_3pid: [email]\nallowed_local_3pids: [{pattern: '[^@]+@uni\\.example'}]\n"
    server = TestServer(tmp_path, database, MAIL + rules)
    wish = {"username": "alice", "password": "wonderland"}
    assert server.post(f"{V3}/register", wish).json["flows"] == [
        {"stages": ["m.login.email.identity"]}
    ]
    assert server.post(f"{V3}/register", {**wish, "auth": {"type": "m.login.dummy"}}).status == 401
    assert request_token(server, "register", "a@uni.example.org").errcode == "M_THREEPID_DENIED"
    creds = confirm(server, "register", "a@uni.example")
    assert server.post(f"{V3}/register", {**wish, "auth": by_email(creds)}).status == 200


def test_the_rules_of_now_count(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, MAIL)
    creds = confirm(server, "register", "a@elsewhere.example")
    rules = "registrations_require_3pid: [email]\nallowed_local_3pids: [{pattern: '[^@]+@uni\\.example'}]\n"
    stricter = TestServer(tmp_path, sqlite_database, MAIL + rules, seed=2)
    wish = {"username": "alice", "password": "wonderland", "auth": by_email(creds)}
    refused = stricter.post(f"{V3}/register", wish)
    assert (refused.status, refused.errcode) == (401, "M_THREEPID_DENIED")


def test_a_server_that_does_not_tell_which_addresses_it_knows(
    tmp_path: Path, database: Database
) -> None:
    server = TestServer(tmp_path, database, MAIL + "request_token_inhibit_3pid_errors: true\n")
    add(server, server.register("alice"))
    before = len(server.relay.letters)
    assert request_token(server, "account/password", "nobody@example.com").status == 200
    assert len(server.relay.letters) == before
    assert request_token(server, "register").status == 200
    assert server.relay.letters[-1][1]["Subject"] == "You already have an account on example.org"


def test_people_who_may_not_change_their_addresses(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database, MAIL + "enable_3pid_changes: false\n")
    alice = server.register("alice")
    creds = confirm(server, "account/3pid")
    assert (
        alice.post(f"{V3}/account/3pid/add", {**creds, "auth": proof("alice")}).errcode
        == "M_FORBIDDEN"
    )
    removal = alice.post(
        f"{V3}/account/3pid/delete", {"medium": "email", "address": "a@example.com"}
    )
    assert removal.errcode == "M_FORBIDDEN"


def test_letters_are_limited(tmp_path: Path, database: Database) -> None:
    limit = "rc_3pid_validation: {per_second: 0.001, burst_count: 3}\n"
    server = TestServer(tmp_path, database, MAIL.replace("rc_3pid_validation: *unlimited\n", limit))
    answers = [
        request_token(server, "register", send_attempt=attempt).status for attempt in range(1, 6)
    ]
    assert answers == [200, 200, 200, 429, 429]


def test_a_server_without_mail(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database)
    alice = server.register("alice")
    for kind in ("register", "account/3pid", "account/password"):
        assert request_token(server, kind).errcode == "M_THREEPID_MEDIUM_NOT_SUPPORTED"
    assert server.post(f"{V3}/account/password", {"new_password": "x"}).errcode == "M_MISSING_TOKEN"
    number = {
        "client_secret": SECRET,
        "country": "UZ",
        "phone_number": "90 123 45 67",
        "send_attempt": 1,
    }
    assert (
        server.post(f"{V3}/register/msisdn/requestToken", number).errcode
        == "M_THREEPID_MEDIUM_NOT_SUPPORTED"
    )
    bind = {
        "sid": "1",
        "client_secret": "x",
        "id_server": "identity.example.org",
        "id_access_token": "x",
    }
    assert alice.post(f"{V3}/account/3pid/bind", bind).errcode == "M_SERVER_NOT_TRUSTED"
    unbound = alice.post(
        f"{V3}/account/3pid/unbind", {"medium": "email", "address": "a@example.com"}
    )
    assert unbound.json == {"id_server_unbind_result": "no-support"}
    assert alice.get(f"{V3}/capabilities").json["capabilities"]["m.3pid_changes"] == {
        "enabled": False
    }


def test_what_confirms_is_kept_as_a_hash(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, MAIL)
    add(server, server.register("alice"))
    asked = server.post(f"{V3}/account/password", {"new_password": "looking glass"})
    secret, session = "of-this-client-alone", asked.json["session"]
    answer = request_token(server, "account/password", client_secret=secret)
    assert press(server, link_in(server)).status == 200
    kept = server.run(read_everything(sqlite_database))
    assert (answer.json["sid"] in kept, secret in kept, session in kept) == (True, False, False)
    auth = {**by_email({"sid": answer.json["sid"], "client_secret": secret}), "session": session}
    assert (
        server.post(
            f"{V3}/account/password", {"new_password": "looking glass", "auth": auth}
        ).status
        == 200
    )
