"""State resolution: the scenarios of the specification, the laws on random rooms, and the cases
that the text decides."""

import re
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha1
from itertools import permutations
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from federation.protocol.events import StateKey
from federation.protocol.ids import EventID
from federation.protocol.room_versions import (
    ROOM_VERSIONS,
    V1,
    V2,
    V11,
    V12,
    RoomVersion,
    StateResolution,
)
from federation.protocol.state_resolution import (
    AuthGraph,
    MissingEvent,
    MissingLineage,
    MissingStateKey,
    compute_auth_difference,
    compute_conflicted_subgraph,
    compute_needs,
    compute_power_lineage,
    events_in_dispute,
    find_conflicts,
    resolve,
    resolve_conflicts,
)
from federation.protocol.state_resolution.pool import sets_power_levels
from tests.federation.protocol.room_strategies import USERS, Dispute, GrownRoom, build, disputes
from tests.federation.protocol.state_resolution_vectors import read_vectors

State = dict[StateKey, EventID]

ALICE, BOB, _, DAVE = USERS
POWER_LEVELS: Final = StateKey("m.room.power_levels", "")
VERSIONS: Final = pytest.mark.parametrize(
    "version", ROOM_VERSIONS.values(), ids=lambda version: version.identifier
)
ALGORITHMS: Final = pytest.mark.parametrize(
    "version", [V1, V2, V11, V12], ids=lambda version: version.identifier
)

law = settings(max_examples=48, deadline=None)


def graph_of(dispute: Dispute) -> AuthGraph:
    """The answers of the naive walks."""

    def auth_events_of(event_id: EventID) -> Iterable[EventID]:
        return dispute.room.events[event_id].auth_events

    conflicts = find_conflicts(dispute.room.version, dispute.state_sets)
    return AuthGraph(
        compute_auth_difference(dispute.state_sets, auth_events_of),
        compute_conflicted_subgraph(conflicts.events, auth_events_of),
    )


def resolution(dispute: Dispute) -> State:
    room = dispute.room
    return resolve(
        room.version,
        dispute.state_sets,
        room.events,
        create=room.create,
        graph=graph_of(dispute),
        rejected=dispute.rejected,
    )


# ---- scenarios


@pytest.mark.parametrize(
    ("dispute", "resolved"),
    [pytest.param(dispute, state, id=name) for name, dispute, state in read_vectors()],
)
def test_each_scenario_is_resolved_as_specified(dispute: Dispute, resolved: State) -> None:
    assert resolution(dispute) == resolved
    assert dispute.oracle().resolve() == resolved


# ---- laws


@VERSIONS
@law
@given(data=st.data())
def test_resolution_agrees_with_the_literal_algorithm(
    version: RoomVersion, data: st.DataObject
) -> None:
    dispute = data.draw(disputes(version))
    assert resolution(dispute) == dispute.oracle().resolve()


@ALGORITHMS
@law
@given(data=st.data())
def test_walks_of_the_auth_graph_agree_with_the_literal_algorithm(
    version: RoomVersion, data: st.DataObject
) -> None:
    if version.state_resolution is StateResolution.V1:
        version = V2  # Algorithm 1 has no such thing; its graphs are those of version 2.
    dispute = data.draw(disputes(version))
    graph, oracle = graph_of(dispute), dispute.oracle()
    assert graph.auth_difference == oracle.auth_difference()
    assert graph.conflicted_subgraph == oracle.conflicted_state_subgraph()


@ALGORITHMS
@law
@given(data=st.data())
def test_the_order_of_the_input_does_not_matter(version: RoomVersion, data: st.DataObject) -> None:
    dispute = data.draw(disputes(version))
    room, graph = dispute.room, graph_of(dispute)

    def shuffled(mapping: Mapping[StateKey, EventID]) -> State:
        return dict(data.draw(st.permutations(list(mapping.items()))))

    repeated = resolve(
        version,
        data.draw(st.permutations([shuffled(state) for state in dispute.state_sets])),
        dict(reversed(list(room.events.items()))),
        create=room.create,
        graph=AuthGraph(
            sorted(graph.auth_difference), sorted(graph.conflicted_subgraph, reverse=True)
        ),
        rejected=sorted(dispute.rejected),
    )
    assert repeated == resolution(dispute)


