"""Keys of very many users and devices in one request, as clients send it to encrypt for a large
room."""

import time
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from federation.devices.local_devices import USERS_PER_TURN
from federation.devices.published_keys import PublishedKeyCache
from homeserver.services.encryption.device_keys import present_keys
from homeserver.services.encryption.key_queries import MAX_KEYS, MAX_USERS
from storage.encryption.device_keys import DeviceKeysRow
from storage.encryption.published_keys import PublishedKeys
from storage.engine.database import Database
from storage.engine.postgres_statements import NUL_SUBSTITUTE
from tests.helpers.keys import V3, claim, identity_keys, one_time_keys, query, upload
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User


def test_keys_of_all_members_of_a_very_large_room_can_be_queried_and_claimed_at_once(
    server: TestServer,
) -> None:
    """Clients query all members in one request. The server works in pieces and serves other
    requests in between."""
    alice, bob = server.register("alice"), server.register("bob")
    upload(bob, device_keys=identity_keys(bob)[1], one_time_keys=one_time_keys("a"))
    members = [*(f"@person.number.{n}:example.org" for n in range(12_000)), bob.user_id]
    pending = alice.start(
        "POST", f"{V3}/keys/query", {"device_keys": {member: [] for member in members}}
    )
    assert claim(alice, bob) is not None
    assert not pending.done, "other requests are served in between"
    server.clock.advance(0)
    assert pending.answer.status == 200
    assert pending.answer.json["device_keys"].keys() == set(members)
    assert list(pending.answer.json["device_keys"][bob.user_id]) == [bob.device_id]

    requested = {
        member: {f"DEVICE{n}": "signed_curve25519" for n in range(3)} for member in members[:-1]
    }
    upload(bob, one_time_keys=one_time_keys("b"))
    claims = {**requested, bob.user_id: {bob.device_id: "signed_curve25519"}}
    pending = alice.start("POST", f"{V3}/keys/claim", {"one_time_keys": claims})
    assert not pending.done
    server.clock.advance(0)
    assert pending.answer.status == 200
    assert pending.answer.json["one_time_keys"].keys() == {bob.user_id}


def test_ids_that_the_database_cannot_distinguish_do_not_get_the_same_key(
    tmp_path: Path, database: Database
) -> None:
    """PostgreSQL has no U+0000: another character, which an ID may contain, stands for it."""
    server = TestServer(tmp_path, database)
    alice = server.register("alice")
    login = {**password_auth("alice"), "device_id": f"D{NUL_SUBSTITUTE}"}
    phone = User(server, server.post(f"{V3}/login", login).json)
    upload(phone, one_time_keys=one_time_keys("a", "b"))
    requested = {phone.device_id: "signed_curve25519", "D\0": "signed_curve25519"}
    answer = alice.post(f"{V3}/keys/claim", {"one_time_keys": {phone.user_id: requested}})
    assert list(answer.json["one_time_keys"][phone.user_id]) == [phone.device_id]
    assert upload(phone) == {"signed_curve25519": 1}


def test_a_user_with_very_many_devices_does_not_break_encryption_for_a_room(
    tmp_path: Path, database: Database
) -> None:
    """All who share a room with the user fetch the keys of these devices."""
    server = TestServer(
        tmp_path, database, "rc_login: {account: {per_second: 100, burst_count: 100}}\n"
    )
    mallory, alice = server.register("mallory"), server.register("alice")
    login = password_auth("mallory")
    devices = [mallory, *(User(server, server.post(f"{V3}/login", login).json) for _ in range(17))]
    answers = [
        device.post(
            f"{V3}/keys/upload",
            {"device_keys": {**identity_keys(device)[1], "padding": "x" * 60_000}},
        )
        for device in devices
    ]
    assert {answer.status for answer in answers[:17]} == {200}
    assert (answers[17].status, answers[17].errcode) == (400, "M_INVALID_PARAM")
    assert len(query(alice, mallory)["device_keys"][mallory.user_id]) == 17

    assert mallory.post(f"{V3}/logout").status == 200
    upload(devices[17], device_keys=identity_keys(devices[17])[1])
    upload(devices[17], device_keys={**identity_keys(devices[17])[1], "padding": "x" * 60_000})


