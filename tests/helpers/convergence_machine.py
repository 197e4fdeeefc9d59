"""A state machine of three servers that share a room, on a network that loses, delays and reorders
requests. After repair, the servers must have the same room."""

from collections.abc import Collection, Mapping
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from twisted.logger import capturedLogs, formatEvent

from federation.protocol.events import StateKey
from federation.protocol.ids import EventID, RoomID
from storage.engine.database import Database
from storage.events.timelines import Direction, TimelinePlace, TimelineStore
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, make_sqlite_template, open_inline
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, Side, create_room, texts
from tests.helpers.http import Pending
from tests.helpers.network import Fate, Network, Transfer
from tests.helpers.server import User

V3 = "/_matrix/client/v3"
NAMES = (NORTH, SOUTH, EAST)
PAIRS = ((NORTH, SOUTH), (NORTH, EAST), (SOUTH, EAST))
WHO = st.integers(0, 2)
LEVELS = st.sampled_from([0, 50, 100])
HEALED_AFTER = 24
"""Hours within which every failed destination is retried."""
SEEDS = st.integers(0, 2**16)
FATES = (Fate.ARRIVES,) * 4 + (Fate.ARRIVES_TWICE, Fate.IS_LOST, Fate.ANSWER_IS_LOST)


class ConvergenceMachine(RuleBasedStateMachine):
    """Alice in the north, Bob in the south and Carol in the east share a room."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.path = Path(self.directory.name)
        self.databases: list[Database] = []
        template = make_sqlite_template(self.path)

        def open_another() -> Database:
            self.databases.append(open_inline(copy_sqlite(template, self.path)))
            return self.databases[-1]

        self.network = Network(self.path, open_another)
        self.sides = [Side(self.network.add(name)) for name in NAMES]
        self.users: list[User] = [
            side.server.register(name)
            for side, name in zip(self.sides, ("alice", "bob", "carol"), strict=True)
        ]
        self.network.start_sending()
        self.room_id = RoomID("!none")
        self.there: dict[EventID, set[int]] = {}
        """The servers that have been in the room, by their own view, ever since an event was first
        seen on any."""
        self.holding = False
        self.number = 0

    @initialize(version=st.sampled_from(["6", "10", "11", "12"]))
    def begin(self, version: str) -> None:
        self.room_id = create_room(self.users[0], version)
        self.version = version
        for user in self.users[1:]:
            answer = user.post(f"{V3}/join/{self.room_id}?via={NORTH}")
            assert answer.status == 200, answer.body
        self.settle()
        run_coroutine(self._remember(), None)

    async def _remember(self) -> None:
        self.before = {event_id for side in self.sides for event_id in await self._timeline(side)}
        self.there |= {event_id: set(range(len(NAMES))) for event_id in self.before}

    @rule(who=WHO)
    def say(self, who: int) -> None:
        self.number += 1
        self.act(
            who,
            "PUT",
            f"send/m.room.message/{self.number}",
            {"msgtype": "m.text", "body": f"{self.number}"},
        )

    @rule(who=WHO, topic=st.sampled_from("xyz"))
    def set_topic(self, who: int, topic: str) -> None:
        self.act(who, "PUT", "state/m.room.topic/", {"topic": topic})

    @rule(who=WHO, levels=st.tuples(LEVELS, LEVELS, LEVELS))
    def set_levels(self, who: int, levels: tuple[int, int, int]) -> None:
        users = {user.user_id: level for user, level in zip(self.users, levels, strict=True)}
        if self.version == "12":
            del users[self.users[0].user_id]
        self.act(
            who,
            "PUT",
            "state/m.room.power_levels/",
            {"users": users, "users_default": 0, "state_default": 50},
        )

    @rule(who=WHO, join_rule=st.sampled_from(["public", "invite"]))
    def set_join_rule(self, who: int, join_rule: str) -> None:
        self.act(who, "PUT", "state/m.room.join_rules/", {"join_rule": join_rule})

    @rule(who=WHO, whom=WHO, what=st.sampled_from(["invite", "kick", "ban", "unban"]))
    def change_membership(self, who: int, whom: int, what: str) -> None:
        if who != whom:
            self.act(who, "POST", what, {"user_id": self.users[whom].user_id})

    @rule(who=WHO)
    def leave(self, who: int) -> None:
        self.act(who, "POST", "leave", {})

    @rule(who=WHO, through=WHO)
    def join(self, who: int, through: int) -> None:
        user = self.users[who]
        self._note(user.start("POST", f"{V3}/join/{self.room_id}?via={NAMES[through]}", {}))

    @rule(pair=st.sampled_from(PAIRS))
    def cut(self, pair: tuple[str, str]) -> None:
        self.network.cut(*pair)

    @rule(pair=st.sampled_from(PAIRS))
    def mend(self, pair: tuple[str, str]) -> None:
        self.network.mend(*pair)

    @rule()
    def hold(self) -> None:
        if not self.holding:
            self.network.hold()
            self.holding = True

    @rule(order=SEEDS)
    def deliver(self, order: int) -> None:
        random = Random(order)
        self.network.deliver(lambda transfers: random.randrange(len(transfers)))
        self.holding = False
        self.settle()

    @rule(order=SEEDS, most=st.integers(1, 3))
    def deliver_some(self, order: int, most: int) -> None:
        random = Random(order)
        self.network.deliver(lambda transfers: random.randrange(len(transfers)), most)
        self.settle()

    @rule(seed=SEEDS)
    def storm(self, seed: int) -> None:
        random = Random(seed)

        def choose_fate(_: Transfer) -> Fate:
            return random.choice(FATES)

        self.network.choose_fate = choose_fate

    @rule()
    def calm(self) -> None:
        self.network.choose_fate = lambda _: Fate.ARRIVES

    @rule(seconds=st.sampled_from([1, 15, 100]))
    def wait(self, seconds: int) -> None:
        self.network.clock.advance(seconds)
        self.settle()

    def act(self, who: int, method: str, path: str, body: Any) -> None:
        self._note(self.users[who].start(method, f"{V3}/rooms/{self.room_id}/{path}", body))

    def _note(self, pending: Pending) -> None:
        run_coroutine(self._look_who_is_there(), None)
        self.network.clock.advance(0.001)  # no two events are of the same moment
        self.settle()
        if pending.done:
            assert pending.answer.status != 500, pending.answer.body

    async def _look_who_is_there(self) -> None:
        inside = {at for at in range(len(NAMES)) if await self._is_in_room(at)}
        for servers in self.there.values():
            servers.intersection_update(inside)
        for side in self.sides:
            new = [EventID(event_id) for event_id in await side.extremities(self.room_id)]
            while new:  # several may have come at once, of which only the last has nothing after it
                event_id = new.pop()
                if event_id in self.there:
                    continue
                self.there[event_id] = set(inside)
                stored = await side.find(self.room_id, event_id)
                if stored is not None:
                    new += stored.event.prev_events

    def settle(self) -> None:
        self.network.settle()
        run_coroutine(self._look_who_is_there(), None)

    def teardown(self) -> None:
        try:
            if self.room_id != "!none":
                self._heal()
                run_coroutine(self._compare(), None)
                run_coroutine(self._audit(), None)
        finally:
            for database in self.databases:
                run_coroutine(database.close(), None)
            self.directory.cleanup()

    def _heal(self) -> None:
        self.calm()
        for pair in PAIRS:
            self.network.mend(*pair)
        self.network.deliver()
        self._pass_time()
        self._come_back()
        for _ in range(3):
            for who in range(3):
                self.say(who)
                self._pass_time(1)
        for user in self.users:
            if self._may_read(user):
                texts(user, self.room_id)

    def _may_read(self, user: User) -> bool:
        """Whether somebody reads the room to its beginning: who may is answered at once."""
        status = user.get(f"{V3}/rooms/{self.room_id}/state").status
        assert status in (200, 403), status
        return status == 200

    def _come_back(self) -> None:
        """Make the rooms joinable where a member may; then all users join through any server."""
        for who in range(3):
            self.act(who, "PUT", "state/m.room.join_rules/", {"join_rule": "public"})
            for whom in range(3):
                if whom != who:
                    self.act(who, "POST", "unban", {"user_id": self.users[whom].user_id})
        self._pass_time(1)
        via = "&".join(f"via={name}" for name in NAMES)
        for user in (*self.users, *self.users):
            self._note(user.start("POST", f"{V3}/join/{self.room_id}?{via}", {}))
            self._pass_time(1)

    def _pass_time(self, hours: int = HEALED_AFTER) -> None:
        for _ in range(hours):
            self.network.clock.advance(3600)
            self.settle()

    async def _compare(self) -> None:
        """Servers that take each other to be in the room have the same room.

        A ban, or a join that the resolution of a fork took back, may be known to one side only:
        then that one no longer tells the other anything.
        """
        present = [at for at in range(3) if await self._is_in_room(at)]
        states = {at: await self.sides[at].state(self.room_id) for at in present}
        members = {
            at: {other for other in range(3) if await self._is_joined(states[at], other)}
            for at in present
        }
        if len(present) == 3 and all(len(there) == 3 for there in members.values()):
            event("all came back")
            assert states[0] == states[1] == states[2]
            await self._compare_all_events()
            return
        event("some could not come back")
        for one in present:
            for other in present:
                if one < other and {one, other} <= members[one] & members[other]:
                    assert states[one] == states[other], (NAMES[one], NAMES[other])
                    await self._compare_events(one, other)
                    await self._compare_events(other, one)

    async def _audit(self) -> None:
        """Each server's stored states are what the past gives."""
        with capturedLogs() as logged:
            for side in self.sides:
                while await side.server.app.federation_receiver.audit.do_step(100):
                    pass
                await side.server.app.federation_receiver.audit.do_step(10_000)
        differences = [
            formatEvent(entry) for entry in logged if "the state of" in str(entry.get("log_format"))
        ]
        assert not differences, differences[0]

    async def _compare_all_events(self) -> None:
        """Check that every server has and shows each event that any server has shown, unless it
        took the event for one from outside the room.

        An event may be missing under three conditions. Its servers have left the room since, and
        rejoined through others that lack it, so nothing builds on it. (For example a message into a
        room that the others had left by then; or one that the others soft-failed.) The server was
        out of the room at that time, or has been since: else it would have received the event. And
        no event of the server follows it, so a backfill to the beginning does not find it.
        """
        shown = [set(await self._timeline(side)) for side in self.sides]
        followed = [await self._followed(side, set.union(*shown)) for side in self.sides]
        history = await self._history()
        for event_id in set.union(*shown):
            stored = [await side.find(self.room_id, event_id) for side in self.sides]
            for at, (name, each) in enumerate(zip(NAMES, stored, strict=True)):
                was_out = at not in self.there[event_id]
                if (
                    each is None
                    and was_out
                    and event_id not in history
                    and event_id not in followed[at]
                ):
                    event("one misses what nobody goes on from")
                    continue
                assert each is not None, (name, event_id)
                assert not each.is_outlier, (name, event_id)
                assert not each.rejected, (name, event_id)
            if all(each is not None and each.in_timeline for each in stored):
                assert all(event_id in there for there in shown)

    async def _history(self) -> set[EventID]:
        """Return the forward extremities of all servers, with the ancestors that any server
        has."""
        history: set[EventID] = set()
        waiting = [
            EventID(name) for side in self.sides for name in await side.extremities(self.room_id)
        ]
        while waiting:
            event_id = waiting.pop()
            if event_id not in history:
                history.add(event_id)
                found = [await side.find(self.room_id, event_id) for side in self.sides]
                waiting += [
                    name
                    for stored in found
                    if stored is not None
                    for name in stored.event.prev_events
                ]
        return history

    async def _followed(self, side: Side, shown: Collection[EventID]) -> set[EventID]:
        """Return the ancestors of events that have their place on a server.

        `shown`: all events that any server has shown.
        """
        found = [await side.find(self.room_id, event_id) for event_id in shown]
        placed = [stored for stored in found if stored is not None and not stored.is_outlier]
        return {name for stored in placed for name in stored.event.prev_events}

    async def _compare_events(self, one: int, other: int) -> None:
        """Check that the other shows each event of one, if it was in the room then and since."""
        for event_id in set(await self._timeline(self.sides[one])) - self.before:
            if other not in self.there[event_id]:
                continue
            stored = await self.sides[other].find(self.room_id, event_id)
            assert stored is not None, (NAMES[other], event_id)
            assert not stored.is_outlier, (NAMES[other], event_id)
            assert not stored.rejected, (NAMES[other], event_id)

    async def _is_joined(self, state: Mapping[StateKey, EventID], who: int) -> bool:
        event_id = state.get(StateKey("m.room.member", self.users[who].user_id))
        if event_id is None:
            return False
        found = [await side.find(self.room_id, event_id) for side in self.sides]
        return any(stored is not None and stored.event.membership == "join" for stored in found)

    async def _is_in_room(self, at: int) -> bool:
        side = self.sides[at]
        room_nid = (await side.room(self.room_id)).room.room_nid
        return bool(await side.rooms.memberships.local_members(room_nid))

    async def _timeline(self, side: Side) -> list[EventID]:
        room_nid = (await side.room(self.room_id)).room.room_nid
        page = await TimelineStore(side.server.app.database).get_page(
            room_nid, TimelinePlace(2**53, 0), None, Direction.BACKWARDS, 10_000
        )
        events = await side.rooms.events.get_events(nid for _, nid in page)
        return [stored.event.event_id for stored in events.values()]
