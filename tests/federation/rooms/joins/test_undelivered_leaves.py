"""A user who left a room stays out of it, though a colleague joins through a server that has not
received the leave."""

import pytest

from federation.protocol.ids import EventID, RoomID
from federation.protocol.state_resolution import Conflicts
from tests.helpers.federated_rooms import Side, two_users
from tests.helpers.large_rooms import (
    MEMBERS,
    complete,
    fill,
    is_whole,
    large_room,
    lazily,
    same_state,
)
from tests.helpers.network import Fate, Network, Transfer
from tests.helpers.remote_membership import NORTH, SOUTH, is_known, join_via, members, rooms_in_sync
from tests.helpers.room_actions import (
    V3,
    create,
    get_state,
    leave,
    membership,
    ok,
    refused,
    say,
    set_state,
)
from tests.helpers.server import User


def lose_transactions(transfer: Transfer) -> Fate:
    return Fate.IS_LOST if "/send/" in transfer.request.uri else Fate.ARRIVES


def leave_unheard(network: Network, user: User, room_id: str) -> None:
    """Leave while no transaction arrives."""
    network.clock.advance(1)  # of two memberships, the resolution lets the later one stand
    network.choose_fate = lose_transactions
    leave(user, room_id)
    network.settle()
    network.clock.advance(1)


def let_arrive(network: Network) -> None:
    """Let transactions arrive again, those that were lost, too."""
    network.choose_fate = lambda _: Fate.ARRIVES
    network.clock.advance(24 * 3600)
    network.settle()


@pytest.mark.parametrize("version", ["1", "6", "10", "11", "12"])
async def test_a_colleagues_join_does_not_undo_the_leave(network: Network, version: str) -> None:
    network.start_sending()
    alice = network.add(NORTH).register("alice")
    south = network.add(SOUTH)
    bob, carol = south.register("bob"), south.register("carol")
    room_id = create(alice, preset="public_chat", room_version=version)
    ok(join_via(bob, room_id, NORTH))
    since = ok(bob.get(f"{V3}/sync"))["next_batch"]
    leave_unheard(network, bob, room_id)
    assert members(alice, room_id)[bob.user_id] == "join"

    ok(join_via(carol, room_id, NORTH))

    here = {alice.user_id: "join", bob.user_id: "leave", carol.user_id: "join"}
    assert members(carol, room_id) == here
    update = ok(bob.get(f"{V3}/sync?since={since}"))["rooms"]
    assert room_id in update["leave"]
    assert room_id not in update.get("join", {})
    assert room_id not in rooms_in_sync(bob, "join")
    say(carol, room_id, "salom")
    let_arrive(network)
    assert members(alice, room_id) == here
    await same_state(alice, carol, room_id)
    assert len(await Side(alice.server).extremities(RoomID(room_id))) == 1


async def test_a_leave_is_kept_though_other_events_are_the_latest(network: Network) -> None:
    network.start_sending()
    alice = network.add(NORTH).register("alice")
    south = network.add(SOUTH)
    bob, carol = south.register("bob"), south.register("carol")
    room_id = create(
        alice,
        preset="public_chat",
        power_level_content_override={"events_default": 0, "state_default": 0},
    )
    ok(join_via(bob, room_id, NORTH))
    set_state(bob, room_id, "m.room.topic", {"topic": "tea"})
    network.settle()
    network.clock.advance(1)
    network.choose_fate = lose_transactions
    set_state(bob, room_id, "m.room.topic", {"topic": "coffee"})
    leave_unheard(network, bob, room_id)

    ok(join_via(carol, room_id, NORTH))

    assert get_state(carol, room_id, "m.room.topic") == {"topic": "coffee"}
    let_arrive(network)
    await same_state(alice, carol, room_id)


async def test_a_partial_join_does_not_undo_the_leave(network: Network) -> None:
    alice, bob, room_id = await large_room(network)
    carol = bob.server.register("carol")
    ok(join_via(bob, room_id, NORTH))
    complete(network)
    leave_unheard(network, bob, room_id)
    for server in network.servers.values():
        server.app.federation_receiver.completions.stop()

    ok(join_via(carol, room_id, NORTH))
    assert not is_whole(carol, room_id)
    complete(network)

    assert is_whole(carol, room_id)
    assert members(carol, room_id)[bob.user_id] == "leave"
    assert room_id not in rooms_in_sync(bob, "join")
    let_arrive(network)
    await same_state(alice, carol, room_id)


def test_a_user_who_left_may_rejoin(network: Network) -> None:
    network.start_sending()
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))
    leave_unheard(network, bob, room_id)

    ok(join_via(bob, room_id, NORTH))

    assert room_id in rooms_in_sync(bob, "join")
    let_arrive(network)
    assert (
        members(alice, room_id)
        == members(bob, room_id)
        == {alice.user_id: "join", bob.user_id: "join"}
    )


