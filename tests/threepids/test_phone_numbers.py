"""Telephone numbers: validation by a code, registration, password reset, and sign-in."""

import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest

from homeserver.config.load import ConfigError, load_config
from storage.engine.database import Database
from tests.helpers.http import Answer
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User
from tests.helpers.sms import SMSGateway

V3 = "/_matrix/client/v3"
URL = "https://sms.example.org/send"
CONFIG = f"""
public_baseurl: https://matrix.example.org/
sms_gateway: {{url: '{URL}', token: open sesame, sender: Example}}
rc_text_messages: {{per_number: *unlimited, per_address: *unlimited}}
"""
SECRET = "client_secret.0"
NUMBER = "998901234567"
OTHER = "998912345678"
GONE = "M_SESSION_EXPIRED"


@pytest.fixture
def gateway() -> SMSGateway:
    return SMSGateway()


@pytest.fixture
def server(tmp_path: Path, database: Database, gateway: SMSGateway) -> TestServer:
    return TestServer(tmp_path, database, CONFIG, web=gateway)


def request_code(server: TestServer, kind: str, number: str = NUMBER, **further: Any) -> Answer:
    body = {
        "client_secret": SECRET,
        "country": "",
        "phone_number": f"+{number}",
        "send_attempt": 1,
        **further,
    }
    return server.post(f"{V3}/{kind}/msisdn/requestToken", body)


def submit(server: TestServer, requested: Answer, code: str) -> Answer:
    url = requested.json["submit_url"]
    assert url.startswith("https://matrix.example.org/")
    body = {"sid": requested.json["sid"], "client_secret": SECRET, "token": code}
    return server.post(url.removeprefix("https://matrix.example.org"), body)


def validate(
    server: TestServer, gateway: SMSGateway, kind: str, number: str = NUMBER, **further: Any
) -> dict[str, str]:
    """Validate a number; return its `threepid_creds`."""
    requested = request_code(server, kind, number, **further)
    assert requested.status == 200, requested.body
    assert submit(server, requested, gateway.code).json == {"success": True}
    return {"sid": requested.json["sid"], "client_secret": SECRET}


def by_phone(creds: dict[str, str]) -> dict[str, object]:
    return {"type": "m.login.msisdn", "threepid_creds": creds}


def add(server: TestServer, gateway: SMSGateway, user: User, number: str = NUMBER) -> None:
    name = user.user_id[1:].partition(":")[0]
    creds = validate(server, gateway, "account/3pid", number)
    answer = user.post(f"{V3}/account/3pid/add", {**creds, "auth": password_auth(name)})
    assert answer.status == 200, answer.body


def login(server: TestServer, identifier: dict[str, str], password: str = "wonderland") -> Answer:
    return server.post(
        f"{V3}/login", {"type": "m.login.password", "identifier": identifier, "password": password}
    )


def test_a_validated_number_is_added_at_registration(
    server: TestServer, gateway: SMSGateway
) -> None:
    requested = request_code(server, "register", country="UZ", phone_number=" (90) 123-45-67")
    assert requested.json["msisdn"] == NUMBER
    url, headers, _ = gateway.requests[0]
    assert url == URL
    assert (headers["Authorization"], headers["Content-Type"]) == (
        "Bearer open sesame",
        "application/json",
    )
    assert gateway.last == {
        "to": f"+{NUMBER}",
        "from": "Example",
        "text": f"{gateway.code} is your code for example.org. Do not share it.",
    }
    creds = {"sid": requested.json["sid"], "client_secret": SECRET}
    body = {"username": "alice", "password": "wonderland"}
    flows = server.post(f"{V3}/register", body).json["flows"]
    assert flows == [{"stages": ["m.login.dummy"]}, {"stages": ["m.login.msisdn"]}]
    early = server.post(f"{V3}/register", {**body, "auth": by_phone(creds)})
    assert (early.status, early.errcode) == (401, "M_THREEPID_AUTH_FAILED")
    assert submit(server, requested, gateway.code).json == {"success": True}
    as_email = {"type": "m.login.email.identity", "threepid_creds": creds}
    assert server.post(f"{V3}/register", {**body, "auth": as_email}).status == 401
    made = server.post(f"{V3}/register", {**body, "auth": by_phone(creds)})
    assert made.status == 200, made.body
    [number] = User(server, made.json).get(f"{V3}/account/3pid").json["threepids"]
    assert (number["medium"], number["address"]) == ("msisdn", NUMBER)
    repeated = server.post(
        f"{V3}/register", {"username": "bob", "password": "b", "auth": by_phone(creds)}
    )
    assert (repeated.status, repeated.errcode) == (401, "M_THREEPID_AUTH_FAILED")


