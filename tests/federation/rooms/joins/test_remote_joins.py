"""Joins of rooms on other servers: by ID, by alias, by invite, and restricted joins."""

from collections.abc import Sequence
from typing import Any

import pytest

from federation.peers.wire import WireResponse
from tests.helpers.federated_rooms import two_users
from tests.helpers.logins import password_auth
from tests.helpers.network import Network, Transfer
from tests.helpers.remote_membership import NORTH, SOUTH, WEST, is_known, join_via, members
from tests.helpers.room_actions import (
    V3,
    create,
    invite,
    join,
    leave,
    membership,
    ok,
    put_state,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import User

VERSIONS = ("1", "6", "10", "11", "12")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_room_is_joined_by_id(network: Network, version: str) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat", name="tea", room_version=version)
    say(alice, room_id, "salom")

    assert ok(join_via(bob, room_id, NORTH)) == {"room_id": room_id}

    assert (
        members(bob, room_id)
        == members(alice, room_id)
        == {alice.user_id: "join", bob.user_id: "join"}
    )
    assert ok(bob.get(room_path(room_id, "state", "m.room.name"))) == {"name": "tea"}
    assert room_id in ok(bob.get(f"{V3}/sync"))["rooms"]["join"]
    say(bob, room_id, "va alaykum")


def test_a_room_is_joined_by_alias(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat", room_alias_name="tea")

    assert ok(join_via(bob, f"#tea:{NORTH}")) == {"room_id": room_id}
    assert members(bob, room_id)[bob.user_id] == "join"


def test_the_second_user_of_a_server_joins_locally(network: Network) -> None:
    alice, bob = two_users(network)
    carol = network.servers[SOUTH].register("carol")
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))
    network.log.clear()

    ok(join_via(carol, room_id, NORTH))

    assert not [uri for _, _, _, uri in network.log if "_join" in uri]
    assert members(bob, room_id)[carol.user_id] == "join"


def test_two_concurrent_joins_make_one_remote_join(network: Network) -> None:
    alice, bob = two_users(network)
    carol = network.servers[SOUTH].register("carol")
    room_id = create(alice, preset="public_chat")
    network.hold()
    first = bob.start("POST", f"{V3}/join/{room_id}?via={NORTH}", {})
    second = carol.start("POST", f"{V3}/join/{room_id}?via={NORTH}", {})
    assert not first.done
    assert not second.done

    network.deliver()

    assert first.answer.status == second.answer.status == 200
    assert len([uri for _, _, _, uri in network.log if "/make_join/" in uri]) == 1
    assert members(bob, room_id)[carol.user_id] == members(bob, room_id)[bob.user_id] == "join"


def test_the_join_has_name_avatar_and_reason(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    ok(bob.put(f"{V3}/profile/{bob.user_id}/displayname", {"displayname": "Bob"}))

    ok(join_via(bob, room_id, NORTH, reason="thirst"))

    content = ok(alice.get(room_path(room_id, "state", "m.room.member", bob.user_id)))
    assert content == {"membership": "join", "displayname": "Bob", "reason": "thirst"}


def test_a_private_room_refuses_and_leaves_nothing(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="private_chat")

    status, errcode = refused(answer := join_via(bob, room_id, NORTH))

    assert (status, errcode) == (403, "M_FORBIDDEN")
    assert NORTH in answer.json["error"]
    assert not is_known(bob, room_id)


def test_a_join_without_a_server_name_is_refused(network: Network) -> None:
    _, bob = two_users(network)
    assert refused(join_via(bob, "!" + "a" * 43)) == (404, "M_NOT_FOUND")


def test_a_server_that_is_not_in_the_room_cannot_help(network: Network) -> None:
    _, bob = two_users(network)
    assert refused(join_via(bob, f"!unknown:{NORTH}", NORTH)) == (404, "M_NOT_FOUND")


def test_servers_are_tried_in_turn(network: Network) -> None:
    alice, bob = two_users(network)
    network.add(WEST)
    room_id = create(alice, preset="public_chat")

    ok(join_via(bob, room_id, "dead.example", WEST, NORTH))

    asked = [to for _, to, _, uri in network.log if "/make_join/" in uri]
    assert asked == ["dead.example", WEST, NORTH]


def test_a_join_fails_when_all_servers_are_down(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    network.cut(NORTH, SOUTH)

    assert refused(join_via(bob, room_id, NORTH)) == (502, "M_UNKNOWN")
    network.mend(NORTH, SOUTH)
    ok(join_via(bob, room_id, NORTH))


def test_a_third_server_joins_through_the_second(network: Network) -> None:
    alice, bob = two_users(network)
    carol = network.add(WEST).register("carol")
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))

    ok(join_via(carol, room_id, SOUTH))

    assert members(carol, room_id) == dict.fromkeys(
        [alice.user_id, bob.user_id, carol.user_id], "join"
    )


