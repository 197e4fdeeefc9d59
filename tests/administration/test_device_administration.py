"""Administration of devices by Synapse's paths: list, create, rename and remove."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.dehydrated_devices import DEVICE_ID as DEHYDRATED
from tests.helpers.dehydrated_devices import put_dehydrated_device as put_dehydrated
from tests.helpers.http import Answer
from tests.helpers.keys import (
    V3,
    claim,
    cross_signing_key,
    identity_keys,
    one_time_keys,
    query,
    sync,
    upload,
)
from tests.helpers.logins import password_auth
from tests.helpers.oauth import CONFIG as OAUTH
from tests.helpers.oauth import Program
from tests.helpers.push_gateway import set_pusher
from tests.helpers.room_actions import outcome
from tests.helpers.server import START, TestServer, User

USERS = "/_synapse/admin/v2/users"
WHOAMI = f"{V3}/account/whoami"
ENDED = (401, "M_UNKNOWN_TOKEN")


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database, OAUTH)


@pytest.fixture
def root(server: TestServer) -> User:
    root = server.register("root")
    server.run(server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
    return root


def devices(user: User | str, device_id: str | None = None) -> str:
    user_id = user if isinstance(user, str) else user.user_id
    path = f"{USERS}/{quote(user_id)}/devices"
    return path if device_id is None else f"{path}/{quote(device_id, safe='')}"


def delete_devices(user: User | str) -> str:
    return devices(user).removesuffix("devices") + "delete_devices"


def sign_in(server: TestServer, user: User, device_id: str | None = None, **further: Any) -> User:
    body = {**password_auth(user.user_id), "device_id": device_id, **further}
    answer = server.post(f"{V3}/login", body)
    assert answer.status == 200, answer.body
    return User(server, answer.json)


def ids(root: User, user: User) -> list[str]:
    answer = root.get(devices(user)).json
    assert answer["total"] == len(answer["devices"])
    return [device["device_id"] for device in answer["devices"]]


def sign_outs(root: User, user: User) -> list[tuple[str, str | None, str | None]]:
    """Return the signed-out devices, oldest first, with administrator and address."""
    records = root.get(f"/_mahalla/admin/v1/users/{user.user_id}/audit?limit=1000").json["records"]
    ended = [each for each in reversed(records) if each["event"] == "session_ended"]
    return [(each["device_id"], each["by"], each["address"]) for each in ended]


def test_devices_are_listed_with_time_and_address_of_the_last_sighting(
    server: TestServer, root: User, alice: User
) -> None:
    phone = sign_in(server, alice, "PHONE", initial_device_display_name="Phone")
    program = {"User-Agent": "App/1"}
    assert (
        server.client.request(
            "GET", WHOAMI, token=phone.token, headers=program, ip="192.0.2.7"
        ).status
        == 200
    )
    listed = root.get(devices(alice))
    seen = {
        "device_id": "PHONE",
        "display_name": "Phone",
        "user_id": alice.user_id,
        "last_seen_ip": "192.0.2.7",
        "last_seen_ts": int(START * 1000),
        "last_seen_user_agent": "App/1",
    }
    unseen = {**dict.fromkeys(seen), "device_id": alice.device_id, "user_id": alice.user_id}
    shown = sorted(listed.json["devices"], key=lambda device: str(device["device_id"]))
    assert (listed.status, listed.json["total"]) == (200, 2)
    assert shown == sorted([seen, unseen], key=lambda device: str(device["device_id"]))
    assert root.get(devices(alice, "PHONE")).json == seen
    assert (
        server.client.request("GET", f"{USERS}/{alice.user_id}/devices", token=root.token).json
        == listed.json
    )
    assert outcome(root.get(devices(alice, "NONE"))) == (404, "M_NOT_FOUND")


def test_the_dehydrated_device_is_marked(root: User, alice: User) -> None:
    assert "dehydrated" not in root.get(devices(alice)).json["devices"][0]
    put_dehydrated(alice)
    marked = {
        device["device_id"]: device["dehydrated"]
        for device in root.get(devices(alice)).json["devices"]
    }
    assert marked == {alice.device_id: False, DEHYDRATED: True}
    assert outcome(root.post(devices(alice), {"device_id": DEHYDRATED})) == (201, None), (
        "an existing device is no error"
    )
    assert root.delete(devices(alice, DEHYDRATED)).status == 200
    assert alice.get("/_matrix/client/v1/dehydrated_device").status == 404
    assert ids(root, alice) == [alice.device_id]


def test_a_created_device_has_no_session(server: TestServer, root: User, alice: User) -> None:
    bob = server.register("bob")
    for _ in range(2):
        made = root.post(devices(alice), {"device_id": "a/b c"})
        assert (made.status, made.json) == (201, {})
    assert sorted(ids(root, alice)) == sorted([alice.device_id, "a/b c"])
    one = root.get(devices(alice, "a/b c")).json
    assert (one["display_name"], one["last_seen_ts"]) == (None, None)
    assert query(bob, alice)["device_keys"][alice.user_id] == {}
    assert root.put(devices(alice, "a/b c"), {"display_name": "Laptop"}).json == {}
    laptop = sign_in(server, alice, "a/b c", initial_device_display_name="Other")
    assert laptop.get(f"{V3}/devices/{quote('a/b c', safe='')}").json["display_name"] == "Laptop"


def test_creating_an_existing_device_changes_nothing(root: User, alice: User) -> None:
    _, keys = identity_keys(alice)
    upload(alice, device_keys=keys)
    assert root.post(devices(alice), {"device_id": alice.device_id}).status == 201
    assert alice.get(WHOAMI).status == 200
    assert query(alice, alice)["device_keys"][alice.user_id].keys() == {alice.device_id}


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({}, "M_MISSING_PARAM"),
        ({"device_id": None}, "M_BAD_JSON"),
        ({"device_id": 7}, "M_BAD_JSON"),
        ({"device_id": ""}, "M_INVALID_PARAM"),
        ({"device_id": "*"}, "M_INVALID_PARAM"),
        ({"device_id": "a\0"}, "M_INVALID_PARAM"),
        ({"device_id": "a" * 256}, "M_INVALID_PARAM"),
    ],
)
def test_invalid_device_ids_are_refused(
    root: User, alice: User, body: dict[str, Any], errcode: str
) -> None:
    assert outcome(root.post(devices(alice), body)) == (400, errcode)
    assert ids(root, alice) == [alice.device_id]


def test_the_id_of_a_cross_signing_key_is_refused(root: User, alice: User) -> None:
    key, master = cross_signing_key(alice, "master", 3)
    assert alice.post(f"{V3}/keys/device_signing/upload", {"master_key": master}).status == 200
    assert outcome(root.post(devices(alice), {"device_id": key.public})) == (403, "M_FORBIDDEN")
    assert ids(root, alice) == [alice.device_id]


def test_a_deactivated_account_gets_no_device(root: User, alice: User) -> None:
    assert root.post(f"/_synapse/admin/v1/deactivate/{alice.user_id}", {}).status == 200
    assert outcome(root.post(devices(alice), {"device_id": "NEW"})) == (400, "M_INVALID_PARAM")
    assert root.get(devices(alice)).json == {"devices": [], "total": 0}
    assert root.delete(devices(alice, alice.device_id)).status == 200


def test_a_device_is_renamed(root: User, alice: User) -> None:
    path = devices(alice, alice.device_id)
    assert root.put(path, {"display_name": "N" * 100}).json == {}
    assert root.get(path).json["display_name"] == "N" * 100
    for kept in ({}, {"display_name": None}, {"last_seen_ip": "10.0.0.1"}):
        assert root.put(path, kept).status == 200
    assert root.server.client.request("PUT", path, token=root.token).status == 200, "no body at all"
    assert outcome(root.put(path, {"display_name": "N" * 101})) == (400, "M_TOO_LARGE")
    assert outcome(root.put(path, {"display_name": "a\0"})) == (400, "M_INVALID_PARAM")
    assert outcome(root.put(path, {"display_name": 1})) == (400, "M_BAD_JSON")
    assert root.get(path).json["display_name"] == "N" * 100
    for body in ({"display_name": "x"}, {"display_name": "N" * 101}, {}):
        assert outcome(root.put(devices(alice, "NONE"), body)) == (404, "M_NOT_FOUND")


def test_removing_a_device_signs_it_out_and_deletes_its_data(
    server: TestServer, root: User, alice: User
) -> None:
    bob = server.register("bob")
    encryption = {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    requested = {"preset": "public_chat", "initial_state": [encryption]}
    room = alice.post(f"{V3}/createRoom", requested).json["room_id"]
    assert bob.post(f"{V3}/join/{room}").status == 200
    phone = sign_in(server, alice, "PHONE", refresh_token=True)
    refreshable = server.post(
        f"{V3}/login", {**_password(alice), "device_id": "TABLET", "refresh_token": True}
    ).json
    _, keys = identity_keys(phone)
    upload(phone, device_keys=keys, one_time_keys=one_time_keys("a"))
    assert set_pusher(phone).status == 200
    message = {"messages": {alice.user_id: {"PHONE": {"n": 1}}}}
    assert bob.put(f"{V3}/sendToDevice/org.example/1", message).status == 200
    assert len(alice.get(f"{V3}/pushers").json["pushers"]) == 1
    since = sync(bob)["next_batch"]

    path = devices(alice, "PHONE")
    removed = server.client.request(
        "DELETE", path, token=root.token, json={"more": 1}, ip="192.0.2.1"
    )
    assert (removed.status, removed.json) == (200, {})
    assert outcome(phone.get(WHOAMI)) == ENDED
    assert sync(bob, since)["device_lists"]["changed"] == [alice.user_id]
    assert query(bob, alice)["device_keys"][alice.user_id] == {}
    assert claim(bob, phone) is None
    assert alice.get(f"{V3}/pushers").json == {"pushers": []}
    assert sync(sign_in(server, alice, "PHONE"))["to_device"]["events"] == [], (
        "a pending message survived the device"
    )
    assert alice.get(WHOAMI).status == 200

    assert root.delete(devices(alice, "TABLET")).status == 200
    refreshed = server.post(f"{V3}/refresh", {"refresh_token": refreshable["refresh_token"]})
    assert outcome(refreshed) == ENDED
    assert sign_outs(root, alice)[0] == ("PHONE", root.user_id, "192.0.2.1")
    assert [by for _, by, _ in sign_outs(root, alice)] == [root.user_id] * 2


def _password(user: User) -> dict[str, Any]:
    return password_auth(user.user_id)


def test_a_session_of_the_oauth_api_ends_with_its_device(
    server: TestServer, root: User, alice: User
) -> None:
    program = Program(server)
    session = program.sign_in(Browser(server))
    assert root.delete(devices(alice, session.device_id)).status == 200
    assert outcome(session.get(WHOAMI)) == ENDED
    assert program.refresh().json["error"] == "invalid_grant"


def test_several_devices_are_removed(server: TestServer, root: User, alice: User) -> None:
    named = [f"D{number:03}" for number in range(230)]
    for device_id in named:
        assert root.post(devices(alice), {"device_id": device_id}).status == 201
    phone, kept = sign_in(server, alice, "PHONE"), sign_in(server, alice, "KEPT")
    wanted = [*named, "PHONE", "PHONE", "NONE", alice.device_id]
    answer = root.post(delete_devices(alice), {"devices": wanted})
    assert (answer.status, answer.json) == (200, {})
    assert ids(root, alice) == ["KEPT"]
    assert [outcome(each.get(WHOAMI)) for each in (phone, alice)] == [ENDED, ENDED]
    assert kept.get(WHOAMI).status == 200
    gone = [device_id for device_id, _, _ in sign_outs(root, alice)]
    assert sorted(gone) == sorted([*named, "PHONE", alice.device_id]), (
        "each device once, and no unknown device"
    )
    assert root.post(delete_devices(alice), {"devices": wanted}).status == 200
    assert len(sign_outs(root, alice)) == len(gone)


def test_malformed_device_lists_are_refused(root: User, alice: User) -> None:
    assert (root.post(delete_devices(alice), {"devices": []}).json, alice.get(WHOAMI).status) == (
        {},
        200,
    )
    for body, errcode in (
        ({}, "M_MISSING_PARAM"),
        ({"devices": None}, "M_BAD_JSON"),
        ({"devices": alice.device_id}, "M_BAD_JSON"),
        ({"devices": [alice.device_id, 7]}, "M_BAD_JSON"),
        ({"devices": [alice.device_id, ""]}, "M_INVALID_PARAM"),
        ({"devices": ["x"] * 10_001}, "M_BAD_JSON"),
    ):
        assert outcome(root.post(delete_devices(alice), body)) == (400, errcode)
    large = root.post(delete_devices(alice), {"devices": [alice.device_id, "x" * (256 << 10)]})
    assert outcome(large) == (413, "M_TOO_LARGE")
    assert alice.get(WHOAMI).status == 200


def test_devices_of_other_users_stay(server: TestServer, root: User, alice: User) -> None:
    bob = sign_in(server, server.register("bob"), alice.device_id)
    assert root.delete(devices(bob, alice.device_id)).status == 200
    assert root.post(delete_devices(bob), {"devices": [root.device_id]}).status == 200
    assert [outcome(each.get(WHOAMI))[0] for each in (alice, bob, root)] == [200, 401, 200]


def test_an_administrator_can_remove_their_own_device(server: TestServer, root: User) -> None:
    other = sign_in(server, root)
    assert root.delete(devices(root, root.device_id)).status == 200
    assert [outcome(each.get(WHOAMI))[0] for each in (root, other)] == [401, 200]


def test_owners_do_not_see_the_address_of_an_administrator(
    server: TestServer, root: User, alice: User
) -> None:
    phone = sign_in(server, alice, "PHONE")
    assert (
        server.client.request("POST", f"{V3}/logout", token=phone.token, ip="198.51.100.2").status
        == 200
    )
    laptop = sign_in(server, alice, "LAPTOP")
    path = devices(alice, laptop.device_id)
    assert server.client.request("DELETE", path, token=root.token, ip="192.0.2.1").status == 200
    assert sign_outs(root, alice) == [
        ("PHONE", None, "198.51.100.2"),
        ("LAPTOP", root.user_id, "192.0.2.1"),
    ]
    records = server.run(server.app.accounts.audit.get_records_for_owner(alice.user_id, 10))
    session_ends = [
        (each.device_id, each.address) for each in records if each.event == "session_ended"
    ]
    assert session_ends == [("LAPTOP", None), ("PHONE", "198.51.100.2")]


@pytest.mark.parametrize(
    ("user_id", "expected"),
    [
        ("@nobody:example.org", (404, "M_NOT_FOUND")),
        ("@a:elsewhere.org", (400, "M_INVALID_PARAM")),
        ("nobody", (400, "M_INVALID_PARAM")),
    ],
)
def test_unknown_and_remote_users_are_refused(
    root: User, user_id: str, expected: tuple[int, str]
) -> None:
    for answer in every_call(root, user_id, "X"):
        assert outcome(answer) == expected


def every_call(caller: User, user_id: str, device_id: str) -> list[Answer]:
    return [
        caller.get(devices(user_id)),
        caller.post(devices(user_id), {"device_id": "NEW"}),
        caller.get(devices(user_id, device_id)),
        caller.put(devices(user_id, device_id), {"display_name": "x"}),
        caller.delete(devices(user_id, device_id)),
        caller.post(delete_devices(user_id), {"devices": [device_id]}),
    ]


def test_only_administrators_manage_devices(server: TestServer, root: User, alice: User) -> None:
    for answer in every_call(alice, alice.user_id, alice.device_id):
        assert outcome(answer) == (403, "M_FORBIDDEN"), "not even for one's own account"
    assert server.get(devices(alice)).errcode == "M_MISSING_TOKEN"
    assert ids(root, alice) == [alice.device_id]
    assert root.get(devices(alice, alice.device_id)).json["display_name"] is None
