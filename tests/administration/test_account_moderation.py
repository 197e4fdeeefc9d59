"""Administrators lock and suspend accounts, and see where they are used."""

import pytest

from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User

ADMIN = "/_matrix/client/v1/admin"
UNSTABLE = "/_matrix/client/unstable/uk.timedout.msc4323/admin"
WHOIS = "/_matrix/client/v3/admin/whois"


@pytest.fixture
def alice(server: TestServer) -> User:
    """The administrator."""
    alice = server.register("alice")
    _make_admin(server, alice)
    return alice


def _make_admin(server: TestServer, user: User) -> None:
    server.run(server.app.user_data.accounts.do_set_flags(user.user_id, is_admin=True))


@pytest.mark.parametrize("prefix", [ADMIN, UNSTABLE])
def test_an_account_is_locked_and_unlocked(server: TestServer, alice: User, prefix: str) -> None:
    bob = server.register("bob")
    path = f"{prefix}/lock/{bob.user_id}"
    assert alice.get(path).json == {"locked": False}
    assert alice.put(path, {"locked": True}).json == {"locked": True}
    assert alice.get(path).json == {"locked": True}
    refused = bob.get("/_matrix/client/v3/account/whoami")
    assert (refused.status, refused.errcode, refused.json["soft_logout"]) == (
        401,
        "M_USER_LOCKED",
        True,
    )
    assert alice.put(path, {"locked": False}).status == 200
    assert bob.get("/_matrix/client/v3/account/whoami").status == 200


@pytest.mark.parametrize("prefix", [ADMIN, UNSTABLE])
def test_an_account_is_suspended_and_unsuspended(
    server: TestServer, alice: User, prefix: str
) -> None:
    bob = server.register("bob")
    path = f"{prefix}/suspend/{bob.user_id}"
    assert alice.put(path, {"suspended": True}).json == {"suspended": True}
    assert alice.get(path).json == {"suspended": True}
    assert alice.get(f"{prefix}/lock/{bob.user_id}").json == {"locked": False}
    assert bob.post("/_matrix/client/v3/createRoom").errcode == "M_USER_SUSPENDED"
    assert alice.put(path, {"suspended": False}).status == 200
    assert bob.post("/_matrix/client/v3/createRoom").status == 200


@pytest.mark.parametrize("action", ["lock", "suspend"])
def test_administrators_and_unknown_users_cannot_be_moderated(
    server: TestServer, alice: User, action: str
) -> None:
    body = {"locked": True, "suspended": True}
    carol = server.register("carol")
    _make_admin(server, carol)
    for user_id, status, errcode in (
        (alice.user_id, 403, "M_FORBIDDEN"),
        (carol.user_id, 403, "M_FORBIDDEN"),
        ("@nobody:example.org", 404, "M_NOT_FOUND"),
        ("@bob:elsewhere.example", 400, "M_INVALID_PARAM"),
        ("nonsense", 400, "M_INVALID_PARAM"),
    ):
        answer = alice.put(f"{ADMIN}/{action}/{user_id}", body)
        assert (answer.status, answer.errcode) == (status, errcode)
    assert alice.put(f"{ADMIN}/{action}/@nobody:example.org", {}).errcode == "M_BAD_JSON"


@pytest.mark.parametrize(
    "user_id", ["@alice:example.org", "@nobody:example.org", "@bob:elsewhere.example"]
)
def test_other_users_learn_nothing(server: TestServer, user_id: str) -> None:
    server.register("alice")
    bob = server.register("bob")
    answers = [
        bob.get(f"{ADMIN}/lock/{user_id}"),
        bob.put(f"{ADMIN}/suspend/{user_id}", {"suspended": True}),
    ]
    answers.append(bob.get(f"{WHOIS}/{user_id}"))
    assert [(answer.status, answer.errcode) for answer in answers] == [(403, "M_FORBIDDEN")] * 3


def test_a_deactivated_account_is_not_found(server: TestServer, alice: User) -> None:
    bob = server.register("bob")
    proof = password_auth("bob")
    assert bob.post("/_matrix/client/v3/account/deactivate", {"auth": proof}).status == 200
    assert alice.get(f"{ADMIN}/lock/{bob.user_id}").errcode == "M_NOT_FOUND"


def test_only_administrators_see_the_moderation_capability(server: TestServer, alice: User) -> None:
    bob = server.register("bob")
    capabilities = alice.get("/_matrix/client/v3/capabilities").json["capabilities"]
    assert capabilities["m.account_moderation"] == {"suspend": True, "lock": True}
    assert (
        "m.account_moderation"
        not in bob.get("/_matrix/client/v3/capabilities").json["capabilities"]
    )


def test_whois_lists_the_addresses_of_an_account(server: TestServer, alice: User) -> None:
    bob = server.register("bob")
    bob.get("/_matrix/client/v3/account/whoami")
    for reader in (bob, alice):
        answer = reader.get(f"{WHOIS}/{bob.user_id}")
        assert answer.json["user_id"] == bob.user_id
        [session] = answer.json["devices"][bob.device_id]["sessions"]
        assert [each["ip"] for each in session["connections"]] == ["127.0.0.1"]
        assert session["connections"][0]["last_seen"] == int(server.clock.seconds() * 1000)
    assert alice.get(f"{WHOIS}/@bob:elsewhere.example").errcode == "M_INVALID_PARAM"
