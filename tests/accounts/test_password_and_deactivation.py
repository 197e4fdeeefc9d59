"""Password changes, deactivation of accounts and devices, and the UIA sessions that confirm
them."""

from pathlib import Path

import pytest

from federation.peers.token_buckets import Rate
from federation.protocol.ids import UserID
from homeserver.api.limits import Limit
from storage.engine.database import Database
from tests.helpers.accounts import AccountsServer, User
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer


@pytest.fixture
def server(database: Database) -> AccountsServer:
    return AccountsServer(database)


def test_a_confirmed_request_changes_the_password(server: AccountsServer) -> None:
    alice = server.register()
    other = User(server, server.login().json, "wonderland")
    challenge = alice.post("account/password", {"new_password": "looking glass"})
    assert challenge.status == 401
    assert challenge.json["flows"] == [{"stages": ["m.login.password"]}]
    session = challenge.json["session"]

    wrong = alice.post(
        "account/password",
        {"new_password": "looking glass", "auth": alice.password_auth(session, "guess")},
    )
    assert (wrong.status, wrong.errcode) == (401, "M_FORBIDDEN")
    assert wrong.json["session"] == session
    assert wrong.json["completed"] == []
    unknown_stage = {"type": "m.login.dummy", "session": session}
    assert (
        alice.post(
            "account/password", {"new_password": "looking glass", "auth": unknown_stage}
        ).status
        == 401
    )

    done = alice.post(
        "account/password", {"new_password": "looking glass", "auth": alice.password_auth(session)}
    )
    assert (done.status, done.json) == (200, {})
    assert alice.is_signed_in()
    assert not other.is_signed_in()
    assert server.login().status == 403
    assert server.login(password="looking glass").status == 200
    # The confirmation was valid once.
    alice.password = "looking glass"
    assert (
        alice.post("account/password", {"new_password": "x", "auth": {"session": session}}).status
        == 401
    )


def test_other_devices_can_stay_signed_in(server: AccountsServer) -> None:
    alice = server.register()
    other = User(server, server.login().json, "")
    body = {"new_password": "looking glass", "logout_devices": False, "auth": alice.password_auth()}
    assert alice.post("account/password", body).status == 200
    assert other.is_signed_in()


def test_a_confirmation_is_valid_for_its_operation_and_user_only(server: AccountsServer) -> None:
    alice, bob = server.register("alice"), server.register("bob", "builder")
    session = alice.post("account/password", {"new_password": "x"}).json["session"]
    # Neither another user's password nor one's own password in another user's session counts.
    assert (
        alice.post(
            "account/password", {"new_password": "x", "auth": bob.password_auth(session)}
        ).status
        == 401
    )
    assert (
        bob.post("account/password", {"new_password": "x", "auth": {"session": session}}).status
        == 401
    )
    first = server.login(device_id="ONE").status, server.login(device_id="TWO").status
    assert first == (200, 200)
    session = alice.delete("devices/ONE").json["session"]
    assert alice.delete("devices/TWO", {"auth": {"session": session}}).status == 401
    server.clock.advance(15 * 60 + 1)
    new_session = alice.delete("devices/ONE", {"auth": {"session": session}})
    assert new_session.status == 401
    assert new_session.json["session"] != session


@pytest.mark.parametrize(
    "auth",
    [
        {"type": 1},
        {"type": "m.login.password", "session": 1},
        {"type": "m.login.password", "session": "\0"},
        {},
        {"type": "x"},
    ],
)
def test_malformed_auth_is_refused(sqlite_database: Database, auth: object) -> None:
    alice = AccountsServer(sqlite_database).register()
    assert alice.post("account/password", {"new_password": "x", "auth": auth}).status in (400, 401)
    assert (
        alice.post("account/password", {"new_password": "x", "auth": "y"}).errcode == "M_BAD_JSON"
    )


def test_wrong_passwords_in_confirmations_are_rate_limited(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN_FAILED: Rate(0.1, 2)})
    alice = server.register()
    answers = [
        alice.post("account/deactivate", {"auth": alice.password_auth(password="guess")})
        for _ in range(3)
    ]
    assert [answer.errcode for answer in answers] == [
        "M_FORBIDDEN",
        "M_FORBIDDEN",
        "M_LIMIT_EXCEEDED",
    ]
    assert [answer.status for answer in answers] == [401, 401, 429]
    assert answers[-1].json["retry_after_ms"] > 0
    assert "retry-after" in answers[-1].headers


