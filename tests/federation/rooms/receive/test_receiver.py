"""Received events: each gets its verdict, and both servers have the same room in the end."""

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from federation.protocol.errors import NotFound, TooLarge
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from federation.rooms.receipt_checks import Verdict
from federation.rooms.receive import extremity_limit
from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from storage.events.events import EventFlag
from storage.events.timelines import TimelineStore
from storage.persist.room_writer import AppendResult, RoomWriter
from storage.rooms.memberships import MembershipStore
from storage.rooms.summaries import RoomSummaryStore
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.peers import Peer, copy, join, servers, shared_room

VERSIONS = list(ROOM_VERSIONS.values())
WRITES_OF_A_MESSAGE = 4
"""Statements of the one write that takes in a message."""
V11 = ROOM_VERSIONS["11"]
EachVersion = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.identifier)


@pytest.fixture
def other_databases(sqlite_template: Path, tmp_path: Path) -> Iterator[list[Database]]:
    databases = [open_inline(copy_sqlite(sqlite_template, tmp_path)) for _ in range(2)]
    yield databases
    for database in databases:
        run_coroutine(database.close(), None)


@pytest.fixture
def pair(sqlite_database: Database, other_databases: list[Database]) -> list[Peer]:
    return servers([sqlite_database, *other_databases])[:2]


@pytest.fixture
def both(database: Database, other_databases: list[Database]) -> list[Peer]:
    """The second of them upon SQLite and PostgreSQL."""
    return servers([other_databases[0], database])


@EachVersion
async def test_a_room_is_imported_and_used(pair: list[Peer], version: RoomVersion) -> None:
    a, b = pair
    room_id, joined = await shared_room(pair, version)
    assert await a.state(room_id) == await b.state(room_id)
    hello = await b.send(room_id, b.user, "salom")
    assert hello.event.prev_events == [joined.event_id]
    assert await a.verdict(room_id, hello.event) is Verdict.ACCEPT
    answer = await a.send(room_id, a.user, "vaalaykum")
    assert answer.event.prev_events == [hello.event.event_id]
    assert await b.verdict(room_id, answer.event) is Verdict.ACCEPT
    assert await a.bodies(room_id) == await b.bodies(room_id) == ["salom", "vaalaykum"]
    for peer in pair:
        assert (await peer.engine.get_snapshot(room_id)).head.joined_count == 2


@EachVersion
async def test_forks_resolve_to_the_same_state_in_any_order(
    pair: list[Peer], version: RoomVersion
) -> None:
    a, b = pair
    room_id, _last = await shared_room(pair, version)
    levels = {"users": {b.user: 100} if version.creators_privileged else {a.user: 100, b.user: 100}}
    power = await a.send(room_id, a.user, levels, "m.room.power_levels", "")
    await b.take(room_id, power.event)
    ours = [
        (await a.send(room_id, a.user, {"topic": "from a"}, "m.room.topic", "")).event,
        (await a.send(room_id, a.user, {"name": "from a"}, "m.room.name", "")).event,
        (
            await a.send(
                room_id, a.user, {**levels, "events_default": 1}, "m.room.power_levels", ""
            )
        ).event,
    ]
    theirs = [
        (await b.send(room_id, b.user, {"topic": "from b"}, "m.room.topic", "")).event,
        (await b.send(room_id, b.user, {"join_rule": "invite"}, "m.room.join_rules", "")).event,
    ]
    await a.take(room_id, *reversed(theirs))
    for event in ours:
        await b.take(room_id, event)
    assert await a.state(room_id) == await b.state(room_id)
    assert (
        await a.extremities(room_id)
        == await b.extremities(room_id)
        == {ours[-1].event_id, theirs[-1].event_id}
    )
    merge = await a.send(room_id, a.user, "together")
    assert set(merge.event.prev_events) == {ours[-1].event_id, theirs[-1].event_id}
    assert await b.verdict(room_id, merge.event) is Verdict.ACCEPT
    assert await b.extremities(room_id) == {merge.event.event_id}
    assert await a.state(room_id) == await b.state(room_id)
    for peer in pair:
        stored = await peer.find(room_id, merge.event)
        assert stored is not None
        assert stored.state_root == (await peer.engine.get_snapshot(room_id)).head.state_root