def test_a_banned_user_is_refused(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    ok(membership(alice, room_id, "ban", bob))

    assert refused(join_via(bob, room_id, NORTH)) == (403, "M_FORBIDDEN")


def test_a_server_that_the_acl_denies_is_refused(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    ok(
        alice.put(
            room_path(room_id, "state", "m.room.server_acl"), {"allow": ["*"], "deny": [SOUTH]}
        )
    )

    assert refused(join_via(bob, room_id, NORTH)) == (403, "M_FORBIDDEN")


def test_a_room_that_does_not_federate_refuses_remote_users(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat", creation_content={"m.federate": False})

    assert refused(join_via(bob, room_id, NORTH)) == (403, "M_FORBIDDEN")


def test_a_server_that_the_policy_excludes_is_not_asked(network: Network) -> None:
    alice = network.add(NORTH).register("alice")
    bob = network.add(SOUTH, "federation_domain_whitelist: [west.example]\n").register("bob")
    room_id = create(alice, preset="public_chat")

    assert refused(join_via(bob, room_id, NORTH)) == (403, "M_FORBIDDEN")
    assert not network.log


def restricted_room(
    network: Network, version: str, join_rule: str = "restricted"
) -> tuple[User, User, str, str]:
    """Alice and Bob, a room that both are in, and one that is open to its members."""
    alice, bob = two_users(network)
    lobby = create(alice, preset="public_chat", room_version=version)
    rule = {"join_rule": join_rule, "allow": [{"type": "m.room_membership", "room_id": lobby}]}
    state = [{"type": "m.room.join_rules", "state_key": "", "content": rule}]
    return alice, bob, lobby, create(alice, room_version=version, initial_state=state)


@pytest.mark.parametrize(
    ("version", "rule"),
    [("8", "restricted"), ("10", "knock_restricted"), ("11", "restricted"), ("12", "restricted")],
)
def test_a_restricted_room_is_joined_by_a_member_of_an_allowed_room(
    network: Network, version: str, rule: str
) -> None:
    alice, bob, lobby, room_id = restricted_room(network, version, rule)
    assert refused(join_via(bob, room_id, NORTH)) == (403, "M_FORBIDDEN")
    ok(join_via(bob, lobby, NORTH))

    ok(join_via(bob, room_id, NORTH))

    content = ok(bob.get(room_path(room_id, "state", "m.room.member", bob.user_id)))
    assert content["join_authorised_via_users_server"] == alice.user_id
    assert members(alice, room_id)[bob.user_id] == "join"


def test_a_server_without_an_inviter_lets_another_authorise_the_join(network: Network) -> None:
    alice, bob, lobby, room_id = restricted_room(network, "11")
    carol = network.servers[SOUTH].register("carol")
    levels = ok(alice.get(room_path(room_id, "state", "m.room.power_levels")))
    ok(alice.put(room_path(room_id, "state", "m.room.power_levels"), {**levels, "invite": 50}))
    ok(join_via(carol, lobby, NORTH))
    invite(alice, room_id, bob)
    join(bob, room_id)

    ok(join_via(carol, room_id))

    content = ok(bob.get(room_path(room_id, "state", "m.room.member", carol.user_id)))
    assert content["join_authorised_via_users_server"] == alice.user_id
    assert members(alice, room_id)[carol.user_id] == members(bob, room_id)[carol.user_id] == "join"


def test_a_server_that_cannot_check_the_join_rule_refuses(network: Network) -> None:
    alice, bob, lobby, room_id = restricted_room(network, "11")
    join(network.servers[NORTH].register("dora"), lobby)
    elsewhere = create(network.servers[SOUTH].register("erin"), preset="public_chat")
    rule: dict[str, Any] = {
        "join_rule": "restricted",
        "allow": [{"type": "m.room_membership", "room_id": each} for each in (lobby, elsewhere)],
    }
    ok(alice.put(room_path(room_id, "state", "m.room.join_rules"), rule))

    answer = join_via(bob, room_id, NORTH)

    assert refused(answer) == (403, "M_FORBIDDEN")
    assert "can let you into" in answer.json["error"]


def test_a_room_that_all_local_users_left_is_joined_again(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))
    leave(bob, room_id)
    network.servers[NORTH].app.clock.advance(1)  # type: ignore[attr-defined]
    ok(alice.put(room_path(room_id, "state", "m.room.name"), {"name": "new"}))

    ok(join_via(bob, room_id))

    assert ok(bob.get(room_path(room_id, "state", "m.room.name"))) == {"name": "new"}
    assert "/send_join/" in network.log[-1][3]


def test_an_empty_room_is_joined_again_locally(network: Network) -> None:
    alice, _ = two_users(network)
    room_id = create(alice, preset="public_chat")
    leave(alice, room_id)

    join(alice, room_id)

    assert not network.log


def test_remote_joins_have_their_own_rate_limit(network: Network) -> None:
    alice = network.add(NORTH).register("alice")
    limit = "rc_joins: {local: *unlimited, remote: {per_second: 0.01, burst_count: 2}}\n"
    bob = network.add(SOUTH, limit).register("bob")
    rooms = [create(alice, preset="public_chat") for _ in range(3)]
    for room_id in rooms[:2]:
        ok(join_via(bob, room_id, NORTH))

    assert refused(join_via(bob, rooms[2], NORTH)) == (429, "M_LIMIT_EXCEEDED")


def test_too_many_joins_of_a_room_are_rate_limited(network: Network) -> None:
    alice = network.add(NORTH, "rc_joins_per_room: {per_second: 0.1, burst_count: 1}\n").register(
        "alice"
    )
    bob, carol = network.add(SOUTH).register("bob"), network.add(WEST).register("carol")
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))

    answer = join_via(carol, room_id, NORTH)
    assert refused(answer) == (429, "M_LIMIT_EXCEEDED")
    assert answer.json["retry_after_ms"] == 10_000
    assert answer.headers["retry-after"] == "10"

    network.clock.advance(10)
    ok(join_via(carol, room_id, NORTH))


