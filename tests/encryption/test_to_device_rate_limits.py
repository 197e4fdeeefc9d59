"""The rate limit in bytes of to-device messages, which their devices may never fetch."""

from pathlib import Path
from typing import Any

import pytest

from homeserver.config.limits import LimitOptions
from homeserver.services.encryption import to_device
from storage.engine.database import Database
from tests.helpers.http import Answer
from tests.helpers.keys import V3, sync
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User

SLOW = "rc_to_device_bytes: {per_second: 1000, burst_count: 20000}\n"
LIMITED = (429, "M_LIMIT_EXCEEDED")


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database, SLOW)


def send(sender: User, txn_id: object, messages: dict[str, dict[str, Any]]) -> Answer:
    return sender.put(f"{V3}/sendToDevice/m.test/{txn_id}", {"messages": messages})


def to(user: User, size: int, device: str | None = None) -> dict[str, dict[str, Any]]:
    return {user.user_id: {device or str(user.device_id): {"x": "y" * size}}}


def test_a_user_who_sends_too_much_is_limited_and_others_are_not(
    server: TestServer, alice: User
) -> None:
    bob = server.register("bob")
    since = sync(bob)["next_batch"]
    assert send(alice, 1, to(bob, 9_000)).status == 200
    assert send(alice, 2, to(bob, 15_000)).status == 200, "a single request may be sent"
    refused = send(alice, 3, to(bob, 10))
    assert (refused.status, refused.errcode) == LIMITED
    wait = refused.json["retry_after_ms"]
    assert 5_000 < wait < 8_000
    assert send(bob, 1, to(alice, 9_000)).status == 200
    server.clock.advance(wait / 1000)
    assert send(alice, 3, to(bob, 10)).status == 200
    assert len(sync(bob, since)["to_device"]["events"]) == 3


def test_a_repeated_request_is_accepted_and_counts_once(alice: User) -> None:
    for _ in range(5):
        assert send(alice, 1, to(alice, 9_000)).status == 200
    assert send(alice, 2, to(alice, 15_000)).status == 200
    assert send(alice, 3, to(alice, 10)).errcode == "M_LIMIT_EXCEEDED"
    for txn_id in (1, 2):
        assert send(alice, txn_id, to(alice, 9_000)).status == 200, (
            "it was sent before the limit was reached"
        )


def test_refused_messages_do_not_count(alice: User) -> None:
    for number in range(5):
        assert send(alice, number, to(alice, 70_000)).errcode == "M_TOO_LARGE"
    assert send(alice, 5, to(alice, 10)).status == 200


def test_each_device_of_a_wildcard_counts(
    server: TestServer, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = server.register("bob")
    for number in range(9):
        server.post(
            f"{V3}/login",
            {**password_auth("bob"), "device_id": f"D{number}"},
        )
    decoys: dict[str, dict[str, Any]] = {
        bob.user_id: {**{f"none{number}": {} for number in range(20)}, "*": {"x": "y" * 3_000}}
    }
    assert send(alice, 1, decoys).status == 200
    refused = send(alice, 2, to(bob, 10))
    assert (refused.status, refused.errcode) == LIMITED
    assert refused.json["retry_after_ms"] > 20_000
    server.clock.advance(60)
    monkeypatch.setattr(to_device, "MAX_COPIED_BYTES", 30_000)
    since = sync(bob)["next_batch"]
    assert (send(alice, 3, to(bob, 3_000, "*")).errcode) == "M_TOO_LARGE"
    assert sync(bob, since).get("to_device", {}).get("events", []) == []


def test_room_keys_of_large_rooms_stay_far_below_the_default_limit() -> None:
    """A room of 1,000 devices with a new key each minute, and a hundred such rooms at once."""
    usual = LimitOptions().rc_to_device_bytes
    keys_of_a_room = (
        1_000 * (1_100 + to_device.MESSAGE_OVERHEAD_BYTES) + to_device.REQUEST_OVERHEAD_BYTES
    )
    assert usual.per_second >= 2 * keys_of_a_room / 60
    assert usual.burst_count >= 100 * keys_of_a_room
    assert usual.per_second * 3600 + usual.burst_count < 400e6, (
        "nobody can fill the disk within an hour"
    )
