"""Invites and knocks over federation, and their withdrawal."""

from typing import Any

import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.ids import ServerName
from federation.remote.membership import INVITE_SECONDS
from federation.rooms.joins.invites import MAX_WAIT, POLL_SECONDS
from tests.helpers.federated_rooms import two_users
from tests.helpers.network import Fate, Network
from tests.helpers.remote_membership import (
    NORTH,
    SOUTH,
    is_known,
    join_via,
    knock_via,
    members,
    rooms_in_sync,
)
from tests.helpers.room_actions import (
    V3,
    create,
    get_state,
    invite,
    join,
    leave,
    membership,
    ok,
    put_event,
    put_state,
    redact,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import User

VERSIONS = ("1", "6", "10", "11", "12")
BLOCKED = {"default_action": "block"}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_invite_is_shown_and_accepted(network: Network, version: str) -> None:
    alice, bob = two_users(network)
    ok(alice.put(f"{V3}/profile/{alice.user_id}/displayname", {"displayname": "Alice"}))
    room_id = create(alice, name="tea", room_version=version)

    ok(membership(alice, room_id, "invite", bob, reason="come"))

    shown = rooms_in_sync(bob, "invite")[room_id]["invite_state"]["events"]
    state = {(event["type"], event["state_key"]): event for event in shown}
    assert state["m.room.name", ""]["content"] == {"name": "tea"}
    assert state["m.room.member", alice.user_id]["content"]["displayname"] == "Alice"
    assert state["m.room.member", bob.user_id]["sender"] == alice.user_id
    assert state["m.room.member", bob.user_id]["content"] == {
        "membership": "invite",
        "reason": "come",
    }
    assert all(set(event) == {"type", "state_key", "sender", "content"} for event in shown)
    assert members(alice, room_id)[bob.user_id] == "invite"
    join(bob, room_id)
    assert members(bob, room_id)[bob.user_id] == members(alice, room_id)[bob.user_id] == "join"
    assert room_id not in rooms_in_sync(bob, "invite")


def test_an_invite_from_a_server_that_the_acl_denies_is_refused(network: Network) -> None:
    """spec: server-server-api#server-access-control-lists-acls"""
    alice, bob = two_users(network)
    dora = network.servers[SOUTH].register("dora")
    room_id = create(bob, preset="public_chat", power_level_content_override={"invite": 0})
    ok(join_via(alice, room_id, SOUTH))
    network.cut(NORTH, SOUTH)
    set_state(bob, room_id, "m.room.server_acl", {"allow": ["*"], "deny": [NORTH]})
    network.mend(NORTH, SOUTH)

    answer = membership(alice, room_id, "invite", dora)

    assert refused(answer) == (403, "M_FORBIDDEN")
    assert "ACL" in answer.json["error"]
    assert dora.user_id not in members(bob, room_id)
    assert room_id not in rooms_in_sync(dora, "invite")


def test_an_invite_is_in_the_response_of_initial_sync(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice)
    invite(alice, room_id, bob)

    (room,) = ok(bob.get(f"{V3}/initialSync"))["rooms"]

    assert (room["room_id"], room["membership"]) == (room_id, "invite")
    event = room["invite"]
    assert (event["type"], event["sender"], event["state_key"]) == (
        "m.room.member",
        alice.user_id,
        bob.user_id,
    )
    assert event["content"]["membership"] == "invite"


def test_an_invited_user_cannot_send_into_the_room(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice)
    invite(alice, room_id, bob)

    for answer in (
        put_event(bob, room_id, "m.room.message", {"msgtype": "m.text", "body": "salom"}),
        put_state(bob, room_id, "m.room.name", {"name": "tea"}),
        redact(bob, room_id, "$nothing"),
    ):
        assert refused(answer) == (403, "M_FORBIDDEN")


def test_an_invite_wakes_the_invited_user(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice)
    since = ok(bob.get(f"{V3}/sync"))["next_batch"]
    waiting = bob.start("GET", f"{V3}/sync?since={since}&timeout=30000")

    invite(alice, room_id, bob)
    network.clock.advance(0.1)

    assert room_id in waiting.answer.json["rooms"]["invite"]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_invite_is_declined(network: Network, version: str) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, room_version=version)
    invite(alice, room_id, bob)
    since = ok(bob.get(f"{V3}/sync"))["next_batch"]

    ok(membership(bob, room_id, "leave", reason="no tea"))

    assert get_state(alice, room_id, "m.room.member", bob.user_id) == {
        "membership": "leave",
        "reason": "no tea",
    }
    update = ok(bob.get(f"{V3}/sync?since={since}"))["rooms"]
    assert "invite" not in update
    (event,) = update["leave"][room_id]["timeline"]["events"]
    assert event["content"] == {"membership": "leave", "reason": "no tea"}
    assert event["state_key"] == bob.user_id
    assert not is_known(bob, room_id)
    assert refused(join_via(bob, room_id, NORTH)) == (403, "M_FORBIDDEN")