async def test_a_batch_is_received_in_any_order(pair: list[Peer]) -> None:
    a, b = pair
    room_id, _ = await shared_room(pair)
    events = [(await a.send(room_id, a.user, str(number))).event for number in range(3)]
    for order in permutations(events):
        outcomes = await b.take(room_id, *order)
        assert [outcome.event_id for outcome in outcomes] == [event.event_id for event in order]
    assert await b.bodies(room_id) == ["0", "1", "2"]


async def test_events_of_a_banned_user_are_soft_failed(both: list[Peer]) -> None:
    a, b = both[1], both[0]
    room_id, joined = await shared_room([a, b])
    late = await b.fork(room_id, joined, "m.room.message", {"body": "late"})
    naming = await b.fork(
        room_id, joined, "m.room.member", {"membership": "join", "displayname": "X"}, b.user
    )
    await a.member(room_id, a.user, "ban", b.user)
    before = await a.state(room_id)
    shown = await a.shown(room_id)
    for event in (late, naming):
        assert await a.verdict(room_id, event) is Verdict.SOFT_FAIL
        stored = await a.find(room_id, event)
        assert stored is not None
        assert stored.flags & EventFlag.SOFT_FAILED
        assert await a.visibility.filter(a.user, None, [stored]) == []
    assert await a.shown(room_id) == shown
    assert await a.state(room_id) == before
    assert len(await a.extremities(room_id)) == 1
    after = await a.send(room_id, a.user, "quiet")
    assert not {late.event_id, naming.event_id} & set(after.event.prev_events)


async def test_events_may_follow_a_soft_failed_event(pair: list[Peer]) -> None:
    a, b = pair
    room_id, _joined = await shared_room(pair)
    levels = {"users": {a.user: 100}, "state_default": 0}
    opened = (await a.send(room_id, a.user, levels, "m.room.power_levels", "")).event
    await b.take(room_id, opened)
    topic = (await b.send(room_id, b.user, {"topic": "b's"}, "m.room.topic", "")).event
    closed = (
        await a.send(room_id, a.user, {"users": {a.user: 100}}, "m.room.power_levels", "")
    ).event
    assert await a.verdict(room_id, topic) is Verdict.SOFT_FAIL
    assert await b.verdict(room_id, closed) is Verdict.ACCEPT
    merge = (await b.send(room_id, b.user, "both")).event
    assert set(merge.prev_events) == {topic.event_id, closed.event_id}
    assert await a.verdict(room_id, merge) is Verdict.ACCEPT
    assert await a.extremities(room_id) == {merge.event_id}
    assert await a.state(room_id) == await b.state(room_id)
    assert topic.event_id not in await a.shown(room_id)


async def test_a_rejected_event_changes_nothing(both: list[Peer]) -> None:
    a, b = both[1], both[0]
    room_id, joined = await shared_room([a, b])
    before, shown = await a.state(room_id), await a.shown(room_id)
    bad = await b.fork(room_id, joined, "m.room.name", {"name": "mine"}, "")
    assert await a.verdict(room_id, bad) is Verdict.REJECT
    stored = await a.find(room_id, bad)
    assert stored is not None
    assert stored.rejected
    assert await a.visibility.filter(a.user, None, [stored]) == []
    assert await a.state(room_id) == before
    assert await a.shown(room_id) == shown
    assert await a.extremities(room_id) == {joined.event_id}
    # events that follow it are accepted against the state before it
    state = {
        key: found.event
        for key, found in (await (await a.engine.get_snapshot(room_id)).state.load_all()).items()
    }
    after = await b.build(V11, room_id, [bad], state, b.user, "m.room.message", {"body": "on"})
    assert await a.verdict(room_id, after) is Verdict.ACCEPT
    assert await a.extremities(room_id) == {after.event_id}
    assert await a.state(room_id) == before
    citing = await b.build(
        V11, room_id, [after], state, b.user, "m.room.message", {"body": "x"}, auth=[bad]
    )
    assert await a.verdict(room_id, citing) is Verdict.REJECT


