"""Registration tokens: the admin API."""

from pathlib import Path

import pytest

from storage.engine.database import Database
from tests.helpers.http import Answer
from tests.helpers.logins import password_auth
from tests.helpers.server import START, TestServer, User

PATH = "/_synapse/admin/v1/registration_tokens"
NOW = int(START * 1000)


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    root = TestServer(tmp_path, database).register("root")
    server = TestServer(tmp_path, database, "registration_requires_token: true\n", seed=2)
    server.run(server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
    return server


@pytest.fixture
def root(server: TestServer) -> User:
    body = password_auth("root")
    return User(server, server.post("/_matrix/client/v3/login", body).json)


def register(server: TestServer, name: str, token: str) -> Answer:
    auth = {"type": "m.login.registration_token", "token": token}
    return server.post(
        "/_matrix/client/v3/register", {"username": name, "password": "wonderland", "auth": auth}
    )


def test_a_token_is_created_used_changed_and_deleted(server: TestServer, root: User) -> None:
    created = root.post(
        f"{PATH}/new", {"token": "Zx-9", "uses_allowed": 2, "expiry_time": NOW + 1000}
    )
    expected = {
        "token": "Zx-9",
        "uses_allowed": 2,
        "pending": 0,
        "completed": 0,
        "expiry_time": NOW + 1000,
    }
    assert (created.status, created.json) == (200, expected)
    assert register(server, "alice", "Zx-9").status == 200
    assert root.get(f"{PATH}/Zx-9").json == {**expected, "completed": 1}
    assert root.put(f"{PATH}/Zx-9", {}).json == {**expected, "completed": 1}
    assert root.put(f"{PATH}/Zx-9", {"uses_allowed": 1}).json["uses_allowed"] == 1
    assert register(server, "bob", "Zx-9").status == 401
    assert root.put(f"{PATH}/Zx-9", {"uses_allowed": None}).json["uses_allowed"] is None
    assert register(server, "bob", "Zx-9").status == 200
    server.clock.advance(1)
    assert register(server, "carol", "Zx-9").status == 401
    assert root.put(f"{PATH}/Zx-9", {"expiry_time": None}).json["expiry_time"] is None
    assert root.delete(f"{PATH}/Zx-9").status == 200
    assert register(server, "carol", "Zx-9").status == 401
    for answer in (
        root.get(f"{PATH}/Zx-9"),
        root.put(f"{PATH}/Zx-9", {}),
        root.delete(f"{PATH}/Zx-9"),
    ):
        assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


def test_changes_to_tokens_are_in_the_audit_log(root: User) -> None:
    assert root.post(f"{PATH}/new", {"token": "Zx-9"}).status == 200
    assert root.post(f"{PATH}/new", {"token": "Zx-9"}).status == 400
    assert root.put(f"{PATH}/Zx-9", {"uses_allowed": 1}).status == 200
    assert root.delete(f"{PATH}/Zx-9").status == 200
    records = root.get(f"/_mahalla/admin/v1/users/{root.user_id}/audit").json["records"]
    assert [(record["event"], record["by"]) for record in records[:3]] == [
        ("registration_token_ended", root.user_id),
        ("registration_token_changed", root.user_id),
        ("registration_token_made", root.user_id),
    ]
    assert "Zx-9" not in str(records)


def test_the_list_can_be_filtered_by_validity(server: TestServer, root: User) -> None:
    generated = root.post(f"{PATH}/new", {"length": 30}).json["token"]
    assert len(generated) == 30
    root.post(f"{PATH}/new", {"token": "Never", "uses_allowed": 0})
    root.post(f"{PATH}/new", {"token": "Soon", "expiry_time": NOW + 1000})

    def listed(query: str = "") -> list[str]:
        return [token["token"] for token in root.get(f"{PATH}{query}").json["registration_tokens"]]

    assert listed() == ["Never", "Soon", generated]
    assert (listed("?valid=true"), listed("?valid=false")) == (["Soon", generated], ["Never"])
    server.clock.advance(1)
    assert listed("?valid=false") == ["Never", "Soon"]


@pytest.mark.parametrize(
    "body",
    [
        {"token": ""},
        {"token": "a b"},
        {"token": "x" * 65},
        {"token": "taken"},
        {"length": 0},
        {"length": 65},
        {"uses_allowed": -1},
        {"uses_allowed": 2**53},
        {"uses_allowed": "1"},
        {"expiry_time": NOW},
        {"expiry_time": 2**60},
    ],
)
def test_invalid_tokens_and_limits_are_refused(root: User, body: dict[str, object]) -> None:
    assert root.post(f"{PATH}/new", {"token": "taken"}).status == 200
    assert root.post(f"{PATH}/new", body).status == 400
    if not {"token", "length"} & body.keys():
        assert root.put(f"{PATH}/taken", body).status == 400
    assert [token["token"] for token in root.get(PATH).json["registration_tokens"]] == ["taken"]


def test_other_users_cannot_manage_tokens(server: TestServer, root: User) -> None:
    root.post(f"{PATH}/new", {"token": "t"})
    alice = User(server, register(server, "alice", "t").json)
    for answer in (
        alice.get(PATH),
        alice.post(f"{PATH}/new", {}),
        alice.get(f"{PATH}/t"),
        alice.delete(f"{PATH}/t"),
    ):
        assert answer.errcode == "M_FORBIDDEN"