def test_an_invite_is_declined_though_no_server_answers(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice)
    invite(alice, room_id, bob)
    network.cut(NORTH, SOUTH)

    leave(bob, room_id)

    assert room_id not in rooms_in_sync(bob, "invite")
    assert room_id in rooms_in_sync(bob, "leave")
    ok(bob.post(room_path(room_id, "forget")))
    assert not is_known(bob, room_id)


def test_a_user_invited_again_after_declining_may_join(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice)
    invite(alice, room_id, bob)
    leave(bob, room_id)
    invite(alice, room_id, bob)

    join(bob, room_id)

    assert members(alice, room_id)[bob.user_id] == "join"


def test_a_room_is_created_with_a_remote_invite(network: Network) -> None:
    alice, bob = two_users(network)

    room_id = create(alice, invite=[bob.user_id], is_direct=True, preset="trusted_private_chat")

    assert get_state(alice, room_id, "m.room.member", bob.user_id)["is_direct"] is True
    assert room_id in rooms_in_sync(bob, "invite")


def test_an_invite_is_sent_as_a_state_event(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice)

    set_state(alice, room_id, "m.room.member", {"membership": "invite"}, bob.user_id)

    assert room_id in rooms_in_sync(bob, "invite")


def test_a_room_is_created_though_the_invited_users_server_is_down(network: Network) -> None:
    alice, bob = two_users(network)
    network.cut(NORTH, SOUTH)

    room_id = create(alice, invite=[bob.user_id])

    assert members(alice, room_id) == {alice.user_id: "join"}
    assert refused(membership(alice, room_id, "invite", bob)) == (502, "M_UNKNOWN")


def test_an_invite_to_a_silent_server_fails_after_a_time_limit(
    network: Network,
) -> None:
    alice, bob = two_users(network)
    room_id = create(alice)
    network.choose_fate = lambda transfer: (
        Fate.IS_NOT_ANSWERED if transfer.destination == SOUTH else Fate.ARRIVES
    )

    inviting = alice.start("POST", room_path(room_id, "invite"), {"user_id": bob.user_id})
    network.clock.advance(INVITE_SECONDS - 1)
    assert not inviting.done
    network.clock.advance(1)

    assert refused(inviting.answer) == (502, "M_UNKNOWN")
    assert inviting.answer.json["error"].startswith(
        f"{bob.user_id} was not invited, because {SOUTH} did not answer"
    )


