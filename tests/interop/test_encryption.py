"""With Synapse: the requirements of encryption. Device lists are updated, keys are found, and
to-device messages arrive once."""

from typing import Any

import pytest

from tests.helpers.encrypted_rooms import ENCRYPTION_EVENT
from tests.helpers.interop import Person, create_shared_room, publish_keys, until
from tests.helpers.keys import cross_signing_key
from tests.interop.conftest import Pair

SIDES = pytest.mark.parametrize("we_are_host", [True, False], ids=["our-room", "their-room"])


def devices(person: Person, other: Person) -> dict[str, Any]:
    answer = person.ok("POST", "/keys/query", {"device_keys": {other.user_id: []}})
    found: dict[str, Any] = answer["device_keys"].get(other.user_id, {})
    return found


def keys_of(found: dict[str, Any]) -> dict[str, Any]:
    return {name: device["keys"] for name, device in found.items()}


def changed(person: Person, since: str) -> list[str]:
    names: list[str] = person.sync(since).get("device_lists", {}).get("changed", [])
    return names


@SIDES
def test_device_lists_and_their_changes_federate(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    create_shared_room(host, guest, initial_state=[ENCRYPTION_EVENT])
    keys = publish_keys(host, 1)
    until(lambda: keys_of(devices(guest, host)) == {host.device_id: keys["keys"]})

    since = guest.sync()["next_batch"]
    second = host.another_device()
    more = publish_keys(second, 2)
    until(lambda: host.user_id in changed(guest, since))
    until(
        lambda: (
            keys_of(devices(guest, host))
            == {host.device_id: keys["keys"], second.device_id: more["keys"]}
        )
    )
    since = guest.sync()["next_batch"]
    second.ok("POST", "/logout")
    until(lambda: host.user_id in changed(guest, since))
    until(lambda: list(devices(guest, host)) == [host.device_id])


@SIDES
def test_cross_signing_keys_federate(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    create_shared_room(host, guest, initial_state=[ENCRYPTION_EVENT])
    publish_keys(host, 3)
    until(lambda: devices(guest, host))
    since = guest.sync()["next_batch"]
    master, master_key = cross_signing_key(host, "master", 4)
    _, signing = cross_signing_key(host, "self_signing", 5, master)
    _, users = cross_signing_key(host, "user_signing", 6, master)

    body = {"master_key": master_key, "self_signing_key": signing, "user_signing_key": users}
    path = "/keys/device_signing/upload"
    said = host.ask("POST", path, body)
    if said.status == 401:
        proof = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": host.user_id},
        }
        proof |= {"password": "wonderland", "session": said.json["session"]}
        host.ok("POST", path, {**body, "auth": proof})

    until(lambda: host.user_id in changed(guest, since))

    def seen() -> Any:
        return guest.ok("POST", "/keys/query", {"device_keys": {host.user_id: []}})

    until(
        lambda: (
            seen().get("master_keys", {}).get(host.user_id, {}).get("keys") == master_key["keys"]
        )
    )
    until(
        lambda: (
            seen().get("self_signing_keys", {}).get(host.user_id, {}).get("keys") == signing["keys"]
        )
    )
    assert host.user_id not in seen().get("user_signing_keys", {})


@SIDES
def test_a_one_time_key_is_claimed_once(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    create_shared_room(host, guest, initial_state=[ENCRYPTION_EVENT])
    publish_keys(host, 7, "AAAAAQ", "AAAAAg")
    requested = {
        "one_time_keys": {host.user_id: {host.device_id: "signed_curve25519"}},
        "timeout": 60_000,
    }

    claimed = [guest.ok("POST", "/keys/claim", requested)["one_time_keys"] for _ in range(3)]

    names = [list(each.get(host.user_id, {}).get(host.device_id, {})) for each in claimed]
    assert sorted(names) == [[], ["signed_curve25519:AAAAAQ"], ["signed_curve25519:AAAAAg"]]


@SIDES
def test_to_device_messages_arrive_in_order_and_once(pair: Pair, we_are_host: bool) -> None:
    host, guest = pair.both_ways(we_are_host)
    create_shared_room(host, guest, initial_state=[ENCRYPTION_EVENT])
    since = guest.sync()["next_batch"]

    for number in range(30):
        messages = {guest.user_id: {guest.device_id: {"number": number}}}
        host.ok(
            "PUT",
            f"/sendToDevice/org.example.number/{host.device_id}{number}",
            {"messages": messages},
        )

    came: list[int] = []

    def look() -> bool:
        nonlocal since
        answer = guest.sync(since)
        since = answer["next_batch"]
        came.extend(
            event["content"]["number"] for event in answer.get("to_device", {}).get("events", [])
        )
        return len(came) >= 30

    until(look)
    assert came == list(range(30))