async def test_an_event_with_a_wrong_content_hash_is_redacted(pair: list[Peer]) -> None:
    a, b = pair
    room_id, joined = await shared_room(pair)
    said = await b.fork(room_id, joined, "m.room.message", {"body": "said"})
    forged = copy(V11, said.pdu, content={"body": "never said"})
    assert await a.verdict(room_id, forged) is Verdict.REDACT
    stored = await a.find(room_id, said)
    assert stored is not None
    assert stored.event.content == {}


@pytest.mark.parametrize("version", [ROOM_VERSIONS["1"], V11], ids=["1", "11"])
async def test_events_of_another_room_are_dropped(pair: list[Peer], version: RoomVersion) -> None:
    a, b = pair
    room_id, joined = await shared_room(pair, version)
    elsewhere, last = await shared_room(pair, version)
    said = await b.fork(room_id, joined, "m.room.message", {"body": "said"})
    unsigned = copy(version, said.pdu, signatures={})
    foreign = await b.fork(elsewhere, last, "m.room.message", {"body": "there"})
    stranger = await b.fork(room_id, joined, "m.room.message", {"body": "not mine"}, sender=a.user)
    mixed = await b.fork(room_id, joined, "m.room.message", {"body": "mixed"})
    mixed = await b.build(
        version, room_id, [last], {}, b.user, "m.room.message", {"body": "mixed"}, auth=[]
    )
    for event in (unsigned, foreign, stranger, mixed):
        assert await a.verdict(room_id, event) is Verdict.DROP
        assert await a.find(room_id, event) is None
    for pdu in (
        {},
        {"type": 1},
        {**said.pdu, "depth": "deep"},
        {**said.pdu, "prev_events": [[]] * 50},
    ):
        (outcome,) = await a.receiver.receive(room_id, [pdu])
        assert outcome.verdict is Verdict.DROP
        assert outcome.error is not None
    assert await a.verdict(room_id, said) is Verdict.ACCEPT


async def test_events_on_a_cycle_are_dropped(pair: list[Peer]) -> None:
    a, b = pair
    version = ROOM_VERSIONS["1"]
    room_id, joined = await shared_room(pair, version)
    one = await b.fork(room_id, joined, "m.room.message", {"body": "one"})
    two = await b.fork(room_id, joined, "m.room.message", {"body": "two"})
    one = copy(version, one.pdu, prev_events=[[two.event_id, {}]])
    two = copy(version, two.pdu, prev_events=[[one.event_id, {}]])
    itself = copy(version, one.pdu, event_id="$self:b.test", prev_events=[["$self:b.test", {}]])
    outcomes = await a.take(room_id, one, two, itself)
    assert [outcome.verdict for outcome in outcomes] == [Verdict.DROP] * 3


async def test_a_giant_depth_does_not_lift_the_room(pair: list[Peer]) -> None:
    a, b = pair
    room_id, joined = await shared_room(pair)
    deep = await b.fork(room_id, joined, "m.room.message", {"body": "deep"}, depth=2**53 - 1)
    assert await a.verdict(room_id, deep) is Verdict.ACCEPT
    assert (await a.send(room_id, a.user, "next")).event.depth == joined.depth + 2


async def test_a_second_create_event_is_refused(pair: list[Peer]) -> None:
    a, b = pair
    room_id, _ = await shared_room(pair)
    create = await a.build(
        V11, room_id, [], {}, a.user, "m.room.create", {"room_version": "11"}, ""
    )
    assert await b.verdict(room_id, create) is Verdict.REJECT
    assert len(await b.extremities(room_id)) == 1


