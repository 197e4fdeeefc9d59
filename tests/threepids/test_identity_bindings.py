"""Bindings of addresses at an identity server: bind, unbind, retry, and the end of the account."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError
from federation.protocol.request_signing import encode_request, parse_authorization
from federation.protocol.signing import SigningKey
from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.threepids.identity_bindings import IdentityBindingRow, IdentityBindingStore
from storage.threepids.threepids import ThreepidRow, ThreepidStore
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User

URL = "https://identity.example.org"
HOST = "identity.example.org"
IDENTITY = f"default_identity_server: {URL}/\n"
CONFIG = f"{IDENTITY}rc_3pid_validation: *unlimited\n"
V3 = "/_matrix/client/v3/account"
BIND = {"sid": "17", "client_secret": "secret", "id_server": HOST, "id_access_token": "theirs"}
ADDRESS = {"medium": "email", "address": "alice@example.com"}


class IdentityServer:
    """An identity server with one validated session. `answer`: returned or raised instead."""

    def __init__(self) -> None:
        self.bound: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.answer: tuple[int, bytes] | OutboundError | None = None

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        seconds: float = 30,
        max_bytes: int = 1 << 20,
        redirects: int = 0,
        only_https: bool = False,
    ) -> WebResponse:
        content = json.loads(body)
        self.requests.append((url, dict(headers)["Authorization"], content))
        if isinstance(self.answer, OutboundError):
            raise self.answer
        if self.answer is not None:
            return WebResponse(url, self.answer[0], {}, self.answer[1])
        if url == f"{URL}/_matrix/identity/v2/3pid/bind":
            self.bound.append(content)
            return WebResponse(
                url, 200, {}, json.dumps({**ADDRESS, "mxid": content["mxid"], "ts": 1}).encode()
            )
        assert url == f"{URL}/_matrix/identity/v2/3pid/unbind"
        self.bound = [each for each in self.bound if each["mxid"] != content["mxid"]]
        return WebResponse(url, 200, {}, b"{}")


@pytest.fixture
def identity() -> IdentityServer:
    return IdentityServer()


@pytest.fixture
def server(tmp_path: Path, database: Database, identity: IdentityServer) -> TestServer:
    return TestServer(tmp_path, database, CONFIG, web=identity)


def unbind(user: User, **further: str) -> Any:
    answer = user.post(f"{V3}/3pid/unbind", {**ADDRESS, **further})
    assert answer.status == 200, answer.body
    return answer.json["id_server_unbind_result"]


def test_an_address_is_bound_and_unbound(
    server: TestServer, alice: User, identity: IdentityServer
) -> None:
    assert unbind(alice) == "no-support"
    assert alice.post(f"{V3}/3pid/bind", BIND).status == 200
    _, authorization, body = identity.requests[-1]
    assert (authorization, body["mxid"]) == ("Bearer theirs", alice.user_id)
    assert unbind(server.register("bob")) == "no-support"
    assert unbind(alice, id_server="elsewhere.example.org") == "no-support"
    assert unbind(alice, address="Alice@Example.com") == "success"
    _, authorization, body = identity.requests[-1]
    assert body == {"mxid": alice.user_id, "threepid": ADDRESS}
    signed = parse_authorization(authorization)
    assert (signed.origin, signed.destination) == ("example.org", HOST)
    signed_bytes = encode_request(
        method="POST",
        uri="/_matrix/identity/v2/3pid/unbind",
        origin="example.org",
        destination=HOST,
        content=body,
    )
    assert signed.signature == SigningKey("a_test", bytes(32)).sign(signed_bytes)
    assert unbind(alice) == "no-support"
    assert len(identity.requests) == 2
    bound = [record for record in audit_records(server) if record[0].endswith("bound")]
    assert bound == [("address_bound", ADDRESS["address"]), ("address_unbound", ADDRESS["address"])]


def test_a_bound_number_is_unbound_when_it_is_deleted(
    alice: User, identity: IdentityServer
) -> None:
    number = {"medium": "msisdn", "address": "998901234567"}
    identity.answer = (200, json.dumps(number).encode())
    assert alice.post(f"{V3}/3pid/bind", BIND).status == 200
    identity.answer = None
    assert alice.post(f"{V3}/3pid/delete", number).json == {"id_server_unbind_result": "success"}
    assert identity.requests[-1][2] == {"mxid": alice.user_id, "threepid": number}


def test_only_the_configured_identity_server_is_asked(
    tmp_path: Path, sqlite_database: Database, alice: User, identity: IdentityServer
) -> None:
    assert (
        alice.post(f"{V3}/3pid/bind", {**BIND, "id_server": "elsewhere.example.org"}).errcode
        == "M_SERVER_NOT_TRUSTED"
    )
    assert (
        alice.post(f"{V3}/3pid/bind", {**BIND, "id_access_token": "a\r\nb"}).errcode
        == "M_SERVER_NOT_TRUSTED"
    )
    assert alice.post(f"{V3}/3pid", {"three_pid_creds": BIND}).errcode == "M_SERVER_NOT_TRUSTED"
    none = TestServer(tmp_path, sqlite_database, web=identity, seed=2)
    assert none.register("carol").post(f"{V3}/3pid/bind", BIND).errcode == "M_SERVER_NOT_TRUSTED"
    assert identity.requests == []


@pytest.mark.parametrize(
    ("answer", "status", "errcode"),
    [
        (
            (400, b'{"errcode": "M_SESSION_NOT_VALIDATED", "error": "Confirm it first"}'),
            400,
            "M_SESSION_NOT_VALIDATED",
        ),
        ((403, b'{"errcode": "M_TERMS_NOT_SIGNED"}'), 400, "M_TERMS_NOT_SIGNED"),
        # about the token of the identity server: clients would take it for the end of their session
        # on this server
        (
            (401, b'{"errcode": "M_UNKNOWN_TOKEN", "error": "Unrecognised access token"}'),
            502,
            "M_UNKNOWN",
        ),
        ((403, b'{"errcode": "M_USER_DEACTIVATED"}'), 502, "M_UNKNOWN"),
        ((400, b'{"errcode": "what is it"}'), 502, "M_UNKNOWN"),
        ((500, b"<html>"), 502, "M_UNKNOWN"),
        ((500, b'{"errcode": "\xff"}'), 502, "M_UNKNOWN"),
        ((200, b"[]"), 502, "M_UNKNOWN"),
        ((200, b'{"medium": "email", "address": "\xff"}'), 502, "M_UNKNOWN"),
        ((200, b'{"medium": "email", "address": "' + b"x" * 300 + b'"}'), 502, "M_UNKNOWN"),
        (OutboundError("it is down"), 502, "M_UNKNOWN"),
    ],
)
def test_errors_about_the_address_are_passed_on(
    alice: User, identity: IdentityServer, answer: Any, status: int, errcode: str
) -> None:
    identity.answer = answer
    refused = alice.post(f"{V3}/3pid/bind", BIND)
    assert (refused.status, refused.errcode) == (status, errcode)
    identity.answer = None
    assert unbind(alice) == "no-support"


def test_a_failed_unbind_keeps_the_binding(alice: User, identity: IdentityServer) -> None:
    assert alice.post(f"{V3}/3pid/bind", BIND).status == 200
    for answer, result in (
        ((404, b"<html>"), "no-support"),
        ((404, b'{"errcode": "\xff"}'), "no-support"),
        ((501, b""), "no-support"),
    ):
        identity.answer = answer
        assert unbind(alice) == result
    identity.answer = (403, b'{"errcode": "M_FORBIDDEN", "error": "Invalid homeserver signature"}')
    assert alice.post(f"{V3}/3pid/unbind", ADDRESS).status == 502
    removed = alice.post(f"{V3}/3pid/delete", ADDRESS)
    assert (removed.status, removed.json) == (200, {"id_server_unbind_result": "no-support"})
    identity.answer = None
    assert alice.post(f"{V3}/3pid/delete", ADDRESS).json == {"id_server_unbind_result": "success"}
    assert identity.bound == []


def deactivate(user: User) -> Any:
    proof = password_auth(user.user_id)
    ended = user.post(f"{V3}/deactivate", {"auth": proof})
    assert ended.status == 200, ended.body
    return ended.json["id_server_unbind_result"]


def unbind_due(server: TestServer, minutes: int) -> int:
    """Advance the clock, then run the job."""
    server.clock.advance(60 * minutes)
    return server.run(server.app.user_data.bindings.do_unbind_due(10))


def test_a_deactivated_account_is_unbound(
    server: TestServer, alice: User, identity: IdentityServer
) -> None:
    assert alice.post(f"{V3}/3pid/bind", BIND).status == 200
    assert deactivate(alice) == "success"
    assert identity.bound == []
    assert unbind_due(server, 60) == 0


@pytest.mark.parametrize(
    "failure",
    [
        OutboundError("it is down"),
        (404, b"<html>"),
        (403, b'{"errcode": "M_FORBIDDEN", "error": "No"}'),
    ],
)
def test_a_failed_unbind_of_a_deactivated_account_is_retried(
    server: TestServer, alice: User, identity: IdentityServer, failure: Any
) -> None:
    bob = server.register("bob")
    for each in (alice, bob):
        assert each.post(f"{V3}/3pid/bind", BIND).status == 200
    identity.answer = failure
    assert deactivate(alice) == "no-support"
    attempts = [unbind_due(server, minutes) for minutes in (4, 1, 4, 1, 9, 1, 19, 1)]
    assert attempts == [0, 1, 0, 1, 0, 1, 0, 1]  # after 5, 5, 10, 20 minutes
    identity.answer = None
    assert unbind_due(server, 40) == 1
    assert [each["mxid"] for each in identity.bound] == [bob.user_id]  # his account is active
    assert unbind_due(server, 24 * 60) == 0


def test_retries_to_unbind_end_after_a_month(
    server: TestServer, alice: User, identity: IdentityServer
) -> None:
    assert alice.post(f"{V3}/3pid/bind", BIND).status == 200
    identity.answer = OutboundError("it is down")
    deactivate(alice)
    attempts = 0
    while unbind_due(server, 24 * 60):
        attempts += 1
        assert attempts < 50
    assert attempts > 30


def test_an_unreachable_identity_server_is_asked_once_per_run(
    server: TestServer, identity: IdentityServer
) -> None:
    people = [server.register(f"p{number}") for number in range(3)]
    for each in people:
        assert each.post(f"{V3}/3pid/bind", BIND).status == 200
    identity.answer = OutboundError("it is down")
    for each in people:
        deactivate(each)
    identity.requests.clear()
    assert unbind_due(server, 5) == 1
    assert len(identity.requests) == 1
    identity.answer = None
    assert unbind_due(server, 5) == 3
    assert identity.bound == []


AWAY = OutboundError("it is down")


@pytest.mark.parametrize("way", ["deleted", "account page", "administrator", "unbound"])
def test_a_removed_address_is_unbound_once_the_identity_server_is_back(
    server: TestServer, database: Database, alice: User, identity: IdentityServer, way: str
) -> None:
    assert alice.post(f"{V3}/3pid/bind", BIND).status == 200
    row = ThreepidRow(ADDRESS["medium"], ADDRESS["address"], alice.user_id, 1, 1)
    server.run(database.write("t", ThreepidStore(database).add_threepid, row))
    identity.answer = AWAY
    match way:
        case "deleted":
            assert alice.post(f"{V3}/3pid/delete", ADDRESS).json == {
                "id_server_unbind_result": "no-support"
            }
        case "account page":
            browser = Browser(server)
            browser.open("/_mahalla/account")
            browser.send("/_mahalla/sign_in", name="alice", password="wonderland")
            form = next(
                form for form in browser.page.forms if form.fields.get("do") == "remove_address"
            )
            browser.post(form.action, form.fields)
        case "administrator":
            root = server.register("root")
            server.run(server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
            assert (
                root.put(f"/_synapse/admin/v2/users/{alice.user_id}", {"threepids": []}).status
                == 200
            )
        case _:
            assert alice.post(f"{V3}/3pid/unbind", ADDRESS).status == 502
    known = alice.get(f"{V3}/3pid").json["threepids"]
    assert len(known) == (1 if way == "unbound" else 0)
    assert unbind_due(server, 5) == 1
    assert len(identity.bound) == 1
    identity.answer = None
    assert unbind_due(server, 10) == 1
    assert identity.bound == []
    assert unbind_due(server, 24 * 60) == 0


def test_an_address_bound_again_is_not_unbound(
    server: TestServer, alice: User, identity: IdentityServer
) -> None:
    assert alice.post(f"{V3}/3pid/bind", BIND).status == 200
    identity.answer = AWAY
    alice.post(f"{V3}/3pid/delete", ADDRESS)
    identity.answer = None
    assert alice.post(f"{V3}/3pid/bind", BIND).status == 200
    assert unbind_due(server, 24 * 60) == 0
    assert identity.bound != []
    assert unbind(alice) == "success"


def test_an_unbind_after_the_last_retry_can_be_requested_again(
    server: TestServer, alice: User, identity: IdentityServer
) -> None:
    assert alice.post(f"{V3}/3pid/bind", BIND).status == 200
    identity.answer = AWAY
    alice.post(f"{V3}/3pid/delete", ADDRESS)
    attempts = 0
    while unbind_due(server, 24 * 60):
        attempts += 1
        assert attempts < 50
    identity.answer = None
    assert unbind(alice) == "success"
    assert identity.bound == []


async def test_a_binding_added_after_the_deactivation_is_due_at_once(database: Database) -> None:
    store, accounts = IdentityBindingStore(database), AccountStore(database)
    await database.write("t", accounts.add_account, AccountRow("@a:example.org", None, 1))
    await database.write(
        "t", lambda txn: accounts.set_deactivated(txn, "@a:example.org", 2, erase=False)
    )
    row = IdentityBindingRow("@a:example.org", "email", "a@example.com", HOST)
    await database.write("bind", store.add_binding, row)
    assert await store.take_due(3, lambda _: 1) == row


def test_bindings_are_rate_limited_by_user(
    tmp_path: Path, sqlite_database: Database, identity: IdentityServer
) -> None:
    server = TestServer(tmp_path, sqlite_database, IDENTITY, web=identity)
    alice, bob = server.register("alice"), server.register("bob")
    assert [alice.post(f"{V3}/3pid/bind", BIND).status for _ in range(6)] == [*[200] * 5, 429]
    assert len(identity.bound) == 5
    assert bob.post(f"{V3}/3pid/bind", BIND).status == 200
