"""Rooms that are forgotten when a user leaves, whichever server ends the membership.

spec: client-server-api#mforget_forced_upon_leave-capability
"""

import pytest

from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, join_via
from tests.helpers.room_actions import create, invite, membership, ok, refused, room_path


@pytest.mark.parametrize("way", ["kick", "ban"])
def test_a_room_is_forgotten_when_a_remote_user_ends_the_membership(
    network: Network, way: str
) -> None:
    network.start_sending()
    north, south = network.add(NORTH), network.add(SOUTH, "forget_rooms_on_leave: true")
    alice, bob, carol = north.register("alice"), south.register("bob"), south.register("carol")
    room_id = create(alice, preset="public_chat")
    for user in (bob, carol):
        ok(join_via(user, room_id, NORTH))
    network.settle()
    ok(membership(alice, room_id, way, bob))
    network.settle()
    assert refused(bob.get(room_path(room_id, "messages", dir="b"))) == (403, "M_FORBIDDEN")
    assert carol.get(room_path(room_id, "messages", dir="b")).status == 200


def test_an_invite_is_kept_after_earlier_leaves(network: Network) -> None:
    network.start_sending()
    north, south = network.add(NORTH), network.add(SOUTH, "forget_rooms_on_leave: true")
    alice, bob = north.register("alice"), south.register("bob")
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    ok(membership(alice, room_id, "kick", bob))
    network.settle()
    invite(alice, room_id, bob)
    network.settle()
    assert room_id in ok(bob.get("/_matrix/client/v3/sync"))["rooms"]["invite"]