MANY_DEVICES = [DeviceKeysRow("@bob:example.org", f"D{n}", b"{}", None) for n in range(2000)]
NAMED = [f"E{n}" for n in range(200_000)]
"""The maximum that fits into one query."""


def test_a_query_that_names_very_many_devices_delays_nobody() -> None:
    began = time.process_time()
    shown = present_keys(
        PublishedKeys({"@bob:example.org": MANY_DEVICES}),
        None,
        {"@bob:example.org": [*NAMED, "D7"]},
    )
    assert list(shown["device_keys"]["@bob:example.org"]) == ["D7"]
    assert time.process_time() - began < 1


async def test_a_remote_query_that_names_very_many_devices_delays_nobody(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = server.app.federation_sender.own_devices
    published = PublishedKeys({"@bob:example.org": MANY_DEVICES})

    async def get_published(*_: object, **__: object) -> PublishedKeys:
        return published

    monkeypatch.setattr(PublishedKeyCache, "get_published", get_published)
    began = time.process_time()
    shown = await own.get_keys({"@bob:example.org": [*NAMED, "D7"]})
    assert list(shown["device_keys"]["@bob:example.org"]) == ["D7"]
    assert time.process_time() - began < 1


def test_queries_and_claims_are_bounded(server: TestServer) -> None:
    alice = server.register("alice")
    many: dict[str, list[str]] = {f"@p{n}:example.org": [] for n in range(MAX_USERS + 1)}
    question = alice.post(f"{V3}/keys/query", {"device_keys": many})
    assert (question.status, question.json["errcode"]) == (400, "M_INVALID_PARAM")
    claims = {alice.user_id: {f"D{n}": "x" for n in range(MAX_KEYS + 1)}}
    refused = alice.post(f"{V3}/keys/claim", {"one_time_keys": claims})
    assert (refused.status, refused.json["errcode"]) == (400, "M_INVALID_PARAM")


def test_a_large_query_counts_as_several(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(
        tmp_path, sqlite_database, "rc_key_requests: {per_second: 1, burst_count: 4}\n"
    )
    alice, bob = server.register("alice"), server.register("bob")
    many: dict[str, list[str]] = {f"@p{n}:example.org": [] for n in range(2_500)}
    pending = alice.start("POST", f"{V3}/keys/query", {"device_keys": many})
    for _ in range(20):
        server.clock.advance(0)
    assert pending.answer.status == 200
    answers = [
        user.post(f"{V3}/keys/query", {"device_keys": {}}).status for user in (alice, alice, bob)
    ]
    assert answers == [200, 429, 200], "three and one make four"


def test_claimed_keys_are_counted_for_requests_of_any_size(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, "rc_claimed_keys: {per_second: 1, burst_count: 4}\n"
    )
    alice, bob = server.register("alice"), server.register("bob")
    upload(bob, one_time_keys=one_time_keys(*"abcdef"))
    requested = {bob.user_id: {f"D{n}": "signed_curve25519" for n in range(7)}}
    assert alice.post(f"{V3}/keys/claim", {"one_time_keys": requested}).status == 200, (
        "a claim is never refused for its size"
    )
    refused = alice.post(f"{V3}/keys/claim", {"one_time_keys": requested})
    assert (refused.status, refused.json["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    assert claim(bob, bob) is not None
    server.clock.advance(refused.json["retry_after_ms"] / 1000)
    assert claim(alice, bob) is not None


def test_other_requests_are_served_while_another_server_queries_very_many(
    server: TestServer,
) -> None:
    alice = server.register("alice")
    upload(alice, device_keys=identity_keys(alice)[1])
    wanted: dict[str, list[str]] = {
        f"@u{number}:example.org": [] for number in range(2 * USERS_PER_TURN)
    }
    wanted[alice.user_id] = []
    found: list[Any] = []
    Deferred.fromCoroutine(server.app.federation_sender.own_devices.get_keys(wanted)).addCallback(
        found.append
    )
    assert found == []
    server.clock.advance(0)
    assert found[0]["device_keys"].keys() == wanted.keys()
    assert list(found[0]["device_keys"][alice.user_id]) == [alice.device_id]
