"""How many filters a user keeps with the server, and how large they are."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from homeserver.services import filters
from storage.database import Database
from tests.helpers.http import Answer
from tests.helpers.server import TestServer, User
from tests.helpers.syncing import sync_path
from tests.helpers.talk import V3, ok, refused


def post(user: User, filter: Mapping[str, object]) -> Answer:
    return user.post(f"{V3}/user/{user.user_id}/filter", filter)


def test_the_same_filter_again_takes_nothing(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    monkeypatch.setattr(filters, "MOST_FILTERS", 2)
    wanted = [{"room": {"timeline": {"limit": number}}} for number in range(3)]
    assert [ok(post(alice, each))["filter_id"] for each in (*wanted[:2], *wanted[:2])] == ["0", "1", "0", "1"]
    assert refused(post(alice, wanted[2])) == (403, "M_USER_LIMIT_EXCEEDED")
    assert post(alice, wanted[2]).json["info_uri"] == "https://example.org/"
    assert ok(alice.get(f"{V3}/user/{alice.user_id}/filter/1")) == wanted[1]
    assert ok(post(bob, wanted[2])) == {"filter_id": "0"}


def test_large_filters_are_counted_by_their_size(server: TestServer) -> None:
    alice = server.register("alice")

    def large(number: int, size: int = 60_000) -> dict[str, object]:
        return {"note": f"{number}".ljust(size, "x")}

    assert refused(post(alice, large(0, 65_536))) == (413, "M_TOO_LARGE")
    statuses = [post(alice, large(number)).status for number in range(18)]
    assert statuses == [200] * 17 + [403]
    assert post(alice, {"room": {"timeline": {"limit": 1}}}).status == 200


def test_what_of_filters_is_in_memory_is_bounded(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "caches: {global_factor: 0.01}\n")
    alice = server.register("alice")
    ids = [ok(post(alice, {"note": f"{number}".ljust(40_000, "x")}))["filter_id"] for number in range(4)]
    for filter_id in ids * 2:
        ok(alice.get(sync_path(filter=filter_id)))
        assert 200_000 < server.app.people.filters.weight < 400_000
