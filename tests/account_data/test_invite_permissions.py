"""Invite permissions. spec: client-server-api#invite-permission; MSC4155, MSC4380"""

from typing import Any

import pytest

from tests.helpers.room_actions import V3, create, membership, ok, refused, room_path
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list
from tests.helpers.sync_requests import Json, Rooms, poll, sync

STABLE = "m.invite_permission_config"
MSC4380 = "org.matrix.msc4380.invite_permission_config"
MSC4155 = "org.matrix.msc4155.invite_permission_config"
BLOCKED = (403, "M_INVITE_BLOCKED")

rooms = Rooms()


def invite(by: User, whom: User, room_id: str | None = None) -> Any:
    return membership(by, room_id or create(by), "invite", whom)


def invites(user: User) -> set[str]:
    """The rooms to which a user is invited, by all kinds of sync."""
    by_sync = set(sync(user).get("rooms", {}).get("invite", {}))
    client = SlidingClient(user, lists={"all": a_list([0, 99])}, room_subscriptions={})
    old = {
        room["room_id"]
        for room in ok(user.get(f"{V3}/initialSync"))["rooms"]
        if room["membership"] == "invite"
    }
    assert old == by_sync
    listed = {room_id for room_id, room in client.sync()["rooms"].items() if "invite_state" in room}
    assert listed == by_sync
    return by_sync


@pytest.mark.parametrize("type_", [STABLE, MSC4380])
def test_a_user_who_blocks_all_invites_is_not_invited(alice: User, bob: User, type_: str) -> None:
    before = create(alice)
    ok(invite(alice, bob, before))
    assert invites(bob) == {before}
    rooms.keep(bob, type_, {"default_action": "block"})
    room_id = create(alice)
    assert refused(invite(alice, bob, room_id)) == BLOCKED
    state_path = room_path(room_id, "state", "m.room.member", bob.user_id)
    assert refused(alice.put(state_path, {"membership": "invite"})) == BLOCKED
    assert refused(alice.post(f"{V3}/createRoom", {"invite": [bob.user_id]})) == BLOCKED
    assert bob.user_id not in str(ok(alice.get(room_path(room_id, "members"))))
    assert invites(bob) == set()  # earlier invites are hidden too
    client = SlidingClient(
        bob, room_subscriptions={before: {"timeline_limit": 1, "required_state": []}}
    )
    assert client.sync()["rooms"] == {}
    ok(membership(bob, before, "join"))  # the user may still join
    rooms.keep(bob, type_, {})
    ok(invite(alice, bob, room_id))
    assert invites(bob) == {room_id}


@pytest.mark.parametrize(
    "content", [{"default_action": "allow"}, {"default_action": 5}, {"block": True}, {}]
)
def test_settings_that_do_not_block_have_no_effect(alice: User, bob: User, content: Json) -> None:
    rooms.keep(bob, STABLE, content)
    ok(invite(alice, bob))


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        ({"blocked_users": ["@alice:example.org"]}, "block"),
        ({"blocked_users": ["@ALICE:*"]}, "block"),
        ({"blocked_users": ["@al?ce:*.org"]}, "block"),
        ({"blocked_users": ["@bob:*"]}, "allow"),
        ({"blocked_servers": ["*"]}, "block"),
        ({"blocked_servers": ["example.org:8448"]}, "allow"),
        ({"blocked_servers": ["*"], "enabled": False}, "allow"),
        ({"blocked_servers": ["*"], "enabled": True}, "block"),
        ({"blocked_servers": ["*"], "allowed_servers": ["example.*"]}, "allow"),
        ({"blocked_users": ["@alice:*"], "allowed_servers": ["*"]}, "block"),
        ({"ignored_users": ["@alice:*"], "blocked_users": ["*"]}, "ignore"),
        ({"ignored_servers": ["example.org"], "blocked_servers": ["*"]}, "ignore"),
        ({"blocked_servers": ["*"], "blocked_users": "@alice:example.org"}, "allow"),
        ({"blocked_servers": ["*", 5]}, "allow"),
        ({"default_action": "block", "allowed_users": ["@alice:*"]}, "allow"),
    ],
)
@pytest.mark.parametrize("type_", [MSC4155, STABLE])
def test_allow_block_and_ignore_lists_apply_to_invites(
    server: TestServer, alice: User, bob: User, content: Json, outcome: str, type_: str
) -> None:
    rooms.keep(bob, type_, content)
    waiting = poll(bob, sync(bob)["next_batch"])
    room_id = create(alice)
    answer = invite(alice, bob, room_id)
    for _ in range(3):
        server.clock.advance(0)
    if outcome == "block":
        assert refused(answer) == BLOCKED
    else:
        ok(answer)
    assert invites(bob) == ({room_id} if outcome == "allow" else set())
    assert waiting.done is (outcome == "allow")


def test_an_ignored_users_invite_is_hidden_not_refused(alice: User, bob: User) -> None:
    rooms.keep(bob, "m.ignored_user_list", {"ignored_users": {alice.user_id: {}}})
    rooms.keep(bob, STABLE, {"default_action": "block"})
    ok(invite(alice, bob))
    assert invites(bob) == set()


def test_an_unread_marker_is_in_both_syncs(alice: User) -> None:
    room_id = create(alice)
    client = SlidingClient(
        alice, lists={"all": a_list([0, 9])}, extensions={"account_data": {"enabled": True}}
    )
    client.sync()
    since = sync(alice)["next_batch"]
    rooms.keep(alice, "m.marked_unread", {"unread": True}, room_id)
    received = [{"type": "m.marked_unread", "content": {"unread": True}}]
    assert sync(alice, since)["rooms"]["join"][room_id]["account_data"]["events"] == received
    assert client.sync()["extensions"]["account_data"]["rooms"][room_id] == received


def test_deleted_account_data_is_sent_once(alice: User) -> None:
    room_id = create(alice)
    client = SlidingClient(
        alice, lists={"all": a_list([0, 9])}, extensions={"account_data": {"enabled": True}}
    )
    client.sync()
    for where in (None, room_id):
        rooms.keep(alice, "org.example.a", {"a": 1}, where)
        rooms.keep(alice, "org.example.b", {"b": 1}, where)
    since = sync(alice)["next_batch"]
    client.sync()
    unstable = f"/_matrix/client/unstable/org.matrix.msc3391/user/{alice.user_id}"
    ok(alice.delete(f"{unstable}/account_data/org.example.a"))
    ok(alice.delete(f"{unstable}/rooms/{room_id}/account_data/org.example.a"))
    for where in (None, room_id):
        rooms.keep(alice, "org.example.b", {}, where)
        rooms.keep(alice, "org.example.never", {}, where)  # clients wait until they receive it
    gone = [{"type": f"org.example.{name}", "content": {}} for name in ("a", "b", "never")]
    answer = sync(alice, since)
    received = client.sync()["extensions"]["account_data"]
    everywhere = (answer["account_data"]["events"], received["global"])
    in_room = (
        answer["rooms"]["join"][room_id]["account_data"]["events"],
        received["rooms"][room_id],
    )
    for events in (*everywhere, *in_room):
        assert sorted(events, key=lambda event: str(event["type"])) == gone
    initial = sync(alice)
    assert "org.example" not in str(initial["account_data"])
    assert "org.example" not in str(initial["rooms"]["join"][room_id])


def test_features_are_advertised(server: TestServer) -> None:
    features = ok(server.get("/_matrix/client/versions"))["unstable_features"]
    for name in ("msc3391", "msc4155", "msc4380", "msc4380.stable"):
        assert features[f"org.matrix.{name}"] is True
