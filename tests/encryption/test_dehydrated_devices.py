"""Dehydrated devices (MSC3814): one per user, listed as other devices, and read without loss."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.dehydrated_devices import (
    DEVICE_DATA,
    DEVICE_ID,
    PATH,
    PATHS,
    UNSTABLE,
    dehydrated_device,
    dehydrated_device_keys,
    put_dehydrated_device,
)
from tests.helpers.keys import V3, claim, cross_signing_key, identity_keys, query, sync, upload
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User


def events(device_id: str, path: str = PATH) -> str:
    return f"{path}/{quote(device_id, safe='')}/events"


def send(user: User, to: User, device_id: str, numbers: range) -> None:
    for number in numbers:
        body = {"messages": {to.user_id: {device_id: {"n": number}}}}
        assert user.put(f"{V3}/sendToDevice/org.example/{number}", body).status == 200


def numbers(answer: Any) -> list[int]:
    return [event["content"]["n"] for event in answer["events"]]


def test_the_feature_is_advertised(alice: User) -> None:
    assert (
        alice.get("/_matrix/client/versions").json["unstable_features"]["org.matrix.msc3814"]
        is True
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_device_can_be_uploaded_read_and_deleted(alice: User, bob: User, path: str) -> None:
    answer = alice.get(path)
    assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")
    put_dehydrated_device(alice, path=path)
    assert alice.get(path).json == {"device_id": DEVICE_ID, "device_data": DEVICE_DATA}
    assert bob.get(path).status == 404, "it belongs to the user"
    assert alice.delete(path, {}).json == {"device_id": DEVICE_ID}
    assert alice.get(path).status == 404
    assert alice.delete(path, {}).errcode == "M_NOT_FOUND"
    assert query(bob, alice)["device_keys"][alice.user_id] == {}


def test_other_users_see_a_dehydrated_device_with_all_its_keys(alice: User, bob: User) -> None:
    put_dehydrated_device(alice)
    found = query(bob, alice)["device_keys"][alice.user_id][DEVICE_ID]
    assert {
        name: value for name, value in found.items() if name != "unsigned"
    } == dehydrated_device_keys(alice, DEVICE_ID)
    assert DEVICE_ID in {
        device["device_id"] for device in alice.get(f"{V3}/devices").json["devices"]
    }
    requested = {alice.user_id: {DEVICE_ID: "signed_curve25519"}}
    given = [
        list(
            bob.post(f"{V3}/keys/claim", {"one_time_keys": requested}).json["one_time_keys"][
                alice.user_id
            ][DEVICE_ID]
        )
        for _ in range(2)
    ]
    assert given == [["signed_curve25519:a"], ["signed_curve25519:f"]]


def test_users_who_share_an_encrypted_room_are_notified(alice: User, bob: User) -> None:
    encryption = {
        "type": "m.room.encryption",
        "state_key": "",
        "content": {"algorithm": "m.megolm.v1.aes-sha2"},
    }
    requested = {"preset": "public_chat", "initial_state": [encryption]}
    room_id = alice.post(f"{V3}/createRoom", requested).json["room_id"]
    assert bob.post(f"{V3}/join/{room_id}").status == 200
    since = sync(bob)["next_batch"]
    for change in (
        lambda: put_dehydrated_device(alice),
        lambda: put_dehydrated_device(alice, "other"),
        lambda: alice.delete(PATH, {}),
    ):
        change()
        answer = sync(bob, since)
        assert answer["device_lists"]["changed"] == [alice.user_id]
        since = answer["next_batch"]


def test_a_new_device_replaces_the_previous_one(alice: User, bob: User) -> None:
    put_dehydrated_device(alice)
    send(bob, alice, DEVICE_ID, range(1))
    put_dehydrated_device(alice, "another")
    assert alice.get(PATH).json["device_id"] == "another"
    assert list(query(bob, alice)["device_keys"][alice.user_id]) == ["another"]
    answer = alice.get(events(DEVICE_ID))
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    put_dehydrated_device(alice)
    assert alice.get(events(DEVICE_ID)).json == {"events": []}, (
        "it is a new device, though with the old ID"
    )


def test_a_repeated_upload_keeps_the_messages(alice: User, bob: User) -> None:
    put_dehydrated_device(alice)
    send(bob, alice, DEVICE_ID, range(1))
    put_dehydrated_device(alice)
    assert numbers(alice.get(events(DEVICE_ID)).json) == [0]


def test_a_new_device_with_the_same_id_starts_without_messages(alice: User, bob: User) -> None:
    put_dehydrated_device(alice)
    send(bob, alice, DEVICE_ID, range(1, 3))
    other = {
        **dehydrated_device(alice),
        "device_keys": dehydrated_device_keys(alice, DEVICE_ID, seed=8),
    }
    other["one_time_keys"] = {"signed_curve25519:a": {"key": "another", "signatures": {}}}
    assert alice.put(PATH, other).status == 200
    send(bob, alice, DEVICE_ID, range(3, 4))
    assert numbers(alice.get(events(DEVICE_ID)).json) == [3]
    requested = {"one_time_keys": {alice.user_id: {DEVICE_ID: "signed_curve25519"}}}
    (given,) = (
        bob.post(f"{V3}/keys/claim", requested)
        .json["one_time_keys"][alice.user_id][DEVICE_ID]
        .values()
    )
    assert given["key"] == "another", "no key of the old device can be claimed"
    assert (
        query(bob, alice)["device_keys"][alice.user_id][DEVICE_ID]["keys"]
        == other["device_keys"]["keys"]
    )


def test_messages_come_in_pages_and_are_not_deleted(alice: User, bob: User) -> None:
    put_dehydrated_device(alice)
    send(bob, alice, DEVICE_ID, range(250))
    for _ in range(2):
        got: list[int] = []
        after = ""
        while True:
            answer = alice.get(events(DEVICE_ID) + (f"?from={after}" if after else "")).json
            got += numbers(answer)
            if "next_batch" not in answer:
                break
            after = answer["next_batch"]
        assert got == list(range(250))


def test_the_older_version_ends_with_an_empty_page(alice: User, bob: User) -> None:
    put_dehydrated_device(alice, path=UNSTABLE)
    send(bob, alice, DEVICE_ID, range(120))
    got: list[int] = []
    body: dict[str, Any] = {}
    while True:
        answer = alice.post(events(DEVICE_ID, UNSTABLE), body).json
        if not answer["events"]:
            break
        got += numbers(answer)
        body = {"next_batch": answer["next_batch"]}
    assert got == list(range(120))


def test_only_the_owner_reads_the_events(alice: User, bob: User) -> None:
    put_dehydrated_device(alice)
    for user, device_id in ((bob, DEVICE_ID), (alice, alice.device_id), (alice, "NONE")):
        answer = user.get(events(device_id))
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    for malformed in ("x", "-1", "9" * 40, "%C2%B2"):
        answer = alice.get(f"{events(DEVICE_ID)}?from={malformed}")
        assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM"), malformed


def test_a_dehydrated_device_is_deleted_with_all_sessions_and_with_other_devices(
    server: TestServer, alice: User
) -> None:
    put_dehydrated_device(alice)
    answer = alice.delete(f"{V3}/devices/{quote(DEVICE_ID, safe='')}", {})
    auth = {**password_auth(alice.user_id), "session": answer.json["session"]}
    assert alice.delete(f"{V3}/devices/{quote(DEVICE_ID, safe='')}", {"auth": auth}).status == 200
    assert alice.get(PATH).status == 404
    put_dehydrated_device(alice)
    assert alice.post(f"{V3}/logout/all").status == 200
    new_session = User(server, server.post(f"{V3}/login", {**auth, "session": None}).json)
    assert new_session.get(PATH).status == 404


def test_a_dehydrated_device_is_refused_at_login_and_cannot_replace_a_session(
    server: TestServer, alice: User
) -> None:
    answer = alice.put(PATH, dehydrated_device(alice, alice.device_id))
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    put_dehydrated_device(alice)
    login = {**password_auth(alice.user_id), "device_id": DEVICE_ID}
    assert server.post(f"{V3}/login", login).errcode == "M_FORBIDDEN"
    _, master = cross_signing_key(alice, "master", 2)
    assert alice.post(f"{V3}/keys/device_signing/upload", {"master_key": master}).status == 200
    (public,) = master["keys"].values()
    assert alice.put(PATH, dehydrated_device(alice, public)).errcode == "M_FORBIDDEN"
    assert alice.get(PATH).json["device_id"] == DEVICE_ID, "the refused request changed nothing"


@pytest.mark.parametrize(
    ("changed", "errcode"),
    [
        ({"device_keys": None}, "M_MISSING_PARAM"),
        ({"device_data": {}}, "M_INVALID_PARAM"),
        (
            {"device_data": {"algorithm": "m.dehydration.v2", "device_pickle": "x" * 100_000}},
            "M_INVALID_PARAM",
        ),
        ({"device_id": "other"}, "M_INVALID_PARAM"),
        ({"device_id": ""}, "M_INVALID_PARAM"),
        ({"one_time_keys": {"nameless": "x"}}, "M_INVALID_PARAM"),
        ({"device_data": "text"}, "M_BAD_JSON"),
    ],
)
def test_malformed_requests_are_refused(alice: User, changed: dict[str, Any], errcode: str) -> None:
    answer = alice.put(PATH, {**dehydrated_device(alice), **changed})
    assert (answer.status, answer.errcode) == (400, errcode), answer.body
    assert alice.get(PATH).status == 404


def test_the_user_can_sign_in_on_another_device(alice: User, bob: User) -> None:
    put_dehydrated_device(alice)
    upload(
        alice,
        device_keys=identity_keys(alice)[1],
        one_time_keys={"signed_curve25519:z": {"key": "z"}},
    )
    assert query(bob, alice)["device_keys"][alice.user_id].keys() == {DEVICE_ID, alice.device_id}
    assert list(claim(bob, alice)) == ["signed_curve25519:z"]
    body = {"messages": {alice.user_id: {"*": {"n": 1}}}}
    assert bob.put(f"{V3}/sendToDevice/org.example/wild", body).status == 200
    assert numbers(alice.get(events(DEVICE_ID)).json) == [1]
    assert numbers(sync(alice)["to_device"]) == [1]


def test_the_device_id_cannot_be_the_wildcard(server: TestServer) -> None:
    """Messages to all devices would go to this device alone."""
    alice = server.register("alice")
    login = {**password_auth(alice.user_id), "device_id": "*"}
    account = {"username": "bob", "password": "wonderland", "auth": {"type": "m.login.dummy"}}
    for answer in (
        server.post(f"{V3}/login", login),
        server.post(f"{V3}/register", {**account, "device_id": "*"}),
        alice.put(PATH, dehydrated_device(alice, "*")),
    ):
        assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    assert server.post(f"{V3}/register", account).status == 200, "nothing was stored"
