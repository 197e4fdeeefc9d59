"""Guests, and the guest access of rooms on several servers. spec: client-server-api#guest-access"""

from collections.abc import Collection, Sequence
from typing import cast

from twisted.internet.task import Clock

from federation.protocol.errors import Forbidden
from federation.protocol.ids import RoomID
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Draft
from homeserver.services.rooms.guest_access import GuestAccess
from storage.rooms.memberships import MembershipStore
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, join_via, members
from tests.helpers.room_actions import V3, create, join, ok, set_state
from tests.helpers.server import User


def test_guests_are_removed_when_a_remote_user_forbids_guests(network: Network) -> None:
    network.start_sending()
    north, south = network.add(NORTH), network.add(SOUTH)
    alice, bob = north.register("alice"), south.register("bob")
    guest = User(south, ok(south.post(f"{V3}/register?kind=guest", {})))
    access = {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}
    room_id = create(alice, preset="public_chat", initial_state=[access])
    ok(join_via(bob, room_id, NORTH))
    join(guest, room_id)
    network.settle()
    assert members(alice, room_id)[guest.user_id] == "join"
    set_state(alice, room_id, "m.room.guest_access", {"guest_access": "forbidden"})
    network.settle()
    south.app.jobs.start()
    south.clock.advance(60)
    network.settle()
    for user in (alice, bob):
        assert {name: members(user, room_id)[name] for name in (guest.user_id, bob.user_id)} == {
            guest.user_id: "leave",
            bob.user_id: "join",
        }


class Rooms:
    """Rooms with guests who may not be there, some of whom cannot leave."""

    def __init__(
        self, clock: Clock, guests: Sequence[str], stuck: Collection[str], seconds: float = 0
    ) -> None:
        self._clock = clock
        self._guests = list(guests)
        self._stuck = stuck
        self._seconds = seconds
        self.looks = 0

    async def get_disallowed_guests(
        self, limit: int, _room_nid: int | None = None, after: str = ""
    ) -> list[tuple[str, str]]:
        self.looks += 1
        self._clock.advance(self._seconds)
        return [("!room:a.test", guest) for guest in sorted(self._guests) if guest > after][:limit]

    async def send(self, _room_id: RoomID, drafts: Sequence[Draft]) -> None:
        if drafts[0].sender in self._stuck:
            raise Forbidden("not now")
        self._guests.remove(drafts[0].sender)

    @property
    def guests(self) -> list[str]:
        return self._guests


def begin(clock: Clock, rooms: Rooms) -> GuestAccess:
    return GuestAccess(
        engine=cast(RoomEngine, rooms), memberships=cast(MembershipStore, rooms), clock=clock
    )


async def test_guests_that_cannot_be_removed_do_not_block_others() -> None:
    guests, clock = [f"@{number}:a.test" for number in range(300)], Clock()
    stuck = guests[:120]
    rooms = Rooms(clock, guests, stuck)
    await begin(clock, rooms).do_remove_from_room(1)
    assert sorted(rooms.guests) == sorted(stuck)
    rooms = Rooms(clock, guests, stuck)
    access = begin(clock, rooms)
    for _ in range(5):
        await access.do_remove_guests(70)
    assert sorted(rooms.guests) == sorted(stuck)
    looks = rooms.looks
    assert await access.do_remove_guests(70) == 70, "they are tried again"
    assert rooms.looks == looks + 1


async def test_the_search_for_guests_takes_a_hundredth_of_the_time() -> None:
    clock = Clock()
    rooms = Rooms(clock, [], (), seconds=2)
    access = begin(clock, rooms)
    for _ in range(100):
        assert await access.do_remove_guests(50) == 0
        clock.advance(10)
    assert rooms.looks == 5