def test_a_user_who_left_an_invite_only_room_may_not_rejoin(network: Network) -> None:
    """The leave ends the right to be there, though the server that is asked believes that it is
    still held."""
    network.start_sending()
    alice, bob = two_users(network)
    room_id = create(alice, preset="private_chat", invite=[bob.user_id])
    ok(join_via(bob, room_id, NORTH))
    leave_unheard(network, bob, room_id)

    assert refused(join_via(bob, room_id, NORTH)) == (403, "M_FORBIDDEN")

    assert room_id not in rooms_in_sync(bob, "join")
    let_arrive(network)
    assert members(alice, room_id)[bob.user_id] == "leave"


def test_a_forgotten_room_stays_forgotten(network: Network) -> None:
    network.start_sending()
    alice = network.add(NORTH).register("alice")
    south = network.add(SOUTH)
    bob, carol = south.register("bob"), south.register("carol")
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))
    since = ok(bob.get(f"{V3}/sync"))["next_batch"]
    leave(bob, room_id)
    network.settle()
    since = ok(bob.get(f"{V3}/sync?since={since}"))["next_batch"]
    ok(membership(bob, room_id, "forget"))

    ok(join_via(carol, room_id, NORTH))

    assert "rooms" not in ok(bob.get(f"{V3}/sync?since={since}"))
    assert room_id not in rooms_in_sync(bob, "leave")
    assert not is_known(bob, room_id)


async def test_the_partial_state_names_the_room_after_its_first_member(network: Network) -> None:
    """The room has no name, and shows the name of its first member."""
    network.start_sending()
    alice = network.add(NORTH).register("alice")
    south = network.add(SOUTH)
    bob, carol = south.register("bob"), south.register("carol")
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))
    await fill(alice.server, room_id)
    network.settle()
    leave_unheard(network, bob, room_id)

    ok(join_via(carol, room_id, NORTH))

    assert not is_whole(carol, room_id)
    assert room_id not in lazily(bob).get("rooms", {}).get("join", {})
    complete(network)
    assert members(carol, room_id)[bob.user_id] == "leave"
    let_arrive(network)
    await same_state(alice, carol, room_id)


async def test_a_later_declined_invite_does_not_undo_the_leave(network: Network) -> None:
    alice, bob, room_id = await large_room(network)
    carol, dave = bob.server.register("carol"), bob.server.register("dave")
    ok(join_via(bob, room_id, NORTH))
    complete(network)
    leave_unheard(network, bob, room_id)
    ok(membership(alice, room_id, "invite", dave))
    leave(dave, room_id)
    for server in network.servers.values():
        server.app.federation_receiver.completions.stop()

    ok(join_via(carol, room_id, NORTH))
    complete(network)

    assert is_whole(carol, room_id)
    assert members(carol, room_id)[bob.user_id] == "leave"
    let_arrive(network)
    await same_state(alice, carol, room_id)


async def test_a_user_who_left_may_not_rejoin_with_partial_state(network: Network) -> None:
    """That is decided once the state is complete."""
    alice, bob, room_id = await large_room(network)
    ok(join_via(bob, room_id, NORTH))
    complete(network)
    set_state(alice, room_id, "m.room.join_rules", {"join_rule": "invite"})
    network.settle()
    leave_unheard(network, bob, room_id)
    for server in network.servers.values():
        server.app.federation_receiver.completions.stop()

    ok(join_via(bob, room_id, NORTH))
    complete(network)
    let_arrive(network)

    assert is_whole(bob, room_id)
    assert members(alice, room_id)[bob.user_id] == "leave"
    assert room_id in rooms_in_sync(bob, "leave")
    ok(membership(alice, room_id, "invite", bob))
    network.settle()
    ok(join_via(bob, room_id, NORTH))
    complete(network)
    let_arrive(network)
    assert members(alice, room_id)[bob.user_id] == members(bob, room_id)[bob.user_id] == "join"
    await same_state(alice, bob, room_id)


async def test_many_new_members_are_compared_once_each(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our last state and the state of the response differ in all of them."""
    gathered: list[int] = []

    def gather(self: Conflicts) -> set[EventID]:
        found = set[EventID]().union(*self.conflicted.values())
        gathered.append(len(found))
        return found

    alice, bob, room_id = await large_room(network)
    carol = bob.server.register("carol")
    ok(join_via(bob, room_id, NORTH))
    complete(network)
    leave_unheard(network, bob, room_id)
    await fill(alice.server, room_id, 2 * MEMBERS)
    monkeypatch.setattr(Conflicts, "events", property(gather))

    ok(join_via(carol, room_id, NORTH))
    complete(network)

    assert members(carol, room_id)[bob.user_id] == "leave"
    assert max(gathered) > MEMBERS
    assert len(gathered) < 20