def test_refused_joins_do_not_count_for_the_rooms_rate_limit(network: Network) -> None:
    limit = "rc_joins_per_room: {per_second: 0.01, burst_count: 2}\n"
    alice = network.add(NORTH, limit).register("alice")
    south = network.add(SOUTH, limit)
    bob, carol = south.register("bob"), south.register("carol")
    dan = alice.server.register("dan")
    room_id = create(alice)
    for _ in range(3):
        assert refused(join_via(bob, room_id, NORTH)) == (403, "M_FORBIDDEN")
        assert refused(join_via(dan, room_id)) == (403, "M_FORBIDDEN")
        by_state = put_state(dan, room_id, "m.room.member", {"membership": "join"}, dan.user_id)
        assert refused(by_state) == (403, "M_FORBIDDEN")

    set_state(alice, room_id, "m.room.join_rules", {"join_rule": "public"})
    ok(join_via(bob, room_id, NORTH))
    ok(put_state(dan, room_id, "m.room.member", {"membership": "join"}, dan.user_id))
    assert refused(join_via(alice.server.register("eve"), room_id)) == (429, "M_LIMIT_EXCEEDED")
    ok(join_via(carol, room_id))
    assert refused(join_via(south.register("frank"), room_id)) == (429, "M_LIMIT_EXCEEDED")


def test_guests_cannot_join_remote_rooms(network: Network) -> None:
    alice, _ = two_users(network)
    south = network.servers[SOUTH]
    guest = User(south, south.post(f"{V3}/register?kind=guest", {}).json | {"device_id": "G"})
    room_id = create(alice, preset="public_chat")

    assert refused(join_via(guest, room_id, NORTH)) == (403, "M_GUEST_ACCESS_FORBIDDEN")


def test_a_room_is_joined_by_invite(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice)
    invite(alice, room_id, bob)

    join(bob, room_id)

    assert members(bob, room_id) == dict.fromkeys([alice.user_id, bob.user_id], "join")


def test_keys_of_many_servers_are_requested_concurrently(network: Network) -> None:
    alice, bob = two_users(network)
    others = [network.add(f"server{number}.example").register("user") for number in range(5)]
    room_id = create(alice, preset="public_chat")
    for other in others:
        ok(join_via(other, room_id, NORTH))
    network.cut(SOUTH, "server0.example")
    most = 0

    def watch(transfers: Sequence[Transfer]) -> int:
        nonlocal most
        most = max(
            most, len([transfer for transfer in transfers if "/key/v2/" in transfer.request.uri])
        )
        return 0

    network.hold()
    joining = bob.start("POST", f"{V3}/join/{room_id}?via={NORTH}", {})
    network.deliver(watch)

    assert joining.answer.status == 200
    assert most >= 5
    # whose signature cannot be checked, after a while either, is not believed to be in the room
    network.start_completing()
    network.clock.pump([5.0] * 7)
    assert set(members(bob, room_id)) == {
        alice.user_id,
        bob.user_id,
        *(other.user_id for other in others[1:]),
    }


@pytest.mark.parametrize("version", ["1", "11"])
def test_a_room_is_joined_through_a_server_with_version_1_of_the_endpoints(
    network: Network, version: str
) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat", name="tea", room_version=version)
    unknown = WireResponse(404, {}, b'{"errcode":"M_UNRECOGNIZED","error":"?"}')
    network.interceptors.append(
        lambda _, request: unknown if "/v2/send_join/" in request.uri else None
    )

    assert ok(join_via(bob, room_id, NORTH)) == {"room_id": room_id}

    assert members(bob, room_id) == {alice.user_id: "join", bob.user_id: "join"}
    assert ok(bob.get(room_path(room_id, "state", "m.room.name"))) == {"name": "tea"}


def test_a_join_that_ends_after_the_account_was_closed_is_undone(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    south = network.servers[SOUTH]
    south.app.jobs.start()
    network.hold()
    joining = bob.start("POST", f"{V3}/join/{room_id}?server_name={NORTH}", {})
    proof = password_auth(bob.user_id)
    ok(bob.post(f"{V3}/account/deactivate", {"auth": proof}))

    network.deliver()
    assert joining.answer.status == 200
    assert members(alice, room_id)[bob.user_id] == "join"

    for _ in range(15):
        network.clock.advance(60)
    (row,) = south.run(south.app.rooms.memberships.of_user(bob.user_id)).values()
    assert (row.membership, row.forgotten) == ("leave", True)
