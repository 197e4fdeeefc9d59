"""Jobs that purge expired messages, the policy that clients read, restarts, and other nodes.
Proposal: MSC1763"""

from pathlib import Path

import pytest

from federation.protocol.ids import EventID
from storage.engine.database import Database, SQLiteConfig
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.retention import DAY, RULES, SECRET, damage, find_tables, keep_for, purge, settle
from tests.helpers.room_actions import create, is_shown, messages, ok, refused, room_path, say
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import sync


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, RULES)


def test_each_room_is_handled_by_the_job_of_its_lifetime(
    tmp_path: Path, sqlite_database: Database
) -> None:
    jobs = (
        "purge_jobs: [{longest_max_lifetime: 2d, interval: 5m}, {shortest_max_lifetime: 5d,"
        " interval: 1d}]"
    )
    server = TestServer(tmp_path, sqlite_database, f"retention: {{enabled: true, {jobs}}}\n")
    alice = server.register("alice")
    for days in (1, 2, 3, 5, 6):
        room_id = create(alice)
        keep_for(alice, room_id, days * DAY)
        say(alice, room_id, SECRET)
    server.clock.advance(7 * DAY)
    short, long, others = server.app.retention.expiries
    assert [server.run(job.do_step(100)) for job in (short, long, others)] == [2, 1, 2]
    names = [job.name for job in server.app.retention.jobs]
    assert names[-3:] == ["purge_old_messages_1", "purge_old_messages_2", "purge_old_messages"]
    assert [job.interval for job in server.app.retention.jobs[-3:]] == [300.0, 86_400.0, 3600.0]


def test_a_step_is_bounded(server: TestServer, alice: User) -> None:
    room_id = create(alice)
    keep_for(alice, room_id, DAY)
    for _ in range(7):
        say(alice, room_id, SECRET)
    server.clock.advance(DAY + 1)
    (expiry,) = server.app.retention.expiries
    assert [server.run(expiry.do_step(3)) for _ in range(4)] == [3, 3, 1, 0]


CONFIGURATION = "/_matrix/client/unstable/org.matrix.msc1763/retention/configuration"


def test_clients_can_read_the_policy(tmp_path: Path, sqlite_database: Database) -> None:
    policy = "default_policy: {min_lifetime: 1d, max_lifetime: 90d}"
    server = TestServer(tmp_path, sqlite_database, RULES.replace("true,", f"true, {policy},", 1))
    alice = server.register("alice")
    assert ok(alice.get(CONFIGURATION)) == {
        "policies": {"*": {"min_lifetime": DAY * 1000, "max_lifetime": 30 * DAY * 1000}},
        "limits": {"max_lifetime": {"min": 3600 * 1000, "max": 30 * DAY * 1000}},
    }
    assert (
        ok(server.get("/_matrix/client/versions"))["unstable_features"]["org.matrix.msc1763"]
        is True
    )
    assert refused(server.get(CONFIGURATION)) == (401, "M_MISSING_TOKEN")