@ALGORITHMS
@law
@given(data=st.data())
def test_equal_states_resolve_to_themselves(version: RoomVersion, data: st.DataObject) -> None:
    dispute = data.draw(disputes(version))
    state = dispute.state_sets[0]
    assert (
        resolution(replace(dispute, state_sets=[state, dict(reversed(list(state.items()))), state]))
        == state
    )
    assert resolution(replace(dispute, state_sets=[state])) == state


@ALGORITHMS
@law
@given(data=st.data())
def test_the_result_consists_of_input_events_and_keeps_unconflicted_state(
    version: RoomVersion, data: st.DataObject
) -> None:
    dispute = data.draw(disputes(version))
    result = resolution(dispute)
    conflicts = find_conflicts(version, dispute.state_sets)
    assert conflicts.unconflicted.items() <= result.items()
    given_events = events_in_dispute(version, conflicts, graph_of(dispute)) | set(
        conflicts.unconflicted.values()
    )
    assert set(result.values()) <= given_events
    assert all(dispute.room.events[event_id].key == key for key, event_id in result.items())


@ALGORITHMS
@law
@given(data=st.data())
def test_a_conflicted_event_wins_only_if_it_was_allowed(
    version: RoomVersion, data: st.DataObject
) -> None:
    dispute = data.draw(disputes(version))
    oracle = dispute.oracle()
    oracle.resolve()
    conflicts = find_conflicts(version, dispute.state_sets)
    for key, event_id in resolution(dispute).items():
        if key in conflicts.unconflicted or event_id in oracle.allowed:
            continue
        # Algorithm 1 takes the oldest candidate of a type that authorises others without a check.
        assert version.state_resolution is StateResolution.V1
        assert key.type in ("m.room.power_levels", "m.room.join_rules", "m.room.member")
        depths = {
            candidate: dispute.room.events[candidate].depth
            for candidate in conflicts.conflicted[key]
        }
        assert depths[event_id] == min(depths.values())


@VERSIONS
@law
@given(data=st.data())
def test_loading_only_the_requested_events_gives_the_same_result(
    version: RoomVersion, data: st.DataObject
) -> None:
    dispute = data.draw(disputes(version))
    room, whole, everything = dispute.room, dispute.state_sets, dispute.room.events
    graph = graph_of(dispute)
    shared = dict(set.intersection(*(set(state.items()) for state in whole)))

    conflicts = find_conflicts(
        version, [{k: v for k, v in state.items() if k not in shared} for state in whole]
    )
    events = {
        event_id: everything[event_id] for event_id in events_in_dispute(version, conflicts, graph)
    }
    needs = compute_needs(version, conflicts, graph, events)
    undisputed = {key: shared.get(key) for key in needs.state_keys}
    found = {**shared, **conflicts.unconflicted}
    levels = [found[POWER_LEVELS]] if POWER_LEVELS in found else []
    all_levels = {
        event_id: event for event_id, event in everything.items() if sets_power_levels(event)
    }
    lineage = compute_power_lineage([*events, *levels], {**events, **all_levels})
    wanted = {*needs.auth_events, *(found[key] for key in needs.state_events if key in found)}
    events |= {event_id: everything[event_id] for event_id in wanted}

    changes = resolve_conflicts(
        version,
        conflicts,
        undisputed,
        events,
        create=room.create,
        graph=replace(graph, power_lineage=lineage),
        rejected=dispute.rejected,
    )
    assert {**shared, **changes} == resolution(dispute)


