"""Mutual rooms. spec: client-server-api#mutual-rooms"""

from urllib.parse import urlencode

import pytest

from homeserver.services.rooms.mutual_rooms import PAGE_SIZE
from tests.helpers.http import Answer
from tests.helpers.room_actions import create, invite, join, leave, ok, refused
from tests.helpers.server import TestServer, User

STABLE = "/_matrix/client/v1/mutual_rooms"
UNSTABLE = "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms"


def ask(user: User, path: str = STABLE, **query: str) -> Answer:
    return user.get(f"{path}?{urlencode(query)}")


def test_mutual_rooms_are_listed(alice: User, bob: User) -> None:
    rooms = [create(alice, preset="public_chat") for _ in range(4)]
    invited = create(alice, preset="private_chat")
    invite(alice, invited, bob)
    for room in rooms[1:]:
        join(bob, room)
    leave(alice, rooms[2])
    expected = {"joined": [rooms[1], rooms[3]], "count": 2}
    for path in (STABLE, UNSTABLE):
        assert ok(ask(alice, path, user_id=bob.user_id)) == expected
        assert ok(ask(bob, path, user_id=alice.user_id)) == expected


def test_an_unknown_user_has_no_mutual_rooms(alice: User) -> None:
    create(alice)
    assert ok(ask(alice, user_id="@nobody:other.org")) == {"joined": [], "count": 0}


def test_mutual_rooms_are_paged(alice: User, bob: User) -> None:
    rooms = [create(alice, preset="public_chat") for _ in range(PAGE_SIZE + 3)]
    for room in rooms:
        join(bob, room)
    first = ok(ask(alice, user_id=bob.user_id))
    assert (first["joined"], first["count"]) == (rooms[:PAGE_SIZE], len(rooms))
    last = ok(
        alice.get(f"{STABLE}?{urlencode({'user_id': bob.user_id, 'from': first['next_batch']})}")
    )
    assert last == {"joined": rooms[PAGE_SIZE:], "count": len(rooms)}
    # the request of matrix-js-sdk
    assert (
        ok(ask(alice, UNSTABLE, user_id=bob.user_id, batch_token=first["next_batch_token"])) == last
    )


@pytest.mark.parametrize(
    "user_id", ["@alice:example.org", "alice", "", "@Ä:example.org", "@:example.org"]
)
def test_invalid_users_are_refused(alice: User, user_id: str) -> None:
    assert refused(ask(alice, user_id=user_id)) == (400, "M_INVALID_PARAM")


def test_invalid_requests_are_refused(server: TestServer, alice: User, bob: User) -> None:
    assert refused(ask(alice)) == (400, "M_MISSING_PARAM")
    for token in ("x", "-1", "9" * 30, "²"):
        path = f"{STABLE}?{urlencode({'user_id': bob.user_id, 'from': token})}"
        assert refused(alice.get(path)) == (400, "M_INVALID_PARAM")
    assert refused(server.get(f"{STABLE}?user_id=@bob:example.org")) == (401, "M_MISSING_TOKEN")


def test_the_feature_is_advertised(server: TestServer) -> None:
    features = ok(server.get("/_matrix/client/versions"))["unstable_features"]
    assert features["uk.half-shot.msc2666.query_mutual_rooms"] is True
    assert features["uk.half-shot.msc2666.query_mutual_rooms.stable"] is True