def test_a_number_is_added_signs_in_and_is_removed(server: TestServer, gateway: SMSGateway) -> None:
    alice = server.register("alice")
    assert alice.get(f"{V3}/capabilities").json["capabilities"]["m.3pid_changes"] == {
        "enabled": True
    }
    creds = validate(server, gateway, "account/3pid")
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

    typed = {"type": "m.id.phone", "country": "UZ", "phone": "90 123 45 67"}
    for identifier in (
        typed,
        {"type": "m.id.phone", "country": "GB", "phone": "+998 90 1234567"},
        {"type": "m.id.thirdparty", "medium": "msisdn", "address": NUMBER},
    ):
        assert login(server, identifier).json["user_id"] == alice.user_id
    assert login(server, typed, "wrong").errcode == "M_FORBIDDEN"
    assert login(server, {**typed, "phone": "91 234 56 78"}).errcode == "M_FORBIDDEN"
    assert login(server, {**typed, "phone": "alice"}).errcode == "M_FORBIDDEN"
    assert login(server, {**typed, "country": "\0"}).errcode == "M_FORBIDDEN"

    assert (
        alice.post(f"{V3}/account/3pid/delete", {"medium": "msisdn", "address": NUMBER}).status
        == 200
    )
    assert alice.get(f"{V3}/account/3pid").json == {"threepids": []}
    assert login(server, typed).errcode == "M_FORBIDDEN"


def test_a_validated_number_resets_the_password(server: TestServer, gateway: SMSGateway) -> None:
    alice = server.register("alice")
    add(server, gateway, alice)
    body = {"new_password": "looking glass"}
    challenge = server.post(f"{V3}/account/password", body)
    assert (challenge.status, challenge.json["flows"]) == (401, [{"stages": ["m.login.msisdn"]}])
    creds = validate(server, gateway, "account/password")
    assert "new password" in gateway.last["text"]
    assert server.post(f"{V3}/account/password", {**body, "auth": by_phone(creds)}).status == 200
    assert alice.get(f"{V3}/account/whoami").errcode == "M_UNKNOWN_TOKEN"
    identifier = {"type": "m.id.user", "user": "alice"}
    assert login(server, identifier).status == 403
    assert login(server, identifier, "looking glass").status == 200