@ALGORITHMS
@law
@given(data=st.data())
def test_a_missing_event_is_reported_if_it_is_needed(
    version: RoomVersion, data: st.DataObject
) -> None:
    dispute = data.draw(disputes(version))
    room = dispute.room
    lost = data.draw(st.sampled_from(sorted(room.events)))
    rest = {event_id: event for event_id, event in room.events.items() if event_id != lost}
    named = None
    result = None
    try:
        result = resolve(
            version,
            dispute.state_sets,
            rest,
            create=room.create,
            graph=graph_of(dispute),
            rejected=dispute.rejected,
        )
    except MissingEvent as missing:
        named = missing.event_id
    assert named == lost or result == resolution(dispute)


# ---- what the text decides


class Scene:
    """A public room of alice, who made it, and bob; both are admins. Events are written one by
    one."""

    def __init__(self, version: RoomVersion) -> None:
        self.create = build(
            version,
            None,
            "m.room.create",
            ALICE,
            "",
            {"creator": ALICE},
            event_id=f"$create:{_domain(ALICE)}",
        )
        self.room = GrownRoom(version, self.create, {self.create.event_id: self.create})
        self.alice = self.add("m.room.member", ALICE, ALICE, {"membership": "join"})
        self.levels = self.add(*POWER_LEVELS, ALICE, {"users": {ALICE: 100, BOB: 100}}, self.alice)
        self.rules = self.add(
            "m.room.join_rules", "", ALICE, {"join_rule": "public"}, self.alice, self.levels
        )
        self.bob = self.add(
            "m.room.member", BOB, BOB, {"membership": "join"}, self.levels, self.rules
        )

    def add(
        self,
        type: str,
        state_key: str | None,
        sender: str,
        content: Mapping[str, object],
        *auth_events: EventID,
        time: int = 0,
        depth: int = 1,
        event_id: str | None = None,
    ) -> EventID:
        event = build(
            self.room.version,
            self.create,
            type,
            sender,
            state_key,
            content,
            event_id=event_id or f"${len(self.room.events)}:{_domain(sender)}",
            prev_events=[self.create.event_id],
            auth_events=[self.create.event_id, *auth_events],
            time=time,
            depth=depth,
        )
        self.room.events[event.event_id] = event
        return event.event_id

    def topic(
        self, text: str, *, depth: int = 1, time: int = 0, event_id: str | None = None
    ) -> EventID:
        """By bob."""
        auth_events = (self.levels, self.bob)
        return self.add(
            "m.room.topic",
            "",
            BOB,
            {"topic": text},
            *auth_events,
            depth=depth,
            time=time,
            event_id=event_id,
        )

    def state(self, *event_ids: EventID, without: Collection[EventID] = ()) -> State:
        """Return the initial state of the room with these events."""
        beginning = (self.create.event_id, self.alice, self.levels, self.rules, self.bob)
        kept = (event_id for event_id in beginning if event_id not in without)
        return {self.room.events[event_id].key: event_id for event_id in (*kept, *event_ids)}

    def resolve(self, *states: State, rejected: Collection[EventID] = ()) -> State:
        """Return the result on which production and the oracle agree."""
        dispute = Dispute(self.room, states, rejected)
        result = resolution(dispute)
        assert result == dispute.oracle().resolve()
        return result


def _domain(user: str) -> str:
    return user.partition(":")[2]


def test_an_entry_missing_in_one_state_is_no_conflict_in_version_1() -> None:
    scene = Scene(V1)
    by_a_stranger = scene.add("m.room.topic", "", DAVE, {"topic": "mine"}, scene.levels)
    assert scene.resolve(scene.state(), scene.state(by_a_stranger)) == scene.state(by_a_stranger)


@pytest.mark.parametrize("version", [V2, V11], ids=("2", "11"))
def test_an_entry_missing_in_one_state_is_a_conflict_from_version_2_on(
    version: RoomVersion,
) -> None:
    scene = Scene(version)
    by_a_stranger = scene.add("m.room.topic", "", DAVE, {"topic": "mine"}, scene.levels)
    assert scene.resolve(scene.state(), scene.state(by_a_stranger)) == scene.state()