async def test_missing_events_are_reported(pair: list[Peer]) -> None:
    a, b = pair
    room_id, _ = await shared_room(pair)
    first = (await a.send(room_id, a.user, "first")).event
    second = (await a.send(room_id, a.user, "second")).event
    (outcome,) = await b.take(room_id, second)
    assert outcome.is_waiting
    assert outcome.missing_prev == [first.event_id]
    assert await b.find(room_id, second) is None
    await b.take(room_id, second, first, second)
    assert await b.bodies(room_id) == ["first", "second"]
    (outcome,) = await b.take(room_id, first)
    assert outcome.was_known


async def test_too_many_events_and_unknown_rooms_are_refused(pair: list[Peer]) -> None:
    a, _b = pair
    room_id, joined = await shared_room(pair)
    with pytest.raises(TooLarge):
        await a.receiver.receive(room_id, [joined.pdu] * 501)
    with pytest.raises(NotFound):
        await a.receiver.receive(RoomID("!nowhere:b.test"), [joined.pdu])


async def test_the_server_acl_refuses_denied_servers(pair: list[Peer]) -> None:
    a, b = pair
    room_id, joined = await shared_room(pair)
    said = await b.fork(room_id, joined, "m.room.message", {"body": "said"})
    await a.send(room_id, a.user, {"allow": ["*"], "deny": ["b.test"]}, "m.room.server_acl", "")
    assert await a.verdict(room_id, said, origin=b.server) is Verdict.DROP
    assert await a.verdict(room_id, said, origin=a.server) is Verdict.ACCEPT


async def test_the_policy_server_is_asked(pair: list[Peer]) -> None:
    a, b = pair
    room_id, joined = await shared_room(pair)
    spam = await b.fork(room_id, joined, "m.room.message", {"body": "spam"})
    await a.send(room_id, a.user, {}, "m.room.policy", "")
    assert await a.verdict(room_id, spam) is Verdict.SOFT_FAIL


async def test_the_policy_server_is_asked_about_events_that_fill_a_gap(pair: list[Peer]) -> None:
    a, b = pair
    room_id, _ = await shared_room(pair)
    await b.take(room_id, (await a.send(room_id, a.user, {}, "m.room.policy", "")).event)
    spam, last = [(await a.send(room_id, a.user, body)).event for body in ("spam", "last")]
    state = list((await a.state(room_id)).values())
    assert (await b.take(room_id, last, states={last.event_id: state}))[0].verdict is Verdict.ACCEPT
    assert await b.verdict(room_id, spam) is Verdict.SOFT_FAIL
    assert await b.bodies(room_id) == ["last"]


async def test_an_outlier_is_placed_when_it_is_received_again(both: list[Peer]) -> None:
    a, b = both
    room_id, _ = await shared_room(both)
    name = (await a.send(room_id, a.user, {"name": "Hovli"}, "m.room.name", "")).event
    (outcome,) = await b.receiver.receive_outliers(room_id, [name.pdu])
    assert outcome.verdict is Verdict.ACCEPT
    outlier = await b.find(room_id, name)
    assert outlier is not None
    assert outlier.is_outlier
    assert name.event_id not in await b.shown(room_id)
    assert await b.verdict(room_id, name) is Verdict.ACCEPT
    placed = await b.find(room_id, name)
    assert placed is not None
    assert (placed.nid, placed.in_timeline) == (outlier.nid, True)
    assert (await b.shown(room_id))[-1] == name.event_id
    assert await a.state(room_id) == await b.state(room_id)
    summaries = await RoomSummaryStore(b.database).get_summaries([placed.room_nid])
    assert summaries[placed.room_nid].name == "Hovli"


async def test_past_events_are_not_in_sync(both: list[Peer]) -> None:
    a, b = both
    room_id = await a.create(a.user, version=V11)
    old = [(await a.send(room_id, a.user, f"old {number}")).event for number in range(3)]
    joined = await join(a, b, V11, room_id)
    room_nid = (await b.engine.get_snapshot(room_id)).room.room_nid
    assert await TimelineStore(b.database).get_backward_extremities(room_nid) == {
        old[-1].event_id: old[-1].depth
    }
    first = await a.find(room_id, old[0])
    assert first is not None
    state = await a.engine.view(first.room_nid, first.state_root).load_all()
    states = {old[0].event_id: [event.event.event_id for event in state.values()]}
    outcomes = await b.take(room_id, *old, is_past=True, states=states)
    assert [outcome.verdict for outcome in outcomes] == [Verdict.ACCEPT] * 3
    assert await b.shown(room_id) == [joined.event_id]
    assert await b.extremities(room_id) == {joined.event_id}
    assert await a.state(room_id) == await b.state(room_id)
    for event in old:
        stored = await b.find(room_id, event)
        assert stored is not None
        assert (stored.in_timeline, stored.position) == (True, None)
    assert await TimelineStore(b.database).get_backward_extremities(room_nid) == {
        old[0].prev_events[0]: old[0].depth - 1
    }


