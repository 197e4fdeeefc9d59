"""Three servers whose events arrive in any order, with partitions: after these, all have the
same room."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from federation.protocol.errors import MatrixError
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID, RoomID, UserID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.state_resolution import (
    AuthGraph,
    compute_auth_difference,
    compute_conflicted_subgraph,
    find_conflicts,
    resolve,
)
from federation.rooms.receipt_checks import Verdict
from federation.rooms.snapshot import CREATE
from storage.rooms.memberships import MembershipStore
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, make_sqlite_template, open_inline
from tests.helpers.peers import Peer, join, servers
from tests.helpers.state_machines import run_machine

PEERS = st.integers(0, 2)
LEVELS = st.sampled_from([0, 50, 100])
ACTIONS = st.one_of(
    st.tuples(st.just("message")),
    st.tuples(st.just("topic"), st.sampled_from("xyz")),
    st.tuples(st.just("power"), LEVELS, LEVELS),
    st.tuples(st.just("rule"), st.sampled_from(["public", "invite"])),
    st.tuples(st.just("member"), st.sampled_from(["join", "leave", "ban", "invite"]), PEERS),
)


class Partitions(RuleBasedStateMachine):
    """Events wait at each server until they are delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        path = Path(self.directory.name)
        template = make_sqlite_template(path)
        self.peers = servers([open_inline(copy_sqlite(template, path)) for _ in range(3)])
        self.waiting: list[list[Event]] = [[], [], []]
        self.room_id = RoomID("!none")

    @initialize(version=st.sampled_from(["1", "2", "6", "10", "11", "12"]))
    def begin(self, version: str) -> None:
        self.version = ROOM_VERSIONS[version]
        run_coroutine(self._begin(), None)

    async def _begin(self) -> None:
        a, b, c = self.peers
        self.room_id = await a.create(a.user, version=self.version)
        await join(a, b, self.version, self.room_id)
        last = await join(a, c, self.version, self.room_id)
        await b.take(self.room_id, last)

    @rule(at=PEERS, action=ACTIONS)
    def act(self, at: int, action: tuple[Any, ...]) -> None:
        run_coroutine(self._do(at, action), None)

    @rule(at=PEERS, data=st.data())
    def deliver(self, at: int, data: st.DataObject) -> None:
        """Some of what waits, in any order; what lacks its past waits on."""
        if self.waiting[at]:
            chosen = data.draw(st.lists(st.sampled_from(self.waiting[at]), min_size=1, max_size=8))
            run_coroutine(self._do_deliver(at, chosen), None)

    @precondition(lambda self: any(self.waiting))
    @rule()
    def heal(self) -> None:
        run_coroutine(self._heal(), None)

    def teardown(self) -> None:
        if self.room_id != "!none":
            run_coroutine(self._heal(), None)
        for peer in self.peers:
            run_coroutine(peer.database.close(), None)
        self.directory.cleanup()

    async def _do(self, at: int, action: tuple[Any, ...]) -> None:
        await self._act(at, action)

    async def _do_deliver(self, at: int, events: list[Event]) -> None:
        await self._deliver(at, events)

    async def _act(self, at: int, action: tuple[Any, ...]) -> Event | None:
        peer = self.peers[at]
        users = [other.user for other in self.peers]
        type, content, state_key = self._describe(action, users)
        try:
            event = (await peer.send(self.room_id, peer.user, content, type, state_key)).event
        except MatrixError:
            return None
        for other in range(3):
            if other != at:
                self.waiting[other].append(event)
        await self._check(peer)
        return event

    def _describe(
        self, action: tuple[Any, ...], users: list[UserID]
    ) -> tuple[str, Mapping[str, Any], str | None]:
        match action:
            case ("topic", topic):
                return "m.room.topic", {"topic": topic}, ""
            case ("power", second, third):
                levels = {users[0]: 100, users[1]: second, users[2]: third}
                if self.version.creators_privileged:
                    del levels[users[0]]
                return "m.room.power_levels", {"users": levels}, ""
            case ("rule", value):
                return "m.room.join_rules", {"join_rule": value}, ""
            case ("member", membership, target):
                return "m.room.member", {"membership": membership}, users[target]
            case _:
                return "m.room.message", {"body": "hello"}, None

    async def _deliver(self, at: int, events: list[Event]) -> list[Verdict | None]:
        outcomes = await self.peers[at].take(self.room_id, *events)
        waiting = {outcome.event_id for outcome in outcomes if outcome.is_waiting}
        done = {event.event_id for event in events} - waiting
        self.waiting[at] = [event for event in self.waiting[at] if event.event_id not in done]
        for outcome in outcomes:
            assert outcome.verdict in (None, Verdict.ACCEPT, Verdict.SOFT_FAIL), outcome
        await self._check(self.peers[at])
        return [outcome.verdict for outcome in outcomes]

    async def _heal(self) -> None:
        await self._exchange()
        verdicts: list[Verdict | None] = []
        for at in (0, 1, 2, 0):
            sent = await self._act(at, ("message",))
            verdicts += [Verdict.DROP] if sent is None else await self._exchange()
        states = [await peer.state(self.room_id) for peer in self.peers]
        extremities = [await peer.extremities(self.room_id) for peer in self.peers]
        if all(verdict in (None, Verdict.ACCEPT) for verdict in verdicts):
            # all could speak and were heard: nothing hangs loose anywhere
            assert extremities[0] == extremities[1] == extremities[2]
        for other in (1, 2):
            if extremities[0] == extremities[other]:
                assert states[0] == states[other]

    async def _exchange(self) -> list[Verdict | None]:
        verdicts: list[Verdict | None] = []
        for at in range(3):
            while waiting := len(self.waiting[at]):
                verdicts += await self._deliver(at, self.waiting[at][::-1])
                assert len(self.waiting[at]) < waiting
        return verdicts

    async def _check(self, peer: Peer) -> None:
        """The current state is what the specification's resolution of whole states gives, and the
        tables say the same."""
        snapshot = await peer.engine.get_snapshot(self.room_id)
        nids = [nid for nid, _ in snapshot.head.extremities]
        tips = (await peer.events.get_events(nids)).values()
        views = [await peer.engine.view(tip.room_nid, tip.state_root).load_all() for tip in tips]
        events: dict[EventID, Event] = {}
        waiting = [stored.event for view in views for stored in view.values()]
        while waiting:
            event = waiting.pop()
            if event.event_id not in events:
                events[event.event_id] = event
                found = await peer.events.get_in_any_room(event.auth_events)
                waiting += [stored.event for stored in found.values()]
        sets: list[Mapping[StateKey, EventID]] = [
            {key: stored.event.event_id for key, stored in view.items()} for view in views
        ]
        conflicts = find_conflicts(self.version, sets)
        graph = AuthGraph(
            compute_auth_difference(sets, lambda name: events[name].auth_events),
            compute_conflicted_subgraph(conflicts.events, lambda name: events[name].auth_events),
        )
        create = views[0][CREATE].event
        state = await peer.state(self.room_id)
        assert state == resolve(self.version, sets, events, create=create, graph=graph)
        members = MembershipStore(peer.database)
        rows = await members.get_memberships(
            snapshot.room.room_nid, [other.user for other in self.peers]
        )
        loaded = await peer.engine.view(snapshot.room.room_nid, snapshot.head.state_root).load_all()
        for user_id, row in rows.items():
            stored = loaded.get(StateKey("m.room.member", user_id))
            expected = (
                ("leave", row.event_nid)
                if stored is None
                else (stored.event.membership, stored.nid)
            )
            assert (row.membership, row.event_nid) == expected
        joined = sum(1 for row in rows.values() if row.membership == "join")
        assert snapshot.head.joined_count == joined


def test_servers_converge_after_partitions() -> None:
    run_machine(Partitions, 50, 25)