def test_version_1_ends_a_sequence_at_the_first_refusal() -> None:
    scene = Scene(V1)
    first = scene.add(
        *POWER_LEVELS, ALICE, {"users": {ALICE: 100}}, scene.alice, scene.levels, depth=5
    )
    by_bob = scene.add(*POWER_LEVELS, BOB, {"users": {BOB: 100}}, scene.bob, scene.levels, depth=6)
    last = scene.add(
        *POWER_LEVELS, ALICE, {"users": {ALICE: 100}}, scene.alice, scene.levels, depth=7
    )
    states = [scene.state(levels) for levels in (last, by_bob, first)]
    assert scene.resolve(*states)[POWER_LEVELS] == first
    assert scene.resolve(states[0], states[2])[POWER_LEVELS] == last


def test_version_1_takes_the_oldest_power_levels_unchecked() -> None:
    scene = Scene(V1)
    by_a_stranger = scene.add(*POWER_LEVELS, DAVE, {"users": {DAVE: 100}}, scene.levels, depth=0)
    by_alice = scene.add(
        *POWER_LEVELS, ALICE, {"users": {ALICE: 100}}, scene.alice, scene.levels, depth=1
    )
    assert (
        scene.resolve(scene.state(by_a_stranger), scene.state(by_alice))[POWER_LEVELS]
        == by_a_stranger
    )


def test_version_1_judges_each_member_by_the_state_before_all_of_them() -> None:
    scene = Scene(V1)
    bob_leaves = scene.add(
        "m.room.member", BOB, BOB, {"membership": "leave"}, scene.bob, scene.levels, depth=2
    )
    dave_joins = scene.add(
        "m.room.member", DAVE, DAVE, {"membership": "join"}, scene.levels, scene.rules, depth=2
    )
    bob_bans = scene.add(
        "m.room.member", DAVE, BOB, {"membership": "ban"}, scene.bob, scene.levels, depth=3
    )
    result = scene.resolve(scene.state(dave_joins), scene.state(bob_leaves, bob_bans))
    # Bob's own membership is in conflict, so nobody is bob while memberships are settled.
    assert result == scene.state(bob_leaves, dave_joins)


def test_version_1_breaks_a_tie_of_depth_by_the_hash_of_the_id() -> None:
    scene = Scene(V1)
    topics = [scene.topic(name, event_id=f"${name}:b.test") for name in ("a", "b", "c")]
    lowest = min(topics, key=lambda event_id: sha1(event_id.encode()).hexdigest())
    assert scene.resolve(*(scene.state(topic) for topic in topics)) == scene.state(lowest)


def test_version_1_prefers_the_deepest_topic_that_is_allowed() -> None:
    scene = Scene(V1)
    shallow, deep = scene.topic("shallow", depth=8), scene.topic("deep", depth=9)
    by_a_stranger = scene.add("m.room.topic", "", DAVE, {"topic": "mine"}, scene.levels, depth=10)
    states = [scene.state(topic) for topic in (by_a_stranger, shallow, deep)]
    assert scene.resolve(*states) == scene.state(deep)


def test_version_1_leaves_a_key_unset_if_no_candidate_is_allowed() -> None:
    scene = Scene(V1)
    mine, yours = (
        scene.add("m.room.topic", "", DAVE, {"topic": text}, scene.levels)
        for text in ("mine", "yours")
    )
    assert scene.resolve(scene.state(mine), scene.state(yours)) == scene.state()


def test_an_auth_event_replaces_a_missing_entry_unless_it_was_rejected() -> None:
    scene = Scene(V11)
    early, late = scene.topic("early", time=1), scene.topic("late", time=2)
    # Both states lack bob's membership, and both have it in their auth chains: it is not replayed.
    states = scene.state(early, without=[scene.bob]), scene.state(late, without=[scene.bob])
    assert scene.resolve(*states) == scene.state(late, without=[scene.bob])
    assert scene.resolve(*states, rejected=[scene.bob]) == scene.state(without=[scene.bob])


