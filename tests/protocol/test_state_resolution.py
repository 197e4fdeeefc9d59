"""State resolution: the scenarios of the specification, the laws on random rooms, and the cases that the text decides."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.protocol.events import StateKey
from federation.protocol.ids import EventID
from federation.protocol.room_versions import ROOM_VERSIONS, V1, V2, V11, V12, RoomVersion, StateResolution
from federation.protocol.state_resolution import (
    AuthGraph,
    MissingEvent,
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
from tests.protocol.room_strategies import USERS, Dispute, disputes
from tests.protocol.state_resolution_vectors import read_vectors

State = dict[StateKey, EventID]

ALICE, BOB, CAROL, DAVE = USERS
POWER_LEVELS: Final = StateKey("m.room.power_levels", "")
VERSIONS: Final = pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.identifier)
ALGORITHMS: Final = pytest.mark.parametrize("version", (V1, V2, V11, V12), ids=lambda version: version.identifier)

law = settings(max_examples=60, deadline=None)


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
    ("dispute", "resolved"), [pytest.param(dispute, state, id=name) for name, dispute, state in read_vectors()]
)
def test_scenario_is_resolved_as_written(dispute: Dispute, resolved: State) -> None:
    assert resolution(dispute) == resolved
    assert dispute.oracle().resolve() == resolved


# ---- laws


@VERSIONS
@law
@given(data=st.data())
def test_agrees_with_the_text(version: RoomVersion, data: st.DataObject) -> None:
    dispute = data.draw(disputes(version))
    assert resolution(dispute) == dispute.oracle().resolve()


@ALGORITHMS
@law
@given(data=st.data())
def test_walks_of_the_auth_graph_agree_with_the_text(version: RoomVersion, data: st.DataObject) -> None:
    if version.state_resolution is StateResolution.V1:
        version = V2  # Algorithm 1 has no such thing; its graphs are those of version 2.
    dispute = data.draw(disputes(version))
    graph, oracle = graph_of(dispute), dispute.oracle()
    assert graph.auth_difference == oracle.auth_difference()
    assert graph.conflicted_subgraph == oracle.conflicted_state_subgraph()


@ALGORITHMS
@law
@given(data=st.data())
def test_order_of_the_input_does_not_matter(version: RoomVersion, data: st.DataObject) -> None:
    dispute = data.draw(disputes(version))
    room, graph = dispute.room, graph_of(dispute)

    def shuffled(mapping: Mapping[StateKey, EventID]) -> State:
        return dict(data.draw(st.permutations(list(mapping.items()))))

    again = resolve(
        version,
        data.draw(st.permutations([shuffled(state) for state in dispute.state_sets])),
        dict(reversed(room.events.items())),
        create=room.create,
        graph=AuthGraph(sorted(graph.auth_difference), sorted(graph.conflicted_subgraph, reverse=True)),
        rejected=sorted(dispute.rejected),
    )
    assert again == resolution(dispute)


@ALGORITHMS
@law
@given(data=st.data())
def test_equal_states_give_that_state(version: RoomVersion, data: st.DataObject) -> None:
    dispute = data.draw(disputes(version))
    state = dispute.state_sets[0]
    assert resolution(replace(dispute, state_sets=[state, dict(reversed(state.items())), state])) == state
    assert resolution(replace(dispute, state_sets=[state])) == state


@ALGORITHMS
@law
@given(data=st.data())
def test_result_is_made_of_the_input_and_keeps_what_is_undisputed(version: RoomVersion, data: st.DataObject) -> None:
    dispute = data.draw(disputes(version))
    result = resolution(dispute)
    conflicts = find_conflicts(version, dispute.state_sets)
    assert conflicts.unconflicted.items() <= result.items()
    given_events = events_in_dispute(version, conflicts, graph_of(dispute)) | set(conflicts.unconflicted.values())
    assert set(result.values()) <= given_events
    assert all(dispute.room.events[event_id].key == key for key, event_id in result.items())


@ALGORITHMS
@law
@given(data=st.data())
def test_conflicted_event_wins_only_if_it_was_allowed(version: RoomVersion, data: st.DataObject) -> None:
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
        depths = {candidate: dispute.room.events[candidate].depth for candidate in conflicts.conflicted[key]}
        assert depths[event_id] == min(depths.values())


@VERSIONS
@law
@given(data=st.data())
def test_loading_no_more_than_is_asked_for_gives_the_same(version: RoomVersion, data: st.DataObject) -> None:
    dispute = data.draw(disputes(version))
    room, whole, everything = dispute.room, dispute.state_sets, dispute.room.events
    graph = graph_of(dispute)
    shared = dict(set.intersection(*(set(state.items()) for state in whole)))

    conflicts = find_conflicts(version, [{k: v for k, v in state.items() if k not in shared} for state in whole])
    events = {event_id: everything[event_id] for event_id in events_in_dispute(version, conflicts, graph)}
    needs = compute_needs(version, conflicts, graph, events)
    undisputed = {key: shared.get(key) for key in needs.state_keys}
    found = {**undisputed, **conflicts.unconflicted}
    lineage_start = {*events, *([found[POWER_LEVELS]] if found.get(POWER_LEVELS) else [])}
    power_levels = {event_id: event for event_id, event in everything.items() if sets_power_levels(event)}
    lineage = compute_power_lineage(lineage_start, {**{i: everything[i] for i in lineage_start}, **power_levels})
    wanted = {*needs.auth_events, *(event_id for key in needs.state_events if (event_id := found.get(key)))}
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
def test_missing_event_is_named_or_was_not_needed(version: RoomVersion, data: st.DataObject) -> None:
    dispute = data.draw(disputes(version))
    room = dispute.room
    lost = data.draw(st.sampled_from(sorted(room.events)))
    rest = {event_id: event for event_id, event in room.events.items() if event_id != lost}
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
        assert missing.event_id == lost
    else:
        assert result == resolution(dispute)
