"""A user who declines an invite has left at once. The servers that know of the invite receive the
leave, though they are down at that time, or ours crashes before it is sent."""

from urllib.parse import quote

import msgspec
import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.ids import ServerName
from storage.engine.database import Database
from storage.federation.pending_leaves import (
    MAX_PER_SERVER,
    PendingLeave,
    PendingLeaveStore,
    set_pending_leaves,
)
from tests.helpers.federated_rooms import two_users
from tests.helpers.large_rooms import complete, is_whole, large_room
from tests.helpers.network import Network
from tests.helpers.remote_membership import join_via
from tests.helpers.room_actions import V3, create, get_state, invite, join, leave, membership, ok
from tests.helpers.server import TestServer, User, move_user

NORTH, SOUTH, EAST = "north.example", "south.example", "east.example"
HOUR = 3600


def invited_twice(network: Network) -> tuple[User, User, list[str]]:
    """Alice has invited Bob into these rooms."""
    alice, bob = two_users(network)
    rooms = [create(alice), create(alice)]
    for room_id in rooms:
        invite(alice, room_id, bob)
    return alice, bob, rooms


def send_pending_leaves(server: TestServer) -> None:
    """Run the job that sends pending leaves."""
    server.run(server.app.federated_rooms.leaving.do_send_pending(16))


def wait(network: Network, server: TestServer, hours: float) -> None:
    for _ in range(int(hours * 60)):
        network.clock.advance(60)
        send_pending_leaves(server)


def asked(network: Network, what: str = "/make_leave/") -> list[str]:
    return [to for origin, to, _, uri in network.log if origin == SOUTH and what in uri]


def standing(alice: User, room_id: str, bob: User) -> str:
    state = get_state(alice, room_id, "m.room.member", bob.user_id)
    return str(state["membership"])


class Busy:
    """The north, where it takes note of no leaves for so many seconds: of any room, or of some."""

    def __init__(self, network: Network, seconds: int) -> None:
        self.rooms: list[str] | None = None
        self._answer = WireResponse(429, {"retry-after": str(seconds)}, b"{}")
        network.interceptors.append(self._refuse)

    def _refuse(self, to: ServerName, request: WireRequest) -> WireResponse | None:
        is_concerned = self.rooms is None or any(
            quote(room_id, safe="") in request.uri for room_id in self.rooms
        )
        return (
            self._answer if to == NORTH and "/make_leave/" in request.uri and is_concerned else None
        )


def declined_unheard(network: Network, alice: User, bob: User) -> str:
    room_id = create(alice)
    invite(alice, room_id, bob)
    network.cut(NORTH, SOUTH)
    ok(membership(bob, room_id, "leave", reason="no tea"))
    assert room_id not in ok(bob.get(f"{V3}/sync")).get("rooms", {}).get("invite", {})
    return room_id