def test_concurrent_guesses_are_limited_like_sequential_ones(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN_FAILED: Rate(0.1, 3)})
    alice, bob = server.register(), server.register("bob")
    path = "/_matrix/client/v3/account/deactivate"
    before = server.threads.runs
    server.threads.hold()
    wrong = {"auth": alice.password_auth(password="guess")}
    requests = [server.http.start("POST", path, json=wrong, token=alice.token) for _ in range(20)]
    other = server.http.start("POST", path, json={"auth": bob.password_auth()}, token=bob.token)
    server.threads.release()
    assert sorted(pending.answer.status for pending in requests) == [401] * 3 + [429] * 17
    assert server.threads.runs == before + 4  # the others were not tried
    assert other.answer.status == 200
    assert server.login().status == 429
    server.clock.advance(11)
    assert server.login().status == 200


def test_failed_confirmations_count_against_the_ip_address(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN: Rate(0.1, 3)})
    alice = server.register()
    for _ in range(5):
        assert (
            alice.post("delete_devices", {"devices": ["A"], "auth": alice.password_auth()}).status
            == 200
        )
    wrong = {"devices": ["A"], "auth": alice.password_auth(password="guess")}
    assert [alice.post("delete_devices", wrong).status for _ in range(4)] == [401, 401, 401, 429]


def test_only_the_callers_own_password_is_checked(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database)
    alice, bob = server.register(), server.register("bob", "builder")
    before = server.threads.runs
    texts = set()
    for password in (bob.password, "guess"):
        auth = {
            **alice.password_auth(password=password),
            "identifier": {"type": "m.id.user", "user": bob.id},
        }
        answer = alice.post("account/deactivate", {"auth": auth})
        assert (answer.status, answer.errcode) == (401, "M_FORBIDDEN")
        texts.add(answer.json["error"])
    assert len(texts) == 1
    assert server.threads.runs == before
    for name in ("ALICE", "@alice:example.org"):
        auth = {**alice.password_auth(), "identifier": {"type": "m.id.user", "user": name}}
        assert alice.post("delete_devices", {"devices": ["A"], "auth": auth}).status == 200


def test_a_deactivated_account_leaves_its_rooms_and_keeps_its_name(server: AccountsServer) -> None:
    alice = server.register()
    alice.put("profile/{me}/displayname", {"displayname": "Alice"})
    assert alice.post("account/deactivate", {}).status == 401
    done = alice.post("account/deactivate", {"auth": alice.password_auth(), "erase": False})
    assert done.json == {"id_server_unbind_result": "success"}
    assert server.rooms.left == [alice.id]
    assert not alice.is_signed_in()
    assert server.login().status == 403
    assert (
        server.request("POST", "register", {"username": "alice", "password": "x"}).errcode
        == "M_USER_IN_USE"
    )


async def test_an_erased_account_has_no_profile_or_account_data(server: AccountsServer) -> None:
    alice = server.register()
    alice.put("profile/{me}/displayname", {"displayname": "Alice"})
    alice.put("user/{me}/account_data/m.direct", {"a": 1})
    alice.post("account/deactivate", {"auth": alice.password_auth(), "erase": True})
    assert server.request("GET", "profile/@alice:example.org").errcode == "M_NOT_FOUND"
    assert (await server.account_data_store.get_account_data(alice.id)).global_data == {}
    assert (await server.accounts.get_account(alice.id)).erased


async def test_rooms_are_left_after_a_restart(database: Database) -> None:
    server = AccountsServer(database)
    alice = server.register()
    server.rooms.failure = RuntimeError("the server stops")
    with pytest.raises(RuntimeError):
        await server.deactivation.do_deactivate(alice.id, erase=False)
    assert not alice.is_signed_in()

    server.rooms.failure = None
    await server.deactivation.do_leave_rooms(1)
    assert server.rooms.left == [alice.id]
    server.clock.advance(3 * 3600)  # late joins are no longer possible
    for _ in range(2):
        await server.deactivation.do_leave_rooms(1)
    assert server.rooms.left == [alice.id] * 2


