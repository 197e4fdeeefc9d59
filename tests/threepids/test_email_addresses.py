"""E-mail addresses: validation, registration, password reset, and sign-in."""

from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from msgspec.structs import replace

from homeserver.services.email.smtp import DeliveryFailed
from storage.engine.database import Database
from storage.threepids.threepids import ThreepidStore
from tests.helpers.audit_records import audit_records
from tests.helpers.database_dump import dump_database
from tests.helpers.email_addresses import (
    CLIENT_SECRET,
    EMAIL_CONFIG,
    add_email,
    confirm_on_page,
    email_auth,
    link_in_email,
    request_token,
    validate_email,
)
from tests.helpers.http import Answer
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"
MISLEADING = (
    "https://evil.example\\@good.example/",
    "https://good.example@evil.example/",
    "https:///evil.example/",
    "https:evil.example",
    "https://good.example\t.evil.example/",
)
"""URLs whose host depends on the program that parses them."""


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database, EMAIL_CONFIG)


def test_a_validated_address_is_added_at_registration(server: TestServer) -> None:
    creds = validate_email(server, "register")
    recipient, email_message = server.relay.emails[0]
    assert recipient == "alice@example.com"
    assert email_message["From"] == "Example <noreply@example.org>"
    assert email_message["Subject"] == "Confirm your e-mail address for example.org"
    html = email_message.get_body(("html",))
    assert html is not None
    assert link_in_email(server) in unescape(html.get_content())

    body = {"username": "alice", "password": "wonderland"}
    challenge = server.post(f"{V3}/register", body)
    assert {"stages": ["m.login.email.identity"]} in challenge.json["flows"]
    made = server.post(f"{V3}/register", {**body, "auth": email_auth(creds)})
    assert made.status == 200, made.body
    alice = User(server, made.json)
    [address] = alice.get(f"{V3}/account/3pid").json["threepids"]
    assert (address["medium"], address["address"]) == ("email", "alice@example.com")
    assert address["validated_at"] <= address["added_at"]
    second_use = server.post(
        f"{V3}/register", {"username": "bob", "password": "b", "auth": email_auth(creds)}
    )
    assert (second_use.status, second_use.errcode) == (401, "M_THREEPID_AUTH_FAILED")


def test_an_address_is_added_signs_in_and_is_removed(server: TestServer) -> None:
    alice = server.register("alice")
    assert alice.get(f"{V3}/capabilities").json["capabilities"]["m.3pid_changes"] == {
        "enabled": True
    }
    creds = validate_email(server, "account/3pid", " Alice@Example.COM ")
    challenge = alice.post(f"{V3}/account/3pid/add", creds)
    assert (challenge.status, challenge.json["flows"]) == (401, [{"stages": ["m.login.password"]}])
    assert (
        alice.post(f"{V3}/account/3pid/add", {**creds, "auth": password_auth("alice")}).status
        == 200
    )
    assert (
        alice.post(f"{V3}/account/3pid/add", {**creds, "auth": password_auth("alice")}).errcode
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


def test_a_validated_address_resets_the_password(server: TestServer) -> None:
    alice = server.register("alice")
    add_email(server, alice)
    body = {"new_password": "looking glass"}
    challenge = server.post(f"{V3}/account/password", body)
    assert (challenge.status, challenge.json["flows"]) == (
        401,
        [{"stages": ["m.login.email.identity"]}],
    )
    answer = request_token(server, "account/password")
    creds = {"sid": answer.json["sid"], "client_secret": CLIENT_SECRET}
    auth = {**email_auth(creds), "session": challenge.json["session"]}
    early = server.post(f"{V3}/account/password", {**body, "auth": auth})
    assert (early.status, early.errcode) == (401, "M_THREEPID_AUTH_FAILED")
    assert "new password" in server.relay.emails[-1][1]["Subject"]
    assert request_token(server, "account/password", send_attempt=2).status == 200
    assert audit_records(server)[-3:] == [
        ("address_added", "alice@example.com"),
        *[("password_reset_asked", "alice@example.com")] * 2,
    ]

    assert confirm_on_page(server, link_in_email(server)).status == 200
    assert server.post(f"{V3}/account/password", {**body, "auth": auth}).status == 200
    assert alice.get(f"{V3}/account/whoami").errcode == "M_UNKNOWN_TOKEN"
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
    assert server.post(f"{V3}/login", {**login, "password": "wonderland"}).status == 403
    assert server.post(f"{V3}/login", {**login, "password": "looking glass"}).status == 200


def test_a_suspended_user_can_add_but_not_remove_addresses(server: TestServer) -> None:
    alice = server.register("alice")
    add_email(server, alice)
    server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, suspended=True))
    add_email(server, alice, "second@example.com")
    known = [row["address"] for row in alice.get(f"{V3}/account/3pid").json["threepids"]]
    assert known == ["alice@example.com", "second@example.com"]
    for address in known:
        body = {"medium": "email", "address": address}
        refused = alice.post(f"{V3}/account/3pid/delete", body)
        assert (refused.status, refused.errcode) == (403, "M_USER_SUSPENDED")
        assert alice.post(f"{V3}/account/3pid/unbind", body).errcode == "M_USER_SUSPENDED"