def test_a_number_belongs_to_one_account_and_a_code_to_one_purpose(
    server: TestServer, gateway: SMSGateway
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    add(server, gateway, alice)
    assert request_code(server, "account/3pid").errcode == "M_THREEPID_IN_USE"
    assert request_code(server, "register").errcode == "M_THREEPID_IN_USE"
    assert request_code(server, "account/password", OTHER).errcode == "M_THREEPID_NOT_FOUND"
    assert len(gateway.requests) == 1
    creds = validate(server, gateway, "register", OTHER)
    assert (
        bob.post(f"{V3}/account/3pid/add", {**creds, "auth": password_auth("bob")}).errcode
        == "M_THREEPID_AUTH_FAILED"
    )


def test_a_code_is_limited_in_attempts_and_time(server: TestServer, gateway: SMSGateway) -> None:
    requested = request_code(server, "register")
    right = gateway.code
    wrong = f"{(int(right) + 1) % 1000000:06}"
    assert [submit(server, requested, wrong).errcode for _ in range(4)] == [
        "M_TOKEN_INCORRECT"
    ] * 3 + [GONE]
    assert submit(server, requested, right).errcode == GONE
    # A new code resets the attempts and invalidates the previous code.
    repeated = request_code(server, "register", send_attempt=2)
    assert repeated.json["sid"] == requested.json["sid"]
    assert submit(server, repeated, right).errcode == "M_TOKEN_INCORRECT"
    assert submit(server, repeated, f" {gateway.code[:3]} {gateway.code[3:]} ").status == 200
    server.clock.advance(601)
    auth = by_phone({"sid": requested.json["sid"], "client_secret": SECRET})
    late = server.post(f"{V3}/register", {"username": "alice", "password": "a", "auth": auth})
    assert late.errcode == "M_THREEPID_AUTH_FAILED"
    assert submit(server, repeated, gateway.code).errcode == GONE


def test_invented_codes_are_refused(server: TestServer, gateway: SMSGateway) -> None:
    requested = request_code(server, "register")
    path = requested.json["submit_url"].removeprefix("https://matrix.example.org")
    given = {"sid": requested.json["sid"], "client_secret": SECRET, "token": gateway.code}
    for further, errcode in (
        ({"sid": "x"}, GONE),
        ({"client_secret": "another"}, GONE),
        ({"sid": "\0"}, "M_INVALID_PARAM"),
        ({"client_secret": ""}, "M_INVALID_PARAM"),
        ({"token": ""}, "M_TOKEN_INCORRECT"),
        ({"token": 1}, "M_BAD_JSON"),
    ):
        answer = server.post(path, {**given, **further})
        assert (answer.status, answer.errcode) == (400, errcode), further
    assert server.post(path, given).status == 200


def test_a_repeated_request_sends_no_second_message(
    server: TestServer, gateway: SMSGateway
) -> None:
    first = request_code(server, "register").json["sid"]
    assert request_code(server, "register").json["sid"] == first
    assert len(gateway.requests) == 1


def test_a_message_that_the_gateway_refuses_can_be_requested_again(
    server: TestServer, gateway: SMSGateway
) -> None:
    gateway.status = 401
    assert request_code(server, "register").status == 503
    gateway.is_away = True
    assert request_code(server, "register").status == 503
    gateway.status, gateway.is_away = 200, False
    # The repeated request now sends its message.
    assert validate(server, gateway, "register")


def test_the_message_is_in_the_language_of_the_request(
    server: TestServer, gateway: SMSGateway
) -> None:
    body = {
        "client_secret": SECRET,
        "country": "UZ",
        "phone_number": "901234567",
        "send_attempt": 1,
    }
    server.post(
        f"{V3}/register/msisdn/requestToken", body, headers={"Accept-Language": "ru-RU,ru;q=0.9"}
    )
    assert (
        gateway.last["text"]
        == f"{gateway.code} — ваш код для example.org. Никому его не сообщайте."
    )


@pytest.mark.parametrize(
    "further",
    [
        {"phone_number": "nobody"},
        {"phone_number": "901234567"},
        {"phone_number": "9" * 500},
        {"phone_number": "+99890"},
        {"phone_number": "+442079460958"},  # a landline of London
        {"phone_number": "+449098790879"},  # a premium rate
        {"country": "\0", "phone_number": "901234567"},
        {"country": "XX", "phone_number": "901234567"},
        {"client_secret": "with space"},
        {"next_link": "javascript:alert(1)"},
    ],
)
def test_malformed_requests_are_refused(
    server: TestServer, gateway: SMSGateway, further: dict[str, str]
) -> None:
    answer = request_code(server, "register", **further)
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    assert not gateway.requests


def test_a_server_can_hide_which_numbers_it_knows(
    tmp_path: Path, database: Database, gateway: SMSGateway
) -> None:
    server = TestServer(
        tmp_path, database, CONFIG + "request_token_inhibit_3pid_errors: true\n", web=gateway
    )
    add(server, gateway, server.register("alice"))
    unknown = request_code(server, "account/password", OTHER)
    assert unknown.status == 200
    assert len(gateway.requests) == 1
    assert submit(server, unknown, "000000").errcode == "M_TOKEN_INCORRECT"
    gateway.status = 500
    assert request_code(server, "account/password").status == 200
    gateway.status = 200
    assert request_code(server, "register").status == 200
    assert "already" in gateway.last["text"]
    assert not re.search(r"\d{6}", gateway.last["text"])


def test_messages_to_a_number_are_rate_limited(
    tmp_path: Path, database: Database, gateway: SMSGateway
) -> None:
    limits = (
        "rc_text_messages: {per_number: {per_second: 0.001, burst_count: 2}, per_address:"
        " *unlimited}\n"
    )
    lines = [line for line in CONFIG.splitlines() if not line.startswith("rc_text_messages")]
    server = TestServer(tmp_path, database, "\n".join(lines) + "\n" + limits, web=gateway)
    answers = [
        request_code(server, "register", send_attempt=attempt).status for attempt in range(1, 4)
    ]
    assert answers == [200, 200, 429]
    assert request_code(server, "register", OTHER).status == 200


def test_the_daily_number_of_messages_is_limited(
    tmp_path: Path, database: Database, gateway: SMSGateway
) -> None:
    config = CONFIG.replace("sender: Example", "sender: Example, max_per_day: 2")
    server = TestServer(tmp_path, database, config, web=gateway)
    assert request_code(server, "register").status == 200
    assert request_code(server, "register", OTHER).status == 200
    # The count survives restarts and includes all nodes.
    second = TestServer(tmp_path, database, config, seed=2, now=server.clock.seconds(), web=gateway)
    refused = request_code(second, "register", OTHER, send_attempt=2)
    assert refused.errcode == "M_LIMIT_EXCEEDED"
    assert len(gateway.requests) == 2
    assert (
        second.registry.get_sample_value("mahalla_text_messages_total", {"outcome": "refused"}) == 1
    )
    second.clock.advance(refused.json["retry_after_ms"] / 1000 + 1)
    assert request_code(second, "register", OTHER, send_attempt=2).status == 200


def test_registration_can_require_a_number_of_a_country(
    tmp_path: Path, sqlite_database: Database, gateway: SMSGateway
) -> None:
    rules = (
        "registrations_require_3pid: [msisdn]\nallowed_local_3pids: [{medium: msisdn, pattern:"
        " '998[0-9]+'}]\n"
    )
    server = TestServer(tmp_path, sqlite_database, CONFIG + rules, web=gateway)
    body = {"username": "alice", "password": "wonderland"}
    assert server.post(f"{V3}/register", body).json["flows"] == [{"stages": ["m.login.msisdn"]}]
    assert server.post(f"{V3}/register", {**body, "auth": {"type": "m.login.dummy"}}).status == 401
    assert request_code(server, "register", "447400123456").errcode == "M_THREEPID_DENIED"
    creds = validate(server, gateway, "register")
    assert server.post(f"{V3}/register", {**body, "auth": by_phone(creds)}).status == 200


def test_numbers_can_be_disabled_for_registration(
    tmp_path: Path, sqlite_database: Database, gateway: SMSGateway
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + "disable_msisdn_registration: true\n", web=gateway
    )
    body = {"username": "alice", "password": "wonderland"}
    assert server.post(f"{V3}/register", body).json["flows"] == [{"stages": ["m.login.dummy"]}]
    assert request_code(server, "register").errcode == "M_THREEPID_MEDIUM_NOT_SUPPORTED"
    assert request_code(server, "account/3pid").status == 200


def test_no_message_is_sent_for_disabled_purposes(
    tmp_path: Path, sqlite_database: Database, gateway: SMSGateway
) -> None:
    closed = (
        "enable_registration: false\nenable_3pid_changes: false\npassword_config: {enabled:"
        " false}\n"
    )
    server = TestServer(tmp_path, sqlite_database, CONFIG + closed, web=gateway)
    for kind in ("register", "account/3pid", "account/password"):
        assert request_code(server, kind).errcode == "M_THREEPID_MEDIUM_NOT_SUPPORTED"
    assert not gateway.requests


def test_a_gateway_can_take_a_form(
    tmp_path: Path, sqlite_database: Database, gateway: SMSGateway
) -> None:
    section = f"sms_gateway: {{url: '{URL}', format: form, headers: {{X-Key: abc}}, "
    section += "body: {mobile_phone: '{number}', message: '{text}', ref: '{id}', unicode: 1}}\n"
    lines = [line for line in CONFIG.splitlines() if not line.startswith("sms_gateway")]
    server = TestServer(tmp_path, sqlite_database, "\n".join(lines) + "\n" + section, web=gateway)
    assert request_code(server, "register").status == 200
    _, headers, body = gateway.requests[0]
    assert (headers["X-Key"], headers["Content-Type"]) == (
        "abc",
        "application/x-www-form-urlencoded",
    )
    sent = parse_qs(body.decode())
    assert (sent["mobile_phone"], sent["unicode"]) == ([NUMBER], ["1"])
    assert "example.org" in sent["message"][0]
    assert len(sent["ref"][0]) == 24


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{url: 'http://sms.example.org/'}", "https://"),
        ("{url: 'https://sms.example.org/', body: {text: '{text}'}}", "{number}"),
        (
            "{url: 'https://sms.example.org/', format: form, body: {to: ['{number}'], text:"
            " '{text}'}}",
            "plain values",
        ),
        ("{url: 'https://sms.example.org/', headers: {Content-Length: '1'}}", "Content-Length"),
        ("{url: 'https://sms.example.org/', token: a, headers: {authorization: b}}", "headers"),
    ],
)
def test_invalid_gateways_are_refused(tmp_path: Path, wrong: str, message: str) -> None:
    path = tmp_path / "homeserver.yaml"
    path.write_text(
        f"server_name: example.org\npublic_baseurl: https://example.org\nsms_gateway: {wrong}\n"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config([path], {})


def test_the_fallback_page_validates_a_number(server: TestServer, gateway: SMSGateway) -> None:
    body = {"username": "alice", "password": "wonderland"}
    session = server.post(f"{V3}/register", body).json["session"]
    path = f"{V3}/auth/m.login.msisdn/fallback/web"
    page = server.get(f"{path}?{urlencode({'session': session})}")
    cookie = page.headers["set-cookie"].partition(";")[0]

    def send(page: Answer, **typed: str) -> Answer:
        fields = dict(
            re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.body.decode())
        )
        body = urlencode(
            {**{name: unescape(value) for name, value in fields.items()}, **typed}
        ).encode()
        return server.client.request("POST", path, body=body, headers={"Cookie": cookie})

    assert "This is not a mobile number" in send(page, number="90 123 45 67").body.decode()
    asks = send(page, number="+998 90 123 45 67")
    assert f"+{NUMBER}" in asks.body.decode()
    wrong = send(asks, code="12")
    assert (wrong.status, "The code is wrong" in wrong.body.decode()) == (400, True)
    assert send(wrong, code=gateway.code).status == 200
    assert server.post(f"{V3}/register", {**body, "auth": {"session": session}}).status == 200
