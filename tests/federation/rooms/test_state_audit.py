"""The audit of room states reports wrong states, and changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry
from twisted.logger import capturedLogs, formatEvent

from federation.rooms.resolve import StateResolver
from federation.rooms.state_audit import StateAudit
from homeserver.observe.federation import AuditMetrics
from storage.engine.transaction import WriteTransaction
from storage.maintenance.state_audit import StateAuditStore
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.federated_rooms import NORTH, SOUTH, Shared, create_room, shared
from tests.helpers.network import Network
from tests.helpers.room_actions import say, set_state
from tests.helpers.server import TestServer

CHECKED, DIFFERING = "mahalla_room_states_checked_total", "mahalla_room_states_differing_total"


@contextmanager
def reports() -> Iterator[list[str]]:
    """The differences that are logged meanwhile."""
    found: list[str] = []
    with capturedLogs() as logged:
        yield found
    found += [
        formatEvent(entry)
        for entry in logged
        if "differs from its history" in str(entry.get("log_format"))
    ]


def audit_of(server: TestServer, registry: CollectorRegistry) -> StateAudit:
    """An audit of a server whose metrics the test can read."""
    app = server.app
    resolver = StateResolver(
        database=app.database,
        trees=app.rooms.trees,
        chains=app.rooms.chains,
        events=app.rooms.events,
        capacity=0,
    )
    return StateAudit(
        store=StateAuditStore(app.database),
        rooms=app.rooms.store,
        engine=app.room_engine.engine,
        events=app.rooms.events,
        resolver=resolver,
        observer=AuditMetrics(registry),
    )


async def whole_round(audit: StateAudit, limit: int = 50) -> None:
    """Check the events that came before, and then those since."""
    for _ in range(2):
        while await audit.do_step(limit):
            pass


async def forked(network: Network) -> Shared:
    """A room with messages, changes of state, and branches that met again."""
    room = await shared(network)
    network.start_sending()
    for number in range(5):
        network.cut(NORTH, SOUTH)
        set_state(room.alice, room.room_id, "m.room.topic", {"topic": f"{number}"})
        say(room.bob, room.room_id, f"{number}")
        network.mend(NORTH, SOUTH)
        network.clock.advance(3600)
        network.settle()
        say(room.alice, room.room_id, "together again")
        network.settle()
    return room


async def test_a_correct_state_is_not_reported(network: Network) -> None:
    room = await forked(network)

    for side in (room.north, room.south):
        registry = CollectorRegistry()
        with reports() as differences:
            await whole_round(audit_of(side.server, registry), 3)
        assert not differences
        assert registry.get_sample_value(DIFFERING) == 0
        assert (registry.get_sample_value(CHECKED) or 0) > 15


async def test_a_wrong_current_state_is_reported(network: Network) -> None:
    room = await forked(network)
    stored = await room.north.room(room.room_id)
    first = set_state(room.alice, room.room_id, "m.room.topic", {"topic": "before"})
    old = (await room.north.room(room.room_id)).head.state_root
    set_state(room.alice, room.room_id, "m.room.topic", {"topic": "after"})

    def reset(txn: WriteTransaction) -> None:
        txn.execute(
            "UPDATE rooms SET state_root = ? WHERE room_nid = ?", (old, stored.room.room_nid)
        )

    await room.north.server.app.database.write("reset", reset)
    repeated, registry = network.rebuild(NORTH), CollectorRegistry()

    with reports() as differences:
        await whole_round(audit_of(repeated, registry))

    assert len(differences) == 1
    assert f"m.room.topic '': {first} instead of $" in differences[0]
    assert "that is current" in differences[0]
    assert str(room.room_id) in differences[0]
    assert registry.get_sample_value(DIFFERING) == 1


async def test_a_wrong_past_state_is_reported(network: Network) -> None:
    room = await forked(network)
    old = (await room.north.room(room.room_id)).head.state_root
    set_state(room.alice, room.room_id, "m.room.topic", {"topic": "after"})
    said = say(room.alice, room.room_id, "damaged")
    say(room.alice, room.room_id, "after it")

    def damage(txn: WriteTransaction) -> None:
        txn.execute("UPDATE events SET state_root = ? WHERE event_id = ?", (old, said))

    await room.north.server.app.database.write("damage", damage)

    with reports() as differences:
        await whole_round(network.rebuild(NORTH).app.federation_receiver.audit)

    assert len(differences) == 2
    assert f"after {said} differs from its history" in differences[0]


async def test_an_event_is_checked_once_and_local_rooms_never(
    tmp_path: Path, sqlite_template: Path
) -> None:
    counter = QueryCounter()
    network = Network(
        tmp_path, lambda: open_inline(copy_sqlite(sqlite_template, tmp_path), counter)
    )
    room = await forked(network)
    audit = room.north.server.app.federation_receiver.audit
    await whole_round(audit)
    own = create_room(room.alice)
    for number in range(30):
        say(room.alice, own, f"{number}")
    await whole_round(audit)
    counter.clear()

    await whole_round(audit)
    assert set(counter.reads) == {"get_state_audit_progress", "get_latest_event_nid"}
    assert not counter.writes
    for number in range(30):
        say(room.alice, room.room_id, f"{number}")
    counter.clear()
    await whole_round(audit)
    assert counter.reads["get_events_to_audit"] == 1
    assert counter.reads["get_placed_events"] == 1
    assert sum(counter.queries.values()) < 20
    for side in (room.north, room.south):
        await side.server.app.database.close()
