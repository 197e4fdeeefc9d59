"""Summaries of rooms for non-members. spec:
client-server-api#get_matrixclientv1room_summaryroomidoralias"""

from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.federated_rooms import two_users
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, WEST
from tests.helpers.room_actions import (
    create,
    invite,
    join,
    leave,
    membership,
    ok,
    refused,
    set_state,
)
from tests.helpers.server import TestServer, User
from tests.helpers.spaces import summary, summary_path


def restricted(alice: User, *allowed: str, rule: str = "restricted", **requested: Any) -> str:
    room = create(alice, preset="private_chat", **requested)
    allow = [{"type": "m.room_membership", "room_id": room_id} for room_id in allowed]
    set_state(alice, room, "m.room.join_rules", {"join_rule": rule, "allow": allow})
    return room


def test_a_public_room_has_a_full_summary(alice: User, bob: User) -> None:
    room = create(
        alice,
        preset="public_chat",
        name="Tea",
        topic="leaves",
        room_alias_name="tea",
        room_version="11",
        initial_state=[
            {"type": "m.room.avatar", "content": {"url": "mxc://example.org/cup"}},
            {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
        ],
    )
    expected = {
        "room_id": room,
        "name": "Tea",
        "topic": "leaves",
        "canonical_alias": "#tea:example.org",
        "avatar_url": "mxc://example.org/cup",
        "num_joined_members": 1,
        "world_readable": False,
        "guest_can_join": False,
        "join_rule": "public",
        "encryption": "m.megolm.v1.aes-sha2",
        "im.nheko.summary.encryption": "m.megolm.v1.aes-sha2",
        "room_version": "11",
        "im.nheko.summary.room_version": "11",
        "im.nheko.summary.version": "11",
        "membership": "leave",
    }
    assert ok(summary(bob, room)) == expected
    assert ok(summary(bob, "#tea:example.org")) == expected
    assert ok(summary(alice, room)) == expected | {"membership": "join"}


def test_older_paths_return_the_same(alice: User) -> None:
    room = create(alice, preset="public_chat")
    unstable = "/_matrix/client/unstable/im.nheko.summary"
    stable = ok(summary(alice, room))
    assert ok(alice.get(f"{unstable}/summary/{quote(room)}?via=example.org")) == stable
    assert ok(alice.get(f"{unstable}/rooms/{quote(room)}/summary")) == stable


def test_without_authentication_only_open_rooms_are_visible(
    server: TestServer, alice: User
) -> None:
    public, private = create(alice, preset="public_chat"), create(alice, preset="private_chat")
    knock = create(
        alice, initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}]
    )
    readable = create(
        alice,
        initial_state=[
            {
                "type": "m.room.history_visibility",
                "content": {"history_visibility": "world_readable"},
            }
        ],
    )
    for room in (public, knock, readable):
        answer = ok(server.get(summary_path(room)))
        assert answer["room_id"] == room
        assert "membership" not in answer
    assert ok(server.get(summary_path(readable)))["world_readable"] is True
    assert refused(server.get(summary_path(private))) == (404, "M_NOT_FOUND")
    assert refused(server.get(summary_path(restricted(alice, public)))) == (404, "M_NOT_FOUND")
    assert refused(server.get(summary_path("!none:example.org"))) == (404, "M_NOT_FOUND")


def test_an_invalid_token_is_refused(server: TestServer, alice: User) -> None:
    room = create(alice, preset="public_chat")
    assert refused(server.client.request("GET", summary_path(room), token="nonsense")) == (
        401,
        "M_UNKNOWN_TOKEN",
    )


def test_guests_get_summaries(server: TestServer, alice: User) -> None:
    guest = User(server, ok(server.post("/_matrix/client/v3/register?kind=guest", {})))
    room = create(alice, preset="public_chat")
    assert ok(summary(guest, room))["membership"] == "leave"


def test_a_private_room_is_visible_to_invited_users_only(alice: User, bob: User) -> None:
    room = create(alice, preset="private_chat")
    assert refused(summary(bob, room)) == (404, "M_NOT_FOUND")
    invite(alice, room, bob)
    assert ok(summary(bob, room))["membership"] == "invite"
    join(bob, room)
    assert ok(summary(bob, room))["membership"] == "join"
    leave(bob, room)
    assert refused(summary(bob, room)) == (404, "M_NOT_FOUND")


