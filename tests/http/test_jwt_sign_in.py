"""Sign-in with a JSON Web Token that another program of the institution signed."""

import hmac
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import msgspec
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from federation.protocol.ids import UserID
from storage.engine.database import Database
from tests.helpers.http import Answer
from tests.helpers.server import START, TestServer

SECRET = "a secret of the portal, long enough for HS256"
CONFIG = f"""
jwt_config:
  enabled: true
  secret: {SECRET}
  algorithm: HS256
  display_name_claim: name
  issuer: portal
  audiences: [matrix, chat]
"""


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG)


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    full = {"sub": "alice", "iss": "portal", "aud": "chat", "exp": START + 60, **claims}
    return jwt.encode(
        {"alg": algorithm},
        {name: value for name, value in full.items() if value is not None},
        OctKey.import_key(secret),
        algorithms=[algorithm],
    )


def signed_by_hand(header: dict[str, str]) -> str:
    """Return a token with a valid signature and a header that no library would make."""
    parts = [header, {"sub": "alice", "iss": "portal", "aud": "chat", "exp": START + 60}]
    signed = b".".join(urlsafe_b64encode(msgspec.json.encode(part)).rstrip(b"=") for part in parts)
    signature = urlsafe_b64encode(hmac.digest(SECRET.encode(), signed, "sha256")).rstrip(b"=")
    return b".".join([signed, signature]).decode()


def login(server: TestServer, text: str, **further: object) -> Answer:
    return server.post(
        "/_matrix/client/v3/login", {"type": "org.matrix.login.jwt", "token": text, **further}
    )


def test_a_valid_token_signs_in(server: TestServer) -> None:
    assert {"type": "org.matrix.login.jwt"} in server.get("/_matrix/client/v3/login").json["flows"]
    for device in ("PHONE", "DESK"):
        session = login(server, token(name="Alice"), device_id=device).json
        assert (session["user_id"], session["device_id"]) == ("@alice:example.org", device)
    assert (
        server.get("/_matrix/client/v3/profile/@alice:example.org").json["displayname"] == "Alice"
    )


REFUSED = [
    token("another secret, that is long enough too"),
    token(algorithm="HS512"),
    token(iss="elsewhere"),
    token(iss=None),
    token(aud="mail"),
    token(aud=None),
    token(exp=START - 61),
    token(exp="2100"),
    token(exp=float("nan")),
    token(exp=float("inf")),
    token(nbf=float("nan")),
    signed_by_hand({}),
    signed_by_hand({"alg": "none"}),
    token(nbf=START + 61),
    token(iat=START + 61),
    token(sub=None),
    token(sub=7),
    token()[:-2],
    *(
        urlsafe_b64encode(b'{"alg":%b' % (b"[" * levels)).decode() + ".e30.e30"
        for levels in (1500, 12_000)
    ),
    "nothing",
    "x" * 20_000,
]


def test_invalid_tokens_are_refused(server: TestServer) -> None:
    for text in REFUSED:
        answer = login(server, text)
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN"), text[:100]


def test_invalid_names_and_unusable_accounts_are_refused(server: TestServer) -> None:
    assert login(server, token(sub="not a name")).errcode == "M_INVALID_USERNAME"
    assert login(server, token(sub="_bridge")).errcode == "M_INVALID_USERNAME"
    alice = server.register("alice")
    server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, locked=True))
    assert login(server, token()).errcode == "M_USER_LOCKED"
    server.run(server.app.user_data.deactivation.do_deactivate(alice.user_id, erase=False))
    assert login(server, token()).errcode == "M_USER_DEACTIVATED"


def test_failures_are_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    few = (
        "rc_login: {address: {per_second: 100, burst_count: 100},"
        " failed_attempts: {per_second: 0.01, burst_count: 2}}"
    )
    server = TestServer(tmp_path, sqlite_database, CONFIG + few)
    assert [login(server, "nothing").status for _ in range(3)] == [403, 403, 429]


def test_a_token_is_verified_with_a_public_key(tmp_path: Path, sqlite_database: Database) -> None:
    key = RSAKey.generate_key(2048)
    (tmp_path / "portal.pem").write_bytes(key.as_pem(private=False))
    config = (
        "jwt_config: {enabled: true, algorithm: RS256, secret_path: portal.pem, subject_claim: uid}"
    )
    server = TestServer(tmp_path, sqlite_database, config)
    good = jwt.encode({"alg": "RS256"}, {"uid": "bob"}, key)
    assert login(server, good).json["user_id"] == "@bob:example.org"
    assert (
        login(
            server, jwt.encode({"alg": "RS256"}, {"uid": "bob"}, RSAKey.generate_key(2048))
        ).status
        == 403
    )


def test_jwt_login_is_disabled_by_default(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database)
    assert {"type": "org.matrix.login.jwt"} not in server.get("/_matrix/client/v3/login").json[
        "flows"
    ]
    assert login(server, token()).status == 400


def test_an_expired_account_is_refused(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + "account_validity: {enabled: true, period: 1d}\n"
    )
    user_id = UserID(login(server, token()).json["user_id"])
    server.run(
        server.app.accounts.renewals.do_set_expiry(
            user_id, 1, sends_email=False, by=UserID("@root:example.org")
        )
    )
    assert login(server, token()).errcode == "ORG_MATRIX_EXPIRED_ACCOUNT"
