"""State events that could not be verified without keys are added once the keys are available; on
both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.protocol.events import StateKey, encode_pdu
from federation.protocol.ids import RoomID, ServerName, UserID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.receipt_checks import Verdict
from storage.engine.database import Database
from storage.partial_state.unverified_events import NeededIn, UnverifiedEvent, UnverifiedEventStore
from storage.rooms.memberships import MembershipStore
from storage.rooms.partial_rooms import PartialRoomStore
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.peers import Peer, servers, shared_room

V11 = ROOM_VERSIONS["11"]
DAY = 24 * 3600.0


@pytest.fixture
def residents(sqlite_template: Path, tmp_path: Path) -> Iterator[list[Peer]]:
    databases = [open_inline(copy_sqlite(sqlite_template, tmp_path)) for _ in range(2)]
    yield servers(databases)
    for database in databases:
        run_coroutine(database.close(), None)


async def enter(residents: list[Peer], database: Database, room_id: RoomID) -> Peer:
    """A third server comes into the room through the first, and does not know the keys of the
    second."""
    resident, away = residents[0], residents[1].server
    name = ServerName("newcomer.example")
    keys = {server: known for server, known in resident.keys.items() if server != away}
    newcomer = Peer(database, resident.now, name, keys)
    resident.keys[name] = newcomer.keys[name]
    snapshot = await resident.engine.get_snapshot(room_id)
    state = {key: stored.event for key, stored in (await snapshot.state.load_all()).items()}
    tips = [
        stored.event
        for stored in (
            await resident.events.get_events(n for n, _ in snapshot.head.extremities)
        ).values()
    ]
    user = newcomer.user
    join = await newcomer.build(
        V11, room_id, tips, state, user, "m.room.member", {"membership": "join"}, user
    )
    chain = await resident.auth_chain(join)
    await newcomer.adoptions.import_join(
        V11, room_id, [event.pdu for event in state.values()], chain, join.pdu
    )
    for each in residents:
        assert await each.verdict(room_id, join) is Verdict.ACCEPT
    newcomer.unproved.start()
    return newcomer


def learn(newcomer: Peer, other: Peer) -> None:
    newcomer.keys[other.server] = other.keys[other.server]


async def test_an_unverified_event_is_retried_and_added(
    residents: list[Peer], database: Database
) -> None:
    a, b = residents
    room_id, _ = await shared_room(residents)
    newcomer = await enter(residents, database, room_id)
    key = StateKey("m.room.member", b.user)
    assert key not in await newcomer.state(room_id)
    newcomer.clock.advance(60)
    assert key not in await newcomer.state(room_id)

    learn(newcomer, b)
    newcomer.clock.advance(60)

    assert await newcomer.state(room_id) == await a.state(room_id)
    snapshot = await newcomer.engine.get_snapshot(room_id)
    assert snapshot.head.joined_count == 3
    members = await MembershipStore(database).get_all(snapshot.room.room_nid)
    assert members[b.user][1] == "join"
    (received,) = await PartialRoomStore(
        database
    ).get_rooms()  # clients get the complete room again
    assert received.completed_position is not None
    assert not (await newcomer.engine.get_snapshot(room_id)).head.partial_join
    assert (await UnverifiedEventStore(database).get_rooms())[snapshot.room.room_nid] is None
    # and stays there with what follows
    said = await newcomer.send(room_id, newcomer.user, "salom")
    assert await a.verdict(room_id, said.event) is Verdict.ACCEPT
    answer = await a.send(room_id, a.user, "vaalaykum")
    assert await newcomer.verdict(room_id, answer.event) is Verdict.ACCEPT
    assert await newcomer.state(room_id) == await a.state(room_id)


async def test_an_event_that_cites_it_adds_it(residents: list[Peer], database: Database) -> None:
    a, b = residents
    room_id, joined = await shared_room(residents)
    newcomer = await enter(residents, database, room_id)
    later = await a.send(room_id, a.user, "after")
    assert await newcomer.verdict(room_id, later.event) is Verdict.ACCEPT
    # upon a state of the newcomer's that was written without its sender
    await b.take(room_id, later.event)
    said = await b.fork(room_id, later.event, "m.room.message", {"body": "I am here"})
    last = await newcomer.send(room_id, newcomer.user, "meanwhile")
    learn(newcomer, b)
    (waits,) = await newcomer.take(room_id, said)
    assert waits.missing_auth == [joined.event_id]

    await newcomer.receiver.receive_outliers(room_id, [joined.pdu])

    assert await newcomer.verdict(room_id, said) is Verdict.ACCEPT
    assert await newcomer.extremities(room_id) == {said.event_id, last.event.event_id}
    assert (await newcomer.state(room_id))[StateKey("m.room.member", b.user)] == joined.event_id


async def test_a_state_key_that_was_set_since_is_left(
    residents: list[Peer], database: Database
) -> None:
    a, b = residents
    room_id, joined = await shared_room(residents)
    newcomer = await enter(residents, database, room_id)
    key = StateKey("m.room.member", b.user)
    ban = await a.member(room_id, a.user, "ban", b.user)
    assert (await newcomer.take(room_id, ban.event))[0].missing_auth == [joined.event_id]
    learn(newcomer, b)
    await newcomer.receiver.receive_outliers(room_id, [joined.pdu])
    assert await newcomer.verdict(room_id, ban.event) is Verdict.ACCEPT

    newcomer.clock.advance(DAY)

    assert (await newcomer.state(room_id))[key] == ban.event.event_id
    assert await newcomer.state(room_id) == await a.state(room_id)


async def test_events_of_some_state_are_resolved_with_the_current_state(
    residents: list[Peer], database: Database
) -> None:
    a, b = residents
    room_id, _ = await shared_room(residents)
    mallory = UserID(f"@mallory:{b.server}")
    snapshot = await b.engine.get_snapshot(room_id)
    state = {key: stored.event for key, stored in (await snapshot.state.load_all()).items()}
    once = await b.build(
        V11, room_id, [], state, mallory, "m.room.member", {"membership": "join"}, mallory
    )
    newcomer = await enter(residents, database, room_id)
    rules = await a.send(room_id, a.user, {"join_rule": "invite"}, "m.room.join_rules", "")
    assert await newcomer.verdict(room_id, rules.event) is Verdict.ACCEPT
    nid = (await newcomer.engine.get_snapshot(room_id)).room.room_nid
    learn(newcomer, b)
    from_afar = UnverifiedEvent(once.event_id, once.depth, encode_pdu(once), NeededIn.SOME_STATE)

    await newcomer.unproved.store(nid, [from_afar])
    newcomer.clock.advance(DAY)

    assert StateKey("m.room.member", mallory) not in await newcomer.state(room_id)


async def test_an_invalid_event_is_deleted(residents: list[Peer], database: Database) -> None:
    room_id, joined = await shared_room(residents)
    newcomer = await enter(residents, database, room_id)
    nid = (await newcomer.engine.get_snapshot(room_id)).room.room_nid
    await newcomer.unproved.store(
        nid, [UnverifiedEvent("$nothing", 1, b'{"type":"m.room.topic"}', NeededIn.SOME_STATE)]
    )
    store = UnverifiedEventStore(database)
    assert len(await store.get_of_room(nid)) == 2

    newcomer.clock.advance(60)

    assert [row.event_id for row in await store.get_of_room(nid)] == [joined.event_id]