def test_banned_users_get_no_summary(alice: User, bob: User) -> None:
    room = create(alice, preset="public_chat")
    ok(membership(alice, room, "ban", bob))
    assert refused(summary(bob, room)) == (404, "M_NOT_FOUND")
    set_state(alice, room, "m.room.history_visibility", {"history_visibility": "world_readable"})
    assert ok(summary(bob, room))["membership"] == "ban"


def test_members_of_an_allowed_room_see_a_restricted_room(alice: User, bob: User) -> None:
    club = create(alice, preset="public_chat")
    room = restricted(alice, club, "!elsewhere:other.org")
    assert refused(summary(bob, room)) == (404, "M_NOT_FOUND")
    join(bob, club)
    received = ok(summary(bob, room))
    assert (received["join_rule"], received["allowed_room_ids"]) == (
        "restricted",
        [club, "!elsewhere:other.org"],
    )
    set_state(alice, room, "m.room.join_rules", {"join_rule": "invite"})
    assert "allowed_room_ids" not in ok(summary(alice, room))
    assert refused(summary(bob, room)) == (404, "M_NOT_FOUND")


def test_rooms_with_knocking_are_visible_to_everyone(alice: User, bob: User) -> None:
    room = restricted(alice, "!elsewhere:other.org", rule="knock_restricted", room_version="10")
    assert ok(summary(bob, room))["allowed_room_ids"] == ["!elsewhere:other.org"]


def test_a_join_rule_unknown_to_the_version_hides_the_room(alice: User, bob: User) -> None:
    club = create(alice, preset="public_chat")
    join(bob, club)
    for rule, version in (("knock", "6"), ("restricted", "7"), ("knock_restricted", "9")):
        room = restricted(alice, club, rule=rule, room_version=version)
        assert refused(summary(bob, room)) == (404, "M_NOT_FOUND"), rule


def test_the_summary_has_the_plain_text_topic(alice: User) -> None:
    room = create(alice, preset="public_chat", topic="old")
    forms = [{"mimetype": "text/html", "body": "<b>new</b>"}, {"body": "new"}]
    set_state(alice, room, "m.room.topic", {"topic": "fallback", "m.topic": {"m.text": forms}})
    assert ok(summary(alice, room))["topic"] == "new"
    set_state(alice, room, "m.room.topic", {"topic": "plain", "m.topic": {"m.text": "nonsense"}})
    assert ok(summary(alice, room))["topic"] == "plain"


@pytest.mark.parametrize("name", ["nonsense", "@alice:example.org", "$event"])
def test_an_invalid_room_id_is_refused(alice: User, name: str) -> None:
    assert refused(summary(alice, name)) == (400, "M_INVALID_PARAM")


def test_via_must_be_server_names(alice: User) -> None:
    room = create(alice, preset="public_chat")
    assert refused(alice.get(summary_path(room, via=["no server"]))) == (400, "M_INVALID_PARAM")
    assert ok(alice.get(summary_path(room, via=["other.org", "example.org"])))["room_id"] == room


def test_the_summary_of_a_room_on_another_server(network: Network) -> None:
    alice, bob = two_users(network)
    garden = create(alice, name="Garden", preset="public_chat", room_alias_name="garden")
    cellar = create(alice, name="Cellar", preset="private_chat")

    assert refused(bob.get(summary_path(garden, via=[WEST]))) == (404, "M_NOT_FOUND")
    for path in (summary_path(garden, via=[NORTH]), summary_path(f"#garden:{NORTH}")):
        found = ok(bob.get(path))
        assert (found["name"], found["membership"], found["num_joined_members"]) == (
            "Garden",
            "leave",
            1,
        )
    hidden = bob.get(summary_path(cellar, via=[NORTH]))
    assert refused(hidden) == (404, "M_NOT_FOUND")


def test_the_summary_of_a_remote_room_needs_a_server_that_knows_it(network: Network) -> None:
    alice, bob = two_users(network)
    room = create(alice, preset="public_chat", name="Tea", room_alias_name="tea")
    secret = create(alice, preset="private_chat")

    by_north = ok(bob.get(summary_path(room, via=[NORTH])))

    assert (by_north["room_id"], by_north["name"], by_north["membership"]) == (room, "Tea", "leave")
    assert ok(bob.get(summary_path(f"#tea:{NORTH}")))["room_id"] == room
    assert ok(bob.server.get(summary_path(room, via=[NORTH])))["name"] == "Tea"
    assert refused(bob.get(summary_path(secret, via=[NORTH]))) == (404, "M_NOT_FOUND")
    assert refused(bob.get(summary_path("!none:nowhere.example"))) == (404, "M_NOT_FOUND")