def test_an_invite_to_a_server_that_was_just_unreachable_fails_at_once(
    network: Network,
) -> None:
    alice, bob = two_users(network)
    network.start_sending()
    shared, other = create(alice), create(alice)
    ok(membership(alice, shared, "invite", bob))
    join(bob, shared)
    network.choose_fate = lambda transfer: (
        Fate.IS_NOT_ANSWERED if transfer.destination == SOUTH else Fate.ARRIVES
    )
    say(alice, shared, "is anybody there?")
    for _ in range(7):
        network.clock.advance(10)

    assert refused(answer := membership(alice, other, "invite", bob)) == (502, "M_UNKNOWN")
    assert answer.json["error"] == (
        f"{bob.user_id} was not invited, because {SOUTH} could not be reached a moment ago: "
        "try again later"
    )
    making = alice.start("POST", f"{V3}/createRoom", {"invite": [bob.user_id]})
    assert not making.done, "nobody would invite them again"

    network.choose_fate = lambda _: Fate.ARRIVES
    say(bob, shared, "I am")
    network.clock.advance(1)
    ok(membership(alice, other, "invite", bob))


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_error_does_not_count_as_the_servers_answer(network: Network, status: int) -> None:
    """Its response to an invite is not the server's: nothing is delayed or retried because of
    it."""
    alice, bob = two_users(network)
    network.start_sending()
    shared, other = create(alice), create(alice)
    ok(membership(alice, shared, "invite", bob))
    join(bob, shared)
    asked: list[str] = []

    def answer(destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination != SOUTH:
            return None
        asked.append(request.method)
        return WireResponse(status, {}, b"")

    network.interceptors.append(answer)
    say(alice, shared, "is anybody there?")
    while (
        network.servers[NORTH].app.federation_sender.sender.is_failing(ServerName(SOUTH))
        or len(asked) < 5
    ):
        network.clock.advance(10)
    asked.clear()
    assert refused(membership(alice, other, "invite", bob)) == (502, "M_UNKNOWN")
    assert len(asked) == 1
    repeated = membership(alice, other, "invite", bob)
    assert repeated.json["error"].endswith("could not be reached a moment ago: try again later")
    network.clock.advance(10)
    assert len(asked) == 1


def test_an_unknown_user_cannot_be_invited(network: Network) -> None:
    alice, _ = two_users(network)
    room_id = create(alice)
    body = {"user_id": f"@nobody:{SOUTH}"}

    answer = alice.post(room_path(room_id, "invite"), body)

    assert refused(answer) == (404, "M_NOT_FOUND")
    assert answer.json["error"] == f"{SOUTH} does not have a user @nobody:{SOUTH}"
    assert members(alice, room_id) == {alice.user_id: "join"}


def test_a_user_of_an_impossible_server_name_is_not_invited(network: Network) -> None:
    """A port has 16 bits. spec: appendices#server-name"""
    alice, _ = two_users(network)
    room_id = create(alice)
    nobody = "@bob:localhost:65536"

    for answer in (
        alice.post(room_path(room_id, "invite"), {"user_id": nobody}),
        alice.put(room_path(room_id, "state", "m.room.member", nobody), {"membership": "invite"}),
        alice.post(f"{V3}/createRoom", {"invite": [nobody]}),
    ):
        assert refused(answer) == (400, "M_INVALID_PARAM")
    assert members(alice, room_id) == {alice.user_id: "join"}
    assert network.log == []


def test_no_remote_user_is_invited_into_a_room_that_does_not_federate(
    network: Network,
) -> None:
    alice, bob = two_users(network)
    closed = {"creation_content": {"m.federate": False}}
    room_id = create(alice, **closed)
    network.log.clear()

    for answer in (
        membership(alice, room_id, "invite", bob),
        alice.put(
            room_path(room_id, "state", "m.room.member", bob.user_id), {"membership": "invite"}
        ),
        alice.post(f"{V3}/createRoom", {"invite": [bob.user_id], **closed}),
    ):
        assert refused(answer) == (403, "M_FORBIDDEN")
        assert answer.json["error"].startswith("This room is only for")

    assert not network.log
    assert ok(alice.get(f"{V3}/joined_rooms"))["joined_rooms"] == [room_id]


def test_no_room_is_created_with_a_user_whose_server_the_policy_refuses(network: Network) -> None:
    alice = network.add(NORTH, f"federation_domain_blacklist: [{SOUTH}]\n").register("alice")
    bob, carol = network.add(SOUTH).register("bob"), network.servers[NORTH].register("carol")

    answer = alice.post(f"{V3}/createRoom", {"invite": [carol.user_id, bob.user_id]})

    assert refused(answer) == (403, "M_FORBIDDEN")
    assert SOUTH in answer.json["error"]
    assert ok(alice.get(f"{V3}/joined_rooms"))["joined_rooms"] == []
    assert not rooms_in_sync(carol, "invite")
    assert refused(membership(alice, create(alice), "invite", bob)) == (403, "M_FORBIDDEN")


def test_a_user_without_the_power_to_invite_causes_no_request(network: Network) -> None:
    alice, bob = two_users(network)
    mallory = network.servers[NORTH].register("mallory")
    room_id = create(alice, preset="public_chat")
    network.log.clear()

    assert refused(membership(mallory, room_id, "invite", bob)) == (403, "M_FORBIDDEN")
    assert not network.log


def test_a_user_who_blocks_invites_is_not_invited(network: Network) -> None:
    alice, bob = two_users(network)
    carol = network.servers[NORTH].register("carol")
    room_id = create(alice)
    for user in (bob, carol):
        ok(user.put(f"{V3}/user/{user.user_id}/account_data/m.invite_permission_config", BLOCKED))

    assert refused(membership(alice, room_id, "invite", bob)) == (403, "M_INVITE_BLOCKED")
    assert refused(membership(alice, room_id, "invite", carol)) == (403, "M_INVITE_BLOCKED")
    assert refused(alice.post(f"{V3}/createRoom", {"invite": [carol.user_id]})) == (
        403,
        "M_INVITE_BLOCKED",
    )
    assert members(alice, room_id) == {alice.user_id: "join"}


def test_an_ignored_user_cannot_invite(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice)
    ignored: dict[str, Any] = {"ignored_users": {alice.user_id: {}}}
    ok(bob.put(f"{V3}/user/{bob.user_id}/account_data/m.ignored_user_list", ignored))

    assert refused(membership(alice, room_id, "invite", bob)) == (403, "M_FORBIDDEN")
    assert not is_known(bob, room_id)


def test_with_invites_limited_to_administrators_remote_invites_are_refused(
    network: Network,
) -> None:
    alice = network.add(NORTH).register("alice")
    bob = network.add(SOUTH, "block_non_admin_invites: true\n").register("bob")

    assert refused(membership(alice, create(alice), "invite", bob)) == (403, "M_FORBIDDEN")


def test_a_second_user_of_a_server_in_the_room_is_invited(network: Network) -> None:
    alice, bob = two_users(network)
    carol = network.servers[SOUTH].register("carol")
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))

    invite(alice, room_id, carol)

    assert members(bob, room_id)[carol.user_id] == "invite"
    join(carol, room_id)
    assert members(bob, room_id)[carol.user_id] == "join"