def test_a_server_that_was_down_receives_the_leave_later(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = declined_unheard(network, alice, bob)
    wait(network, bob.server, 1)
    network.mend(NORTH, SOUTH)
    assert standing(alice, room_id, bob) == "invite"
    wait(network, bob.server, 2)
    assert get_state(alice, room_id, "m.room.member", bob.user_id) == {
        "membership": "leave",
        "reason": "no tea",
    }
    received = len(asked(network))
    wait(network, bob.server, 12)
    assert len(asked(network)) == received, "once is enough"


def test_a_rate_limited_leave_is_sent_when_the_server_allows(network: Network) -> None:
    """Of whatever there is to tell, though we were killed meanwhile."""
    alice, bob, rooms = invited_twice(network)
    wait_for: list[int] = []

    def be_busy(to: ServerName, request: WireRequest) -> WireResponse | None:
        if to != NORTH or "/make_leave/" not in request.uri or not wait_for:
            return None
        return WireResponse(429, {"retry-after": str(wait_for.pop(0))}, b"{}")

    network.interceptors.append(be_busy)
    wait_for += [1800, 3600]
    leave(bob, rooms[0])
    wait(network, bob.server, 0.45)
    assert len(asked(network)) == 1
    wait(network, bob.server, 0.1)
    assert len(asked(network)) == 2
    restarted = network.rebuild(SOUTH)
    wait(network, restarted, 0.8)
    assert len(asked(network)) == 2
    leave(
        move_user(restarted, bob),
        rooms[1],
    )
    wait(network, restarted, 0.2)
    assert [standing(alice, room_id, bob) for room_id in rooms] == ["leave", "leave"]


def test_a_rate_limit_applies_to_all_leaves_of_a_server(network: Network) -> None:
    alice, bob, rooms = invited_twice(network)
    busy = Busy(network, 1800)
    for room_id in rooms:
        leave(bob, room_id)
        wait(network, bob.server, 0.1)
    assert len(asked(network)) == 1
    busy.rooms = []
    wait(network, bob.server, 0.4)
    assert [standing(alice, room_id, bob) for room_id in rooms] == ["leave", "leave"]


def test_a_rate_limit_in_one_room_does_not_block_the_others(network: Network) -> None:
    """A leave that a server does not accept now must not block its later ones, however long the
    server asks us to wait."""
    alice, bob, rooms = invited_twice(network)
    busy = Busy(network, 3600)
    for room_id in rooms:
        leave(bob, room_id)
    busy.rooms = rooms[:1]
    wait(network, bob.server, 2.5)
    assert [standing(alice, room_id, bob) for room_id in rooms] == ["invite", "leave"]
    busy.rooms = []
    wait(network, bob.server, 2)
    assert standing(alice, rooms[0], bob) == "leave"


def test_a_leave_is_sent_after_a_crash(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = declined_unheard(network, alice, bob)
    restarted = network.rebuild(SOUTH)
    network.mend(NORTH, SOUTH)
    wait(network, restarted, 1)
    assert standing(alice, room_id, bob) == "leave"


def test_a_leave_is_sent_after_a_crash_during_sending(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = declined_unheard(network, alice, bob)
    network.mend(NORTH, SOUTH)
    network.hold()
    wait(network, bob.server, 0.2)
    assert [transfer.destination for transfer in network.held()] == [NORTH]
    restarted = network.rebuild(SOUTH)
    network.deliver()
    assert standing(alice, room_id, bob) == "invite"
    wait(network, restarted, 1)
    assert standing(alice, room_id, bob) == "leave"


def test_retries_slow_down_and_end(network: Network) -> None:
    alice, bob = two_users(network)
    for _ in range(5):
        declined_unheard(network, alice, bob)
        network.mend(NORTH, SOUTH)
    network.cut(NORTH, SOUTH)
    before = len(asked(network))
    wait(network, bob.server, 24)
    in_a_day = len(asked(network)) - before
    assert 5 <= in_a_day <= 15, "all five of them together"
    for _ in range(8 * 24):
        network.clock.advance(HOUR)
        send_pending_leaves(bob.server)
    before = len(asked(network))
    network.clock.advance(24 * HOUR)
    send_pending_leaves(bob.server)
    assert len(asked(network)) == before


@pytest.mark.parametrize("then", ["invited again", "joined"])
def test_a_user_who_joins_after_declining_does_not_leave_later(network: Network, then: str) -> None:
    alice, bob = two_users(network)
    room_id = declined_unheard(network, alice, bob)
    network.mend(NORTH, SOUTH)
    ok(membership(alice, room_id, "invite", bob, reason="there is tea"))
    if then == "joined":
        join(bob, room_id)
    wait(network, bob.server, 8)
    assert standing(alice, room_id, bob) == ("join" if then == "joined" else "invite")


def test_a_declined_invite_stays_declined_when_a_colleague_joins(
    network: Network,
) -> None:
    """The other server was down, and the invite still stands in the room when ours enters it."""
    alice, bob = two_users(network)
    network.start_sending()
    carol = bob.server.register("carol")
    room_id = declined_unheard(network, alice, bob)
    network.mend(NORTH, SOUTH)
    invite(alice, room_id, carol)
    join(carol, room_id)
    wait(network, bob.server, 0.1)
    assert get_state(alice, room_id, "m.room.member", bob.user_id) == {
        "membership": "leave",
        "reason": "no tea",
    }
    assert room_id not in ok(bob.get(f"{V3}/sync")).get("rooms", {}).get("invite", {})


def test_a_newer_invite_is_not_declined_when_a_colleague_joins(
    network: Network,
) -> None:
    alice, bob = two_users(network)
    network.start_sending()
    carol = bob.server.register("carol")
    room_id = declined_unheard(network, alice, bob)
    network.mend(NORTH, SOUTH)
    invite(alice, room_id, carol)
    join(carol, room_id)
    ok(membership(alice, room_id, "kick", bob))
    ok(membership(alice, room_id, "invite", bob))
    network.settle()
    wait(network, bob.server, 8)
    assert standing(alice, room_id, bob) == "invite"
    assert room_id in ok(bob.get(f"{V3}/sync"))["rooms"]["invite"]


def test_a_failed_join_of_a_colleague_does_not_block_leaves(network: Network) -> None:
    alice, bob = two_users(network)
    carol = bob.server.register("carol")
    room_id = declined_unheard(network, alice, bob)
    invite_path = f"{V3}/join/{room_id}?via={NORTH}"
    assert carol.post(invite_path).status >= 400
    network.mend(NORTH, SOUTH)
    assert carol.post(invite_path).status == 403
    wait(network, bob.server, 8)
    assert standing(alice, room_id, bob) == "leave"


def test_a_leave_that_a_server_refuses_is_not_retried(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = declined_unheard(network, alice, bob)
    network.mend(NORTH, SOUTH)
    ok(membership(alice, room_id, "kick", bob))
    refusal = msgspec.json.encode({"errcode": "M_FORBIDDEN", "error": "no"})

    def refuse(_: ServerName, request: WireRequest) -> WireResponse | None:
        return WireResponse(403, {}, refusal) if "/make_leave/" in request.uri else None

    network.interceptors.append(refuse)
    before = len(asked(network))
    wait(network, bob.server, 24)
    assert len(asked(network)) == before + 1


def test_a_server_that_is_down_delays_no_other(network: Network) -> None:
    alice, bob = two_users(network)
    carol = network.add(EAST).register("carol")
    theirs = create(carol)
    invite(carol, theirs, bob)
    network.cut(EAST, SOUTH)
    leave(bob, theirs)
    room_id = declined_unheard(network, alice, bob)
    network.mend(NORTH, SOUTH)
    wait(network, bob.server, 1)
    assert standing(alice, room_id, bob) == "leave"
    assert standing(carol, theirs, bob) == "invite"


async def test_pending_leaves_of_a_server_are_bounded(database: Database) -> None:
    store = PendingLeaveStore(database)
    for room_nid in range(MAX_PER_SERVER + 10):
        await database.write(
            "add",
            set_pending_leaves,
            room_nid,
            "@a:b",
            f"$e{room_nid}",
            {"full.example": "$i", "b": "$i"},
            1,
        )
    taken: list[PendingLeave] = []
    while (leave := await store.lease_due("full.example", 1, lambda _: 1000)) is not None:
        taken.append(leave)
    assert [leave.room_nid for leave in taken] == list(range(MAX_PER_SERVER))
    assert await store.get_due_servers(1, 10) == ["b"]


async def test_pending_leaves_of_a_server_share_its_backoff(database: Database) -> None:
    store = PendingLeaveStore(database)
    for room_nid in (1, 2, 3):
        await database.write("add", set_pending_leaves, room_nid, "@a:b", "$e", {"x": "$i"}, 10)
    first = await store.lease_due("x", 10, lambda attempts: 100 * 2**attempts)
    assert first is not None
    await store.postpone(first)
    assert await store.get_due_servers(108, 10) == []
    second = await store.lease_due("x", 110, lambda attempts: 100 * 2**attempts)
    assert second is not None
    assert (second.room_nid, second.due_ts, second.attempts) == (2, 310, 2)
    await store.remove(first)
    third = await store.lease_due("x", 110, lambda _: 100)
    assert third is not None
    assert third.room_nid == 3
    await database.write("add", set_pending_leaves, 3, "@a:b", "$other", {}, 10)
    assert await store.get_due_servers(10_000, 10) == ["x"]
    await store.remove(second)
    assert await store.get_due_servers(10_000, 10) == []


def test_a_withdrawn_knock_is_left_when_a_colleague_joins(
    network: Network,
) -> None:
    alice, bob = two_users(network)
    network.start_sending()
    carol = bob.server.register("carol")
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room_id = create(alice, initial_state=[rule])
    ok(bob.post(f"{V3}/knock/{room_id}?via={NORTH}"))
    network.cut(NORTH, SOUTH)
    leave(bob, room_id)
    network.mend(NORTH, SOUTH)
    assert standing(alice, room_id, bob) == "knock"
    invite(alice, room_id, carol)
    join(carol, room_id)
    wait(network, bob.server, 0.1)
    assert standing(alice, room_id, bob) == "leave"


async def test_a_declined_invite_is_left_when_a_colleague_joins_with_partial_state(
    network: Network,
) -> None:
    alice, bob, room_id = await large_room(network)
    carol = bob.server.register("carol")
    invite(alice, room_id, bob)
    network.cut(NORTH, SOUTH)
    ok(membership(bob, room_id, "leave"))
    network.mend(NORTH, SOUTH)
    ok(join_via(carol, room_id, NORTH))
    assert not is_whole(carol, room_id)
    wait(network, bob.server, 0.5)
    assert standing(alice, room_id, bob) == "invite", "whether it stands is not known here yet"
    complete(network)
    assert is_whole(carol, room_id)
    wait(network, bob.server, 0.5)
    assert standing(alice, room_id, bob) == "leave"
