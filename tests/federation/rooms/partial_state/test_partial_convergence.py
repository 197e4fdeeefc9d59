"""As `tests/federation/rooms/test_convergence.py`, in a room with people of so many servers that it
is entered in part, again and again: wherever the rest of the state comes, and whatever happens
meanwhile, all servers have the same room in the end.

`MAHALLA_CONVERGENCE_RUNS=1000` makes as many runs.
"""

import os

import msgspec
from hypothesis import Phase, event
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from twisted.internet.defer import Deferred

from federation.protocol.errors import MatrixError
from federation.protocol.ids import RoomID, UserID
from federation.rooms.event_drafts import Draft
from federation.rooms.joins.send_join_response import MAX_SMALL_SERVERS
from storage.federation.inbox import InboxStore
from tests.conftest import run_coroutine
from tests.helpers.convergence_machine import NAMES, ConvergenceMachine
from tests.helpers.federated_rooms import NORTH, create_room
from tests.helpers.state_machines import RANDOM_EXAMPLES, run_machine

RUNS = int(os.environ.get("MAHALLA_CONVERGENCE_RUNS", "15"))
EXTRAS = 12


class PartialStateMachine(ConvergenceMachine):
    """A room with more people of the north, and with some of elsewhere who may not come in."""

    @initialize(version=st.sampled_from(["6", "10", "11", "12"]))
    def begin(self, version: str) -> None:
        self.room_id = create_room(self.users[0], version)
        self.version = version
        self.in_part = 0
        people = [UserID(f"@extra{number}:{NORTH}") for number in range(EXTRAS)]
        joins = [Draft("m.room.member", user, {"membership": "join"}, user) for user in people]
        elsewhere = [UserID(f"@eve:server{number}.example") for number in range(MAX_SMALL_SERVERS)]
        bans = [
            Draft("m.room.member", self.users[0].user_id, {"membership": "ban"}, user)
            for user in elsewhere
        ]
        run_coroutine(self._send([*joins, *bans]), None)
        for user in self.users[1:]:
            answer = user.post(f"/_matrix/client/v3/join/{self.room_id}?via={NORTH}")
            assert answer.status == 200, answer.body
        self.network.settle()
        # they got the room with partial state, and nothing fetches the rest yet
        for at in (1, 2):
            head = self.users[at].server.run(self.sides[at].room(RoomID(self.room_id))).head
            self.in_part += head.partial_join is not None
        assert self.in_part == 2
        run_coroutine(self._remember(), None)

    async def _send(self, drafts: list[Draft]) -> None:
        await self.sides[0].server.app.room_engine.engine.send(self.room_id, drafts)

    @rule(number=st.integers(0, EXTRAS - 1), what=st.sampled_from(["say", "leave", "join"]))
    def extra(self, number: int, what: str) -> None:
        """One of the many does something."""
        user = UserID(f"@extra{number}:{NORTH}")
        draft = Draft("m.room.message", user, {"msgtype": "m.text", "body": f"extra {number}"})
        if what != "say":
            draft = Draft("m.room.member", user, {"membership": what}, user)
        self.network.clock.advance(0.001)
        Deferred.fromCoroutine(self._send([draft])).addErrback(
            lambda failure: failure.trap(MatrixError)
        )
        self.settle()

    @rule(at=st.integers(1, 2))
    def complete(self, at: int) -> None:
        """From now on a server fetches the rest."""
        self.sides[at].server.app.federation_receiver.completions.start()
        self.settle()

    def _heal(self) -> None:
        for at in range(len(NAMES)):
            self.sides[at].server.app.federation_receiver.completions.start()
        super()._heal()

    async def _compare(self) -> None:
        """Check the rooms that still have partial state: their users were removed, and their server
        cannot learn that, since no server sends it the events. Servers with the complete room do
        not count it as a member, its users are answered nevertheless, and it has no event that
        removes them.
        """
        await super()._compare()
        heads = [(await side.room(self.room_id)).head for side in self.sides]
        whole = [
            at
            for at, head in enumerate(heads)
            if head.partial_join is None and await self._is_in_room(at)
        ]
        for at, head in enumerate(heads):
            if head.partial_join is None or not await self._is_in_room(at):
                continue
            event("a server stays in part")
            for other in whole:
                assert not await self._is_joined(await self.sides[other].state(self.room_id), at), (
                    NAMES[at]
                )
            app = self.sides[at].server.app
            room_nid = (await self.sides[at].room(self.room_id)).room.room_nid
            assert await app.rooms.partial.find(room_nid) is None, NAMES[at]
            waiting = [
                msgspec.json.decode(row.pdu)
                for row in await InboxStore(database=app.database).get_of_room(room_nid, 1000)
            ]
            assert not [pdu for pdu in waiting if pdu.get("state_key") == self.users[at].user_id], (
                NAMES[at]
            )


def test_large_rooms_with_partial_state_converge() -> None:
    run_machine(PartialStateMachine, RUNS, 20, (Phase.generate,), RANDOM_EXAMPLES)