def test_an_invited_user_may_decline_after_a_colleague_has_joined(network: Network) -> None:
    alice, bob = two_users(network)
    carol = network.servers[SOUTH].register("carol")
    room_id = create(alice, preset="public_chat")
    invite(alice, room_id, carol)

    ok(join_via(bob, room_id, NORTH))

    assert room_id in rooms_in_sync(carol, "invite")
    assert members(bob, room_id)[carol.user_id] == "invite"
    leave(carol, room_id)
    assert members(bob, room_id)[carol.user_id] == "leave"


def knockable(user: User, version: str) -> str:
    """A room at which one may knock."""
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    return create(user, room_version=version, initial_state=[rule], name="tea")


def test_a_removed_user_gets_a_new_invite_in_any_order_of_arrival(
    network: Network,
) -> None:
    """The kick is still on its way when the invite is asked; after it nobody of the server is in
    the room."""
    network.start_sending()
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    ok(membership(alice, room_id, "kick", bob))
    asked = alice.start("POST", room_path(room_id, "invite"), {"user_id": bob.user_id})
    network.settle()
    network.clock.advance(1)
    network.settle()
    ok(asked.answer)
    assert room_id in rooms_in_sync(bob, "invite")
    join(bob, room_id)
    assert members(alice, room_id)[bob.user_id] == members(bob, room_id)[bob.user_id] == "join"


def test_an_invite_whose_auth_events_never_come_is_answered(network: Network) -> None:
    network.start_sending()
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    network.choose_fate = lambda transfer: (
        Fate.IS_LOST if "/send/" in transfer.request.uri else Fate.ARRIVES
    )
    ok(membership(alice, room_id, "kick", bob))
    asked = alice.start("POST", room_path(room_id, "invite"), {"user_id": bob.user_id})
    network.settle()
    assert not asked.done
    for _ in range(int(MAX_WAIT / POLL_SECONDS) + 1):
        network.clock.advance(POLL_SECONDS)
    network.settle()
    ok(asked.answer)
    assert members(bob, room_id)[bob.user_id] == "join"


@pytest.mark.parametrize("version", ["7", "10", "11", "12"])
def test_a_knock_is_received_and_answered(network: Network, version: str) -> None:
    alice, bob = two_users(network)
    room_id = knockable(alice, version)

    ok(knock_via(bob, room_id, NORTH, reason="please"))

    content = get_state(alice, room_id, "m.room.member", bob.user_id)
    assert content == {"membership": "knock", "reason": "please", "displayname": "bob"}
    shown = rooms_in_sync(bob, "knock")[room_id]["knock_state"]["events"]
    assert {"name": "tea"} in [event["content"] for event in shown]
    assert [event["state_key"] for event in shown if event["type"] == "m.room.member"] == [
        bob.user_id
    ]
    invite(alice, room_id, bob)
    assert room_id in rooms_in_sync(bob, "invite")
    join(bob, room_id)
    assert members(bob, room_id)[bob.user_id] == "join"


def test_a_knock_is_withdrawn(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = knockable(alice, "11")
    ok(knock_via(bob, room_id, NORTH))

    leave(bob, room_id)

    assert get_state(alice, room_id, "m.room.member", bob.user_id)["membership"] == "leave"
    assert room_id not in rooms_in_sync(bob, "knock")


def test_a_knock_is_refused_where_the_join_rule_forbids_it(network: Network) -> None:
    alice, bob = two_users(network)
    assert refused(knock_via(bob, create(alice), NORTH)) == (403, "M_FORBIDDEN")
    assert refused(knock_via(bob, create(alice, room_version="6"), NORTH)) == (403, "M_FORBIDDEN")


def test_a_closed_account_declines_its_invites(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice)
    invite(alice, room_id, bob)
    auth = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": bob.user_id}}

    ok(bob.post(f"{V3}/account/deactivate", {"auth": {**auth, "password": "wonderland"}}))
    network.clock.advance(60)

    assert get_state(alice, room_id, "m.room.member", bob.user_id)["membership"] == "leave"