async def test_members_and_summary_follow_a_resolution(both: list[Peer]) -> None:
    a, b = both
    room_id, _joined = await shared_room(both)
    await b.take(room_id, (await a.send(room_id, a.user, {"name": "one"}, "m.room.name", "")).event)
    left = (await b.member(room_id, b.user, "leave")).event
    ban = (await a.member(room_id, a.user, "ban", b.user)).event
    await b.take(room_id, ban)
    await a.take(room_id, left)
    assert await a.state(room_id) == await b.state(room_id)
    for peer in both:
        snapshot = await peer.engine.get_snapshot(room_id)
        member = await MembershipStore(peer.database).get_membership(snapshot.room.room_nid, b.user)
        assert member is not None
        now = await snapshot.state.get(StateKey("m.room.member", b.user))
        assert now is not None
        assert (member.membership, member.event_nid) == (now.event.membership, now.nid)
        assert snapshot.head.joined_count == 1


class InterruptedWriter(RoomWriter):
    """Stops before the last write of an adoption."""

    def append(self, *_args: object, **_more: object) -> AppendResult:
        raise OSError("the lights went out")


async def test_an_import_continues_after_a_restart(both: list[Peer]) -> None:
    a, b = both
    room_id = await a.create(a.user, version=V11)
    for number in range(5):
        await a.send(room_id, a.user, {"v": number}, "x.state", str(number))
    snapshot = await a.engine.get_snapshot(room_id)
    state = [event.event for event in (await snapshot.state.load_all()).values()]
    tips = [
        event.event
        for event in (
            await a.events.get_events(nid for nid, _ in snapshot.head.extremities)
        ).values()
    ]
    keyed = {event.key: event for event in state}
    joining = await b.build(
        V11, room_id, tips, keyed, b.user, "m.room.member", {"membership": "join"}, b.user
    )
    chain = await a.auth_chain(joining)
    pdus = [event.pdu for event in state]
    with pytest.raises(OSError, match="lights"):
        await Peer(b.database, b.now, b.server, b.keys, InterruptedWriter).adoptions.import_join(
            V11, room_id, pdus, chain, joining.pdu
        )
    assert await b.extremities(room_id) == set()
    with pytest.raises(NotFound):
        await b.take(room_id, joining)
    restarted = Peer(b.database, b.now, b.server, b.keys)
    await restarted.adoptions.import_join(V11, room_id, pdus, chain, joining.pdu)
    await a.take(room_id, joining)
    assert await restarted.state(room_id) == await a.state(room_id)
    assert await restarted.shown(room_id) == [joining.event_id]
    assert (await restarted.engine.get_snapshot(room_id)).head.joined_count == 2


async def test_a_join_that_the_state_does_not_allow_is_refused(pair: list[Peer]) -> None:
    a, b = pair
    room_id = await a.create(a.user, version=V11, join_rule="invite")
    from_outside = b.user
    snapshot = await a.engine.get_snapshot(room_id)
    state = {key: event.event for key, event in (await snapshot.state.load_all()).items()}
    event = await b.build(
        V11, room_id, [], state, from_outside, "m.room.member", {"membership": "join"}, from_outside
    )
    with pytest.raises(Exception, match="join rule"):
        await b.adoptions.import_join(
            V11,
            room_id,
            [other.pdu for other in state.values()],
            await a.auth_chain(event),
            event.pdu,
        )