async def test_a_failure_of_one_account_does_not_keep_others_in_their_rooms(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = AccountsServer(database)
    closed = [server.register(name) for name in ("alice", "bob", "carol")]
    server.rooms.failure = RuntimeError("the server stops")
    for each in closed:
        with pytest.raises(RuntimeError):
            await server.deactivation.do_deactivate(each.id, erase=False)
    server.rooms.failure = None
    leave_all_rooms = server.rooms.leave_all_rooms

    async def leave(user_id: UserID) -> bool:
        if user_id == closed[0].id:
            raise RuntimeError("this one goes wrong")
        return await leave_all_rooms(user_id)

    monkeypatch.setattr(server.rooms, "leave_all_rooms", leave)
    await server.deactivation.do_leave_rooms(1)
    assert sorted(server.rooms.left) == [each.id for each in closed[1:]]


def test_devices_are_listed_and_renamed(server: AccountsServer) -> None:
    alice = server.register(device_id="PHONE")
    server.login(device_id="LAPTOP", initial_device_display_name="Laptop")
    seen = {"last_seen_ts": 1_700_000_000_000, "last_seen_ip": "10.0.0.1"}
    assert alice.get("devices").json == {
        "devices": [
            {"device_id": "LAPTOP", "display_name": "Laptop"},
            {"device_id": "PHONE", **seen},
        ]
    }
    assert alice.put("devices/PHONE", {"display_name": "Phone"}).json == {}
    assert alice.put("devices/PHONE", {}).json == {}
    assert alice.get("devices/PHONE").json == {
        "device_id": "PHONE",
        "display_name": "Phone",
        **seen,
    }
    for answer in (alice.get("devices/NONE"), alice.put("devices/NONE", {"display_name": "x"})):
        assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")
    assert alice.put("devices/PHONE", {"display_name": "a\0b"}).errcode == "M_INVALID_PARAM"


def test_a_confirmed_request_removes_devices(server: AccountsServer) -> None:
    alice = server.register(device_id="PHONE")
    others = [User(server, server.login(device_id=name).json, "") for name in ("A", "B", "C")]
    session = alice.delete("devices/A").json["session"]
    assert alice.delete("devices/A", {"auth": alice.password_auth(session)}).json == {}
    assert [user.is_signed_in() for user in others] == [False, True, True]
    # Removing an unknown device is no error.
    assert (
        alice.post(
            "delete_devices", {"devices": ["A", "B", "C"], "auth": alice.password_auth()}
        ).json
        == {}
    )
    assert [user.is_signed_in() for user in others] == [False, False, False]
    assert [device["device_id"] for device in alice.get("devices").json["devices"]] == ["PHONE"]


def test_sightings_of_devices_are_shown_at_once(server: AccountsServer) -> None:
    alice = server.register(device_id="PHONE")
    server.last_seen.start()
    server.clock.advance(7)
    new = User(server, server.login(device_id="NEW").json, "")
    assert "last_seen_ts" not in alice.get("devices/NEW").json
    assert new.is_signed_in()
    # a user who has to recognise a new device sees its sighting before the next batch is written
    seen = {"last_seen_ts": 1_700_000_007_000, "last_seen_ip": "10.0.0.1"}
    assert alice.get("devices/NEW").json == {"device_id": "NEW", **seen}
    server.clock.advance(31)
    assert alice.get("devices").json == {
        "devices": [{"device_id": "NEW", **seen}, {"device_id": "PHONE", **seen}]
    }


@pytest.mark.parametrize("option", ["", "user_ips_max_age: 60d\n", "user_ips_max_age: null\n"])
def test_the_address_of_a_device_is_stored_for_user_ips_max_age(
    tmp_path: Path, sqlite_database: Database, option: str
) -> None:
    server = TestServer(tmp_path, sqlite_database, option)
    alice = server.register("alice")
    body = password_auth("alice")
    other = server.post("/_matrix/client/v3/login", body).json
    path = f"/_matrix/client/v3/devices/{other['device_id']}"
    server.get(path, token=other["access_token"])
    server.app.accounts.last_seen.start()
    server.clock.advance(31)
    seen = alice.get(path).json
    assert seen["last_seen_ip"]
    server.app.jobs.start()
    for days in (27, 1):
        assert alice.get(path).json == seen
        server.clock.advance(days * 24 * 3600)
    server.clock.advance(3600)
    known = alice.get(path).json
    assert known["last_seen_ts"] == seen["last_seen_ts"], "the time of the sighting stays"
    assert ("last_seen_ip" in known) is bool(option)
