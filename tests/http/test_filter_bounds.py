"""Limits of stored filters: number and size."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from storage.engine.database import Database
from storage.filters import filters
from tests.helpers.http import Answer
from tests.helpers.room_actions import V3, ok, refused
from tests.helpers.server import TestServer, User
from tests.helpers.syncing import sync_path


def post(user: User, filter: Mapping[str, object]) -> Answer:
    return user.post(f"{V3}/user/{user.user_id}/filter", filter)


def test_filters_in_use_stay_and_others_are_deleted(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that uploaded many filters is not refused for ever."""
    monkeypatch.setattr(filters, "MAX_FILTERS", 2)
    monkeypatch.setattr(filters, "PROTECTED_UNUSED", 1)
    server = TestServer(tmp_path, database)
    alice, bob = server.register("alice"), server.register("bob")
    wanted = [{"room": {"timeline": {"limit": number}}} for number in range(1, 4)]

    def read(filter_id: str) -> Answer:
        return alice.get(f"{V3}/user/{alice.user_id}/filter/{filter_id}")

    assert [ok(post(alice, each))["filter_id"] for each in (*wanted[:2], *wanted[:2])] == [
        "0",
        "1",
        "0",
        "1",
    ]
    ok(alice.get(sync_path(filter="0")))
    server.clock.advance(24 * 3600)
    ok(alice.get(sync_path(filter="0")))
    assert ok(post(alice, wanted[2])) == {"filter_id": "2"}
    assert refused(read("1")) == (404, "M_NOT_FOUND")
    assert refused(alice.get(sync_path(filter="1"))) == (400, "M_INVALID_PARAM")
    assert [ok(read(filter_id)) for filter_id in "02"] == [wanted[0], wanted[2]]
    assert ok(post(alice, wanted[1])) == {"filter_id": "3"}
    assert ok(post(bob, wanted[2])) == {"filter_id": "0"}


def test_a_filter_in_use_stays_whatever_is_uploaded(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All within one day, and also for a server without a cache."""
    monkeypatch.setattr(filters, "MAX_FILTERS", 10)
    server = TestServer(tmp_path, database)
    alice = server.register("alice")
    filter_id = ok(post(alice, {"room": {"timeline": {"limit": 7}}}))["filter_id"]
    ok(alice.get(sync_path(filter=filter_id)))
    for number in range(15):
        ok(post(alice, {"number": number}))
    others = [ok(post(alice, {"other": number}))["filter_id"] for number in range(15)]
    for other in others[-6:]:
        ok(alice.get(sync_path(filter=other)))
        server.clock.advance(700)
        ok(alice.get(sync_path(filter=filter_id)))
    for number in range(20):
        later = ok(post(alice, {"later": number}))["filter_id"]
        ok(alice.get(sync_path(filter=later)))
        server.clock.advance(100)
        ok(alice.get(sync_path(filter=filter_id)))
    alice.server = TestServer(tmp_path, database, seed=9, now=server.clock.seconds() + 1)
    ok(alice.get(sync_path(filter=filter_id)))
    assert refused(alice.get(sync_path(filter=others[-1]))) == (400, "M_INVALID_PARAM")


def test_large_filters_count_by_their_size(server: TestServer) -> None:
    alice = server.register("alice")

    def large(number: int, size: int = 60_000) -> dict[str, object]:
        return {"note": f"{number}".ljust(size, "x")}

    assert refused(post(alice, large(0, 65_536))) == (413, "M_TOO_LARGE")
    ids = [ok(post(alice, large(number)))["filter_id"] for number in range(18)]
    assert ids == [str(number) for number in range(18)]
    assert [
        alice.get(f"{V3}/user/{alice.user_id}/filter/{filter_id}").status for filter_id in ids
    ] == [404] + [200] * 17


def test_the_filter_cache_is_bounded(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "caches: {global_factor: 0.01}\n")
    alice = server.register("alice")
    ids = [
        ok(post(alice, {"note": f"{number}".ljust(40_000, "x")}))["filter_id"]
        for number in range(4)
    ]
    for filter_id in ids * 2:
        ok(alice.get(sync_path(filter=filter_id)))
        assert 200_000 < server.app.user_data.filters.weight < 400_000