async def test_an_event_costs_the_same_in_small_and_large_rooms(
    database_config: SQLiteConfig | PostgresConfig, other_databases: list[Database]
) -> None:
    """The same for a small room and for a large one."""
    counter = QueryCounter()
    database = open_inline(database_config, counter)
    a, b = servers([other_databases[0], database])
    room_id, _ = await shared_room([a, b])
    for members in (0, 60):
        for number in range(members):
            event = await a.send(room_id, a.user, {"v": 1}, "x.state", str(number))
            await b.take(room_id, event.event)
        await b.take(room_id, (await a.send(room_id, a.user, "before")).event)
        message = await a.send(room_id, a.user, "counted")
        counter.clear()
        assert await b.verdict(room_id, message.event) is Verdict.ACCEPT
        assert counter.queries == {
            "get_event_nids": 1,
            "get_earlier_references": 2,
            "append_event": WRITES_OF_A_MESSAGE,
        }
    await database.close()


async def test_many_extremities_are_merged_and_none_is_lost(
    pair: list[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extremity_limit, "MAX_PER_SERVER", 100)  # else it would take three servers
    a, b = pair
    room_id, joined = await shared_room(pair)
    tips = [
        await b.fork(room_id, joined, "m.room.message", {"body": str(number)})
        for number in range(25)
    ]
    await a.take(room_id, *tips)
    assert len(await a.extremities(room_id)) == 25
    first = (await a.send(room_id, a.user, "first")).event
    second = (await a.send(room_id, a.user, "second")).event
    assert len(first.prev_events) == 20
    assert {*first.prev_events, *second.prev_events} == {tip.event_id for tip in tips} | {
        first.event_id
    }
    assert await a.extremities(room_id) == {second.event_id}


async def test_two_nodes_receive_the_same_event_once(pair: list[Peer]) -> None:
    a, b = pair
    room_id, _ = await shared_room(pair)
    node = Peer(b.database, b.now, b.server, b.keys)
    await node.state(room_id)
    name = (await a.send(room_id, a.user, {"name": "Hovli"}, "m.room.name", "")).event
    await b.receiver.receive_outliers(room_id, [name.pdu])
    assert (await node.find(room_id, name)) is not None  # as an outlier, which it will remember
    await b.take(room_id, name)
    (outcome,) = await node.take(room_id, name)
    assert outcome.was_known
    said = (await a.send(room_id, a.user, "said")).event
    await node.take(room_id, said)
    (outcome,) = await b.take(room_id, said)
    assert outcome.was_known
    last = (await a.send(room_id, a.user, "last")).event
    assert await b.verdict(room_id, last) is Verdict.ACCEPT
    assert await b.extremities(room_id) == {last.event_id}
    assert (await b.shown(room_id))[-3:] == [name.event_id, said.event_id, last.event_id]


async def test_a_local_send_and_events_from_outside_take_turns(pair: list[Peer]) -> None:
    a, b = pair
    room_id, joined = await shared_room(pair)
    theirs = await b.fork(room_id, joined, "m.room.message", {"body": "theirs"})
    ours = await a.send(room_id, a.user, "ours")
    await a.take(room_id, theirs)
    merge = await a.send(room_id, a.user, "both")
    assert set(merge.event.prev_events) == {ours.event.event_id, theirs.event_id}
    assert merge.event.depth == joined.depth + 2


async def test_a_node_that_lags_behind_does_not_refuse(pair: list[Peer]) -> None:
    a, b = pair
    room_id, joined = await shared_room(pair)
    node = Peer(a.database, a.now, a.server, a.keys)
    levels = {"users": {a.user: 100}, "events_default": 50}
    silence = (await a.send(room_id, a.user, levels, "m.room.power_levels", "")).event
    await b.take(room_id, silence)
    await node.state(room_id)  # this node remembers the room as it is now
    late = await b.fork(room_id, joined, "m.room.message", {"body": "late"})
    await a.send(room_id, a.user, {"users": {a.user: 100}}, "m.room.power_levels", "")
    assert await node.verdict(room_id, late) is Verdict.ACCEPT