def test_a_validation_is_valid_for_its_purpose_only(server: TestServer) -> None:
    alice = server.register("alice")
    add_email(server, alice)
    creds = validate_email(server, "register", "bob@example.com")
    bob = server.register("bob")
    refused = bob.post(f"{V3}/account/3pid/add", {**creds, "auth": password_auth("bob")})
    assert refused.errcode == "M_THREEPID_AUTH_FAILED"
    reset = validate_email(server, "account/password")
    assert (
        bob.post(f"{V3}/account/3pid/add", {**reset, "auth": password_auth("bob")}).errcode
        == "M_THREEPID_AUTH_FAILED"
    )
    wrong = {**reset, "client_secret": "another"}
    answer = server.post(f"{V3}/account/password", {"new_password": "x", "auth": email_auth(wrong)})
    assert (answer.status, answer.errcode) == (401, "M_THREEPID_AUTH_FAILED")


def test_an_address_belongs_to_one_account(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    creds = validate_email(server, "account/3pid", client_secret=CLIENT_SECRET)
    add_email(server, alice, "other@example.com")
    assert request_token(server, "account/3pid", "other@example.com").errcode == "M_THREEPID_IN_USE"
    assert request_token(server, "register", "other@example.com").errcode == "M_THREEPID_IN_USE"
    assert (
        request_token(server, "account/password", "nobody@example.com").errcode
        == "M_THREEPID_NOT_FOUND"
    )
    # Two users validate the same address; the first to add it gets it.
    second = validate_email(server, "register", "alice@example.com")
    assert (
        alice.post(f"{V3}/account/3pid/add", {**creds, "auth": password_auth("alice")}).status
        == 200
    )
    body = {"username": "carol", "password": "c", "auth": email_auth(second)}
    assert server.post(f"{V3}/register", body).errcode == "M_THREEPID_IN_USE"
    assert server.get(f"{V3}/register/available?username=carol").json == {"available": True}
    assert bob.get(f"{V3}/account/3pid").json == {"threepids": []}


def test_a_repeated_request_sends_no_second_email(server: TestServer) -> None:
    first = request_token(server, "register").json["sid"]
    assert request_token(server, "register").json["sid"] == first
    assert len(server.relay.emails) == 1
    old = link_in_email(server)
    assert request_token(server, "register", send_attempt=2).json["sid"] == first
    assert len(server.relay.emails) == 2
    # The second e-mail replaces the first one.
    assert server.get(old).status == 400
    assert confirm_on_page(server, link_in_email(server)).status == 200


def test_opening_the_page_validates_nothing(server: TestServer) -> None:
    sid = request_token(server, "register", next_link="https://app.example/go?on=1").json["sid"]
    page = server.get(link_in_email(server), headers={"Accept-Language": "uz"})
    assert "Bu sizning manzilingizmi?" in page.body.decode()
    assert "default-src 'none'" in page.headers["content-security-policy"]
    body = {
        "username": "alice",
        "password": "a",
        "auth": email_auth({"sid": sid, "client_secret": CLIENT_SECRET}),
    }
    assert server.post(f"{V3}/register", body).errcode == "M_THREEPID_AUTH_FAILED"
    done = confirm_on_page(server, link_in_email(server))
    assert 'href="https://app.example/go?on=1"' in done.body.decode()
    assert server.post(f"{V3}/register", body).status == 200


def test_next_link_is_limited_to_allowed_hosts(tmp_path: Path, sqlite_database: Database) -> None:
    further = "next_link_domain_whitelist: [app.example]\n"
    server = TestServer(tmp_path, sqlite_database, EMAIL_CONFIG + further)
    body = {"client_secret": CLIENT_SECRET, "email": "alice@example.com", "send_attempt": 1}
    for link in (
        "https://evil.example/",
        "https://app.example.evil.example/",
        "https://evil.example/app.example",
    ):
        answer = server.post(f"{V3}/register/email/requestToken", {**body, "next_link": link})
        assert answer.errcode == "M_INVALID_PARAM"
    request_token(server, "register", next_link="https://App.Example:8443/go")
    assert (
        "Continue to App.Example:8443"
        in confirm_on_page(server, link_in_email(server)).body.decode()
    )


def test_a_next_link_that_is_no_longer_allowed_is_not_shown(
    server: TestServer, database: Database
) -> None:
    """It was allowed when the e-mail was requested."""
    sid = request_token(server, "register", next_link="https://app.example/").json["sid"]
    store = ThreepidStore(database)
    row = server.run(store.get_validation(sid))
    assert row is not None
    server.run(database.write("t", store.set_validation, replace(row, next_link=MISLEADING[0])))
    done = confirm_on_page(server, link_in_email(server))
    assert done.status == 200
    assert "evil.example" not in done.body.decode()


def test_the_email_is_in_the_language_of_the_request(server: TestServer) -> None:
    body = {"client_secret": CLIENT_SECRET, "email": "a@example.com", "send_attempt": 1}
    server.post(
        f"{V3}/register/email/requestToken", body, headers={"Accept-Language": "ru-RU,ru;q=0.9"}
    )
    email_message = server.relay.emails[0][1]
    assert email_message["Subject"] == "Подтвердите адрес электронной почты для example.org"
    assert email_message["Content-Language"] == "ru"


def test_links_expire(server: TestServer) -> None:
    creds = validate_email(server, "register")
    request_token(server, "register", "bob@example.com")
    server.clock.advance(3601)
    assert server.get(link_in_email(server)).status == 400
    body = {"username": "alice", "password": "a", "auth": email_auth(creds)}
    assert server.post(f"{V3}/register", body).errcode == "M_THREEPID_AUTH_FAILED"
    server.clock.advance(3600)
    assert server.run(server.app.email.validations.do_sweep(10)) == 2


def test_invented_links_are_refused(server: TestServer) -> None:
    request_token(server, "register")
    path, query = (
        urlsplit(link_in_email(server)).path,
        parse_qs(urlsplit(link_in_email(server)).query),
    )
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
def test_malformed_requests_are_refused(server: TestServer, further: dict[str, str]) -> None:
    body = {"client_secret": CLIENT_SECRET, "email": "a@example.com", "send_attempt": 1, **further}
    answer = server.post(f"{V3}/register/email/requestToken", body)
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    assert not server.relay.emails


def test_an_email_is_retried_while_the_mail_server_is_away(server: TestServer) -> None:
    server.relay.failure = DeliveryFailed("no connection", permanent=False)
    assert request_token(server, "register").status == 200
    server.clock.advance(100)
    assert not server.relay.emails
    server.relay.failure = None
    server.clock.advance(4 * 3600)
    assert len(server.relay.emails) == 1


def test_an_email_to_a_refused_recipient_is_not_retried(server: TestServer) -> None:
    server.relay.failure = DeliveryFailed("550 no such user", permanent=True)
    request_token(server, "register")
    server.relay.failure = None
    server.clock.advance(5 * 3600)
    assert not server.relay.emails


def test_queued_emails_survive_a_restart(tmp_path: Path, database: Database) -> None:
    first = TestServer(tmp_path, database, EMAIL_CONFIG)
    first.relay.failure = DeliveryFailed("no connection", permanent=False)
    request_token(first, "register")
    second = TestServer(tmp_path, database, EMAIL_CONFIG, seed=2, now=first.clock.seconds() + 3600)
    second.app.email.start()
    assert len(second.relay.emails) == 1


def test_a_deactivated_account_frees_its_address(server: TestServer) -> None:
    alice = server.register("alice")
    add_email(server, alice)
    assert alice.post(f"{V3}/account/deactivate", {"auth": password_auth("alice")}).status == 200
    assert request_token(server, "register").status == 200


def test_registration_can_require_an_address_of_the_institution(
    tmp_path: Path, database: Database
) -> None:
    rules = (
        "registrations_require_3pid: [email]\nallowed_local_3pids: [{pattern:"
        " '[^@]+@uni\\.example'}]\n"
    )
    server = TestServer(tmp_path, database, EMAIL_CONFIG + rules)
    body = {"username": "alice", "password": "wonderland"}
    assert server.post(f"{V3}/register", body).json["flows"] == [
        {"stages": ["m.login.email.identity"]}
    ]
    assert server.post(f"{V3}/register", {**body, "auth": {"type": "m.login.dummy"}}).status == 401
    assert request_token(server, "register", "a@uni.example.org").errcode == "M_THREEPID_DENIED"
    creds = validate_email(server, "register", "a@uni.example")
    assert server.post(f"{V3}/register", {**body, "auth": email_auth(creds)}).status == 200


def test_the_current_rules_apply_to_earlier_validations(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, EMAIL_CONFIG)
    creds = validate_email(server, "register", "a@elsewhere.example")
    rules = (
        "registrations_require_3pid: [email]\nallowed_local_3pids: [{pattern:"
        " '[^@]+@uni\\.example'}]\n"
    )
    stricter = TestServer(tmp_path, sqlite_database, EMAIL_CONFIG + rules, seed=2)
    body = {"username": "alice", "password": "wonderland", "auth": email_auth(creds)}
    refused = stricter.post(f"{V3}/register", body)
    assert (refused.status, refused.errcode) == (401, "M_THREEPID_DENIED")


def test_a_server_can_hide_which_addresses_it_knows(tmp_path: Path, database: Database) -> None:
    server = TestServer(
        tmp_path, database, EMAIL_CONFIG + "request_token_inhibit_3pid_errors: true\n"
    )
    add_email(server, server.register("alice"))
    before = len(server.relay.emails)
    assert request_token(server, "account/password", "nobody@example.com").status == 200
    assert len(server.relay.emails) == before
    assert request_token(server, "register").status == 200
    assert server.relay.emails[-1][1]["Subject"] == "You already have an account on example.org"


def test_changes_of_addresses_can_be_disabled(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database, EMAIL_CONFIG + "enable_3pid_changes: false\n")
    alice = server.register("alice")
    creds = validate_email(server, "account/3pid")
    assert (
        alice.post(f"{V3}/account/3pid/add", {**creds, "auth": password_auth("alice")}).errcode
        == "M_FORBIDDEN"
    )
    removal = alice.post(
        f"{V3}/account/3pid/delete", {"medium": "email", "address": "a@example.com"}
    )
    assert removal.errcode == "M_FORBIDDEN"


def test_emails_are_rate_limited(tmp_path: Path, database: Database) -> None:
    limit = "rc_3pid_validation: {per_second: 0.001, burst_count: 3}\n"
    server = TestServer(
        tmp_path, database, EMAIL_CONFIG.replace("rc_3pid_validation: *unlimited\n", limit)
    )
    answers = [
        request_token(server, "register", send_attempt=attempt).status for attempt in range(1, 6)
    ]
    assert answers == [200, 200, 200, 429, 429]


def test_a_server_without_email_refuses_validations(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database)
    alice = server.register("alice")
    for kind in ("register", "account/3pid", "account/password"):
        assert request_token(server, kind).errcode == "M_THREEPID_MEDIUM_NOT_SUPPORTED"
    assert server.post(f"{V3}/account/password", {"new_password": "x"}).errcode == "M_MISSING_TOKEN"
    number = {
        "client_secret": CLIENT_SECRET,
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


def test_client_secrets_and_sessions_are_stored_as_hashes(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, EMAIL_CONFIG)
    add_email(server, server.register("alice"))
    challenge = server.post(f"{V3}/account/password", {"new_password": "looking glass"})
    secret, session = "of-this-client-alone", challenge.json["session"]
    answer = request_token(server, "account/password", client_secret=secret)
    assert confirm_on_page(server, link_in_email(server)).status == 200
    stored = server.run(dump_database(sqlite_database))
    assert (answer.json["sid"] in stored, secret in stored, session in stored) == (
        True,
        False,
        False,
    )
    auth = {**email_auth({"sid": answer.json["sid"], "client_secret": secret}), "session": session}
    assert (
        server.post(
            f"{V3}/account/password", {"new_password": "looking glass", "auth": auth}
        ).status
        == 200
    )