def test_without_a_policy_messages_stay_and_clients_see_that(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    alice = server.register("alice")
    room_id = create(alice)
    keep_for(alice, room_id, 1)
    event_id = say(alice, room_id, SECRET)
    server.clock.advance(100 * DAY)
    assert alice.get(room_path(room_id, "event", event_id)).status == 200
    assert server.app.retention.expiries == []
    assert refused(alice.get(CONFIGURATION)) == (404, "M_UNRECOGNIZED")
    assert (
        "org.matrix.msc1763" not in ok(server.get("/_matrix/client/versions"))["unstable_features"]
    )


def test_a_rooms_earlier_policy_counts_after_a_restart(
    tmp_path: Path, sqlite: SQLiteConfig
) -> None:
    server = TestServer(tmp_path, open_inline(sqlite), RULES)
    alice = server.register("alice")
    room_id = create(alice)
    keep_for(alice, room_id, DAY)
    event_id = say(alice, room_id, SECRET)
    server.clock.advance(DAY + 1)
    server.run(server.app.stop())
    restarted = TestServer(tmp_path, open_inline(sqlite), RULES, seed=2, now=server.clock.seconds())
    answer = restarted.client.request(
        "GET", room_path(room_id, "event", event_id), token=alice.token
    )
    assert answer.status == 404


def test_another_node_follows_a_policy_change(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    one = TestServer(tmp_path, open_inline(sqlite), RULES)
    two = TestServer(tmp_path, open_inline(sqlite), RULES, seed=2)
    alice = one.register("alice")
    room_id = create(alice)
    event_id = say(alice, room_id, SECRET)
    path = room_path(room_id, "event", event_id)

    def asked_of_two() -> int:
        two.clock.advance(one.clock.seconds() - two.clock.seconds())
        two.run(two.app.database.poll())
        return two.client.request("GET", path, token=alice.token).status

    one.clock.advance(DAY + 1)
    assert asked_of_two() == 200
    keep_for(alice, room_id, DAY)
    assert asked_of_two() == 404
    assert purge(one) == 1
    keep_for(alice, room_id, 2 * DAY)
    assert asked_of_two() == 404
    (stored,) = two.run(two.app.rooms.events.get_in_any_room([EventID(event_id)])).values()
    assert stored.event.content == {}


def test_a_restart_continues_with_the_remaining_messages(
    tmp_path: Path, sqlite: SQLiteConfig
) -> None:
    server = TestServer(tmp_path, open_inline(sqlite), RULES)
    alice = server.register("alice")
    room_id = create(alice)
    keep_for(alice, room_id, DAY)
    for _ in range(7):
        say(alice, room_id, SECRET)
    server.clock.advance(DAY + 1)
    assert server.run(server.app.retention.expiries[0].do_step(3)) == 3
    server.run(server.app.stop())
    restarted = TestServer(tmp_path, open_inline(sqlite), RULES, seed=2, now=server.clock.seconds())
    assert purge(restarted) == 4
    settle(restarted)
    assert restarted.run(find_tables(restarted.app.database, SECRET)) == []


def test_policies_cost_readers_no_query(tmp_path: Path, sqlite_template: Path) -> None:
    counts: list[dict[str, int]] = []
    for rules in ("", RULES):
        folder = tmp_path / str(len(counts))
        folder.mkdir()
        counter = QueryCounter()
        server = TestServer(
            folder, open_inline(copy_sqlite(sqlite_template, folder), counter), rules
        )
        alice = server.register("alice")
        rooms = [create(alice) for _ in range(5)]
        for room_id in rooms:
            keep_for(alice, room_id, DAY)
            say(alice, room_id, SECRET)
        everything = {"room": {"timeline": {"limit": 50}}}
        sync(alice, None, everything)
        counter.clear()
        since = str(sync(alice, None, everything)["next_batch"])
        say(alice, rooms[0], SECRET)
        sync(alice, since, everything)
        for room_id in rooms:
            messages(alice, room_id, limit=50)
        counts.append(dict(counter.queries))
    assert counts[0] == counts[1]


def is_paused(server: TestServer) -> bool:
    return server.registry.get_sample_value("mahalla_retention_paused") == 1


def test_a_date_that_is_temporarily_wrong_purges_nothing(server: TestServer, alice: User) -> None:
    room_id = create(alice)
    keep_for(alice, room_id, 2 * DAY)
    event_id = say(alice, room_id, SECRET)
    assert purge(server) == 0
    assert not is_paused(server)
    server.jump(365 * DAY)
    for _ in range(3):
        assert purge(server) == 0
        server.clock.advance(3600)
    assert not is_shown(alice, room_id, event_id)
    assert is_paused(server)
    server.jump(-365 * DAY)
    assert purge(server) == 0
    assert is_shown(alice, room_id, event_id)
    server.clock.advance(DAY)
    assert purge(server) == 0
    assert not is_paused(server)
    server.clock.advance(DAY)
    assert purge(server) == 1


def test_a_new_date_is_trusted_after_a_day(server: TestServer, alice: User) -> None:
    room_id = create(alice)
    keep_for(alice, room_id, 2 * DAY)
    say(alice, room_id, SECRET)
    server.jump(3 * DAY)
    assert purge(server) == 0
    server.clock.advance(DAY - 1)
    assert purge(server) == 0
    server.clock.advance(1)
    assert purge(server) == 1


def test_a_small_clock_change_is_trusted(server: TestServer, alice: User) -> None:
    room_id = create(alice)
    keep_for(alice, room_id, DAY)
    say(alice, room_id, SECRET)
    server.clock.advance(DAY)
    server.jump(60)
    assert purge(server) == 1


@pytest.mark.parametrize("has_looked", [True, False])
def test_a_server_that_was_down_for_long_waits_too(
    tmp_path: Path, sqlite: SQLiteConfig, has_looked: bool
) -> None:
    server = TestServer(tmp_path, open_inline(sqlite), RULES)
    alice = server.register("alice")
    room_id = create(alice)
    keep_for(alice, room_id, DAY)
    say(alice, room_id, SECRET)
    if has_looked:
        assert purge(server) == 0
    server.run(server.app.stop())
    now = server.clock.seconds() + 3 * DAY
    for seed, seconds, purged in ((2, 0.0, 0), (3, DAY / 2, 0), (4, DAY / 2, 1)):
        now += seconds
        restarted = TestServer(tmp_path, open_inline(sqlite), RULES, seed=seed, now=now)
        assert purge(restarted) == purged
        assert is_paused(restarted) is not bool(purged)
        restarted.run(restarted.app.stop())


def test_a_server_that_was_down_for_a_day_continues(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    server = TestServer(tmp_path, open_inline(sqlite), RULES)
    alice = server.register("alice")
    room_id = create(alice)
    keep_for(alice, room_id, DAY / 2)
    say(alice, room_id, SECRET)
    server.run(server.app.stop())
    restarted = TestServer(
        tmp_path, open_inline(sqlite), RULES, seed=2, now=server.clock.seconds() + DAY
    )
    assert purge(restarted) == 1


def test_an_unreadable_event_does_not_block_others(server: TestServer, alice: User) -> None:
    rooms = [create(alice) for _ in range(2)]
    for room_id in rooms:
        keep_for(alice, room_id, DAY)
        for event_id in [say(alice, room_id, SECRET) for _ in range(5)][:4]:
            if room_id == rooms[0]:
                damage(server, event_id)
    server.clock.advance(DAY + 1)
    (expiry,) = server.app.retention.expiries
    assert [server.run(expiry.do_step(2)) for _ in range(4)] == [2, 2, 2, 0]
    assert server.registry.get_sample_value("mahalla_retention_unreadable_total") == 4 * 4
    assert server.registry.get_sample_value("mahalla_retention_failures_total") == 0
    settle(server)
    assert server.run(find_tables(server.app.database, SECRET)) == []


def test_a_failing_room_does_not_block_others(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    server = TestServer(tmp_path, open_inline(sqlite), RULES)
    alice = server.register("alice")
    rooms = [create(alice) for _ in range(2)]
    for room_id in rooms:
        keep_for(alice, room_id, DAY)
        say(alice, room_id, SECRET)
    server.clock.advance(DAY + 1)
    assert server.run(server.app.retention.expiries[0].do_step(0)) == 0
    unknown = "UPDATE rooms SET version = 'none' WHERE room_id = ?"
    server.run(server.app.database.write("damage", lambda txn: txn.execute(unknown, (rooms[0],))))
    server.run(server.app.stop())
    restarted = TestServer(tmp_path, open_inline(sqlite), RULES, seed=2, now=server.clock.seconds())
    assert purge(restarted) == 1
    assert restarted.registry.get_sample_value("mahalla_retention_failures_total") == 1