def test_a_message_among_auth_events_sets_no_state() -> None:
    scene = Scene(V2)
    message = scene.add("m.room.message", None, BOB, {"body": "hello"}, scene.levels, scene.bob)
    topic = scene.add("m.room.topic", "", BOB, {"topic": "hello"}, scene.levels, scene.bob, message)
    assert scene.resolve(scene.state(), scene.state(topic)) == scene.state(topic)


@pytest.mark.parametrize("version", [V1, V2], ids=("1", "2"))
def test_a_cycle_of_auth_events_ends_and_authorises_nothing(version: RoomVersion) -> None:
    scene = Scene(version)
    one, two = EventID("$one:b.test"), EventID("$two:b.test")
    scene.add(*POWER_LEVELS, BOB, {"users": {BOB: 100}}, scene.bob, two, event_id=one, depth=2)
    scene.add(
        *POWER_LEVELS, BOB, {"users": {BOB: 100, DAVE: 100}}, scene.bob, one, event_id=two, depth=3
    )
    above = scene.add(*POWER_LEVELS, BOB, {"users": {BOB: 100}}, scene.bob, one, depth=4)
    topic = scene.add("m.room.topic", "", BOB, {"topic": "round"}, scene.bob, two, depth=5)
    states = [scene.state(one), scene.state(two), scene.state(above), scene.state(topic)]
    results = [resolution(Dispute(scene.room, order, ())) for order in permutations(states)]
    assert all(result == results[0] for result in results)
    if version.state_resolution is not StateResolution.V1:
        assert results[0] == scene.state(topic)


def test_a_long_history_of_power_levels_is_followed_to_its_end() -> None:
    scene = Scene(V11)
    history = [scene.levels]
    for number in range(1500):
        content = {"users": {ALICE: 100, BOB: 100}, "users_default": number % 2}
        history.append(scene.add(*POWER_LEVELS, ALICE, content, scene.alice, history[-1]))
    old, new = (
        scene.add("m.room.topic", "", BOB, {"topic": "bob's"}, scene.bob, levels, time=time)
        for levels, time in ((history[1], 9), (history[2], 0))
    )
    states = scene.state(history[-1], old), scene.state(history[-2], new)
    assert resolution(Dispute(scene.room, states, ())) == scene.state(history[-1], new)


def test_events_that_were_not_loaded_are_reported() -> None:
    scene = Scene(V11)
    topic = scene.topic("by bob")
    conflicts = find_conflicts(V11, [{}, {StateKey("m.room.topic", ""): topic}])
    with pytest.raises(MissingEvent, match=re.escape(topic)):
        compute_needs(V11, conflicts, AuthGraph(), {})
    needs = compute_needs(V11, conflicts, AuthGraph(), scene.room.events)
    undisputed = dict.fromkeys(needs.state_keys)

    def attempt(undisputed: Mapping[StateKey, EventID | None], graph: AuthGraph) -> None:
        resolve_conflicts(
            V11, conflicts, undisputed, scene.room.events, create=scene.create, graph=graph
        )

    attempt(undisputed, AuthGraph())
    with pytest.raises(MissingLineage, match=re.escape(topic)):
        attempt(undisputed, AuthGraph(power_lineage={}))
    for key in needs.state_keys - {StateKey("m.room.topic", "")}:
        with pytest.raises(MissingStateKey) as missing:
            attempt({other: None for other in undisputed if other != key}, AuthGraph())
        assert missing.value.key == key


def test_power_levels_are_requested_though_no_conflicted_event_needs_them() -> None:
    scene = Scene(V2)
    conflicts = find_conflicts(V2, [{}, {scene.create.key: scene.create.event_id}])
    needs = compute_needs(V2, conflicts, AuthGraph(), scene.room.events)
    assert needs.state_events == {POWER_LEVELS}
    changes = resolve_conflicts(
        V2,
        conflicts,
        {**dict.fromkeys(needs.state_keys), POWER_LEVELS: scene.levels},
        scene.room.events,
        create=scene.create,
        graph=AuthGraph(
            power_lineage=compute_power_lineage(
                [scene.create.event_id, scene.levels], scene.room.events
            )
        ),
    )
    assert changes == {scene.create.key: scene.create.event_id}
