"""Background jobs: small steps, repeated at intervals, whatever fails."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import provider

from homeserver.cluster.jobs import FIRST_BATCH, Job, Jobs
from homeserver.observe.metrics import JobMetrics
from homeserver.wiring.jobs import SENT_RETENTION_SECONDS
from storage.engine.database import Database, Transaction
from storage.engine.interface import DatabaseUnavailable
from tests.helpers.server import TestServer


class Pile:
    """Items to process, each in `seconds`. A step advances the clock by its work."""

    def __init__(self, clock: Clock, things: int, seconds: float = 0.0) -> None:
        self.clock = clock
        self.things = things
        self.seconds = seconds
        self.batches: list[int] = []
        self.failures = 0

    async def step(self, batch: int) -> int:
        self.batches.append(batch)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a failure")
        done = min(batch, self.things)
        self.things -= done
        self.clock.rightNow += done * self.seconds
        return done


@pytest.fixture
def failures() -> Iterator[list[str]]:
    found: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            found.append(str(event["job"]))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The log lines about jobs."""
    found: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_namespace"].startswith("homeserver.cluster.jobs"):
            found.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def run(clock: Clock, *jobs: Job) -> tuple[Jobs, CollectorRegistry]:
    registry = CollectorRegistry()
    made = Jobs(clock=clock, jobs=jobs, metrics=JobMetrics(registry))
    made.start()
    return made, registry


def turn(clock: Clock, seconds: float) -> None:
    for _ in range(int(seconds * 10)):
        clock.advance(0.1)


def test_a_job_processes_pending_items_and_sleeps() -> None:
    clock = Clock()
    pile = Pile(clock, 1000)
    _, registry = run(clock, Job("pile", pile.step, 600.0))
    assert pile.batches == [], "jobs do not run while the server starts"
    turn(clock, 60)
    assert pile.things == 0
    assert sum(pile.batches[:-1]) <= 1000
    steps = len(pile.batches)
    turn(clock, 500)
    assert len(pile.batches) == steps
    pile.things = 1
    turn(clock, 200)
    assert pile.things == 0
    assert registry.get_sample_value("mahalla_job_items_total", {"name": "pile"}) == 1001
    assert (
        registry.get_sample_value("mahalla_job_last_finished_timestamp_seconds", {"name": "pile"})
        or 0
    ) > 600


def test_batches_adapt_to_a_tenth_of_a_second() -> None:
    clock = Clock()
    quick, slow = Pile(clock, 10**6, 0.0001), Pile(clock, 10**6, 0.05)
    run(clock, Job("quick", quick.step, 60.0))
    turn(clock, 40)
    assert quick.batches[:4] == [FIRST_BATCH, 2 * FIRST_BATCH, 4 * FIRST_BATCH, 8 * FIRST_BATCH]
    assert set(quick.batches[-3:]) == {1000}
    clock = slow.clock = Clock()
    run(clock, Job("slow", slow.step, 60.0))
    turn(clock, 40)
    assert set(slow.batches[1:]) == {2}


def test_a_job_without_database_is_retried_without_a_traceback(
    failures: list[str],
) -> None:
    clock = Clock()
    steps: list[int] = []

    async def step(batch: int) -> int:
        steps.append(batch)
        if len(steps) == 1:
            raise DatabaseUnavailable("connection refused")
        return 0

    _, registry = run(clock, Job("away", step, 10.0))
    turn(clock, 100)
    assert len(steps) >= 2
    assert failures == []
    assert registry.get_sample_value("mahalla_job_failures_total", {"name": "away"}) == 1


def test_a_failed_job_is_retried_and_affects_no_other(failures: list[str]) -> None:
    clock = Clock()
    unlucky, lucky = Pile(clock, 10), Pile(clock, 10)
    unlucky.failures = 2
    _, registry = run(clock, Job("unlucky", unlucky.step, 30.0), Job("lucky", lucky.step, 30.0))
    turn(clock, 45)
    assert (unlucky.things, lucky.things) == (10, 0)
    turn(clock, 60)
    assert unlucky.things == 0
    assert failures == ["unlucky"]
    assert registry.get_sample_value("mahalla_job_failures_total", {"name": "unlucky"}) == 2


def test_a_job_that_keeps_failing_is_logged_at_growing_intervals(lines: list[str]) -> None:
    """With a full disk all jobs fail, and the log is on the same disk."""
    clock = Clock()
    errors: list[Exception | None] = [DatabaseUnavailable("the disk is full")]

    async def step(_: int) -> int:
        if errors[0] is not None:
            raise errors[0]
        return 0

    _, registry = run(clock, Job("full", step, 10.0))

    def log_lines_within(seconds: float) -> list[str]:
        lines.clear()
        turn(clock, seconds)
        return list(lines)

    assert len(log_lines_within(45)) == 1
    assert len(log_lines_within(4 * 3600)) <= 9
    assert len(log_lines_within(3600)) <= 1
    assert len(log_lines_within(10 * 3600)) >= 1
    errors[0] = DatabaseUnavailable("the server is gone")
    assert log_lines_within(20) == []
    errors[0] = RuntimeError("a bug")
    assert log_lines_within(20) == ["the job full failed; it will be retried later"], (
        "a new kind of failure is logged at once"
    )
    errors[0] = None
    (line,) = log_lines_within(100)
    tries = registry.get_sample_value("mahalla_job_failures_total", {"name": "full"})
    assert tries is not None
    assert f"works again: it failed {int(tries)} times" in line
    assert log_lines_within(600) == []
    errors[0] = DatabaseUnavailable("the disk is full")
    assert len(log_lines_within(20)) == 1


def test_alternating_failures_are_both_logged_at_growing_intervals(lines: list[str]) -> None:
    clock = Clock()
    steps: list[int] = []

    async def step(batch: int) -> int:
        steps.append(batch)
        if len(steps) % 2:
            raise DatabaseUnavailable("the disk is full")
        raise RuntimeError("and so something is missing")

    run(clock, Job("full", step, 10.0))
    turn(clock, 3600)
    assert len(steps) > 300
    assert 2 <= len(lines) <= 14


def test_a_failure_at_another_line_is_logged_at_once(lines: list[str]) -> None:
    """Also if its class is the same, as that of all database errors."""
    clock = Clock()
    is_fixed = False

    async def step(_: int) -> int:
        if not is_fixed:
            raise RuntimeError("a bug")
        raise RuntimeError("another")

    run(clock, Job("buggy", step, 10.0))
    turn(clock, 3600)
    lines.clear()
    is_fixed = True
    turn(clock, 20)
    assert lines == ["the job buggy failed; it will be retried later"]


def test_a_job_that_fails_only_when_items_are_pending_is_not_logged_as_working(
    lines: list[str],
) -> None:
    clock = Clock()
    steps: list[int] = []

    async def step(batch: int) -> int:
        steps.append(batch)
        if len(steps) % 2:
            raise DatabaseUnavailable("the disk is full")
        return 0

    run(clock, Job("full", step, 10.0))
    turn(clock, 3600)
    assert len(steps) > 300
    assert 1 <= len(lines) <= 7


def test_a_stop_waits_for_the_running_step() -> None:
    clock = Clock()
    work: Deferred[int] = Deferred()
    begun: list[int] = []

    async def step(batch: int) -> int:
        begun.append(batch)
        return await work

    jobs, _ = run(clock, Job("long", step, 1.0))
    turn(clock, 40)
    stopped: list[object] = []
    Deferred.fromCoroutine(jobs.stop()).addCallback(stopped.append)
    assert stopped == []
    work.callback(0)
    assert stopped == [None]
    turn(clock, 100)
    assert len(begun) == 1


async def test_old_transaction_ids_are_deleted(
    server: TestServer, sqlite_database: Database
) -> None:
    def remembered(txn: Transaction) -> list[str]:
        return [
            str(txn_id)
            for (txn_id,) in txn.query("SELECT txn_id FROM sent_transactions ORDER BY txn_id")
        ]

    server.app.jobs.start()
    alice = server.register("alice")
    room = alice.post("/_matrix/client/v3/createRoom").json["room_id"]
    send = f"/_matrix/client/v3/rooms/{room}/send/m.room.message/"
    alice.put(send + "old", {"body": "tea"})
    server.clock.advance(SENT_RETENTION_SECONDS - 60)
    alice.put(send + "new", {"body": "tea"})
    assert await sqlite_database.read("remembered", remembered) == ["new", "old"]
    server.clock.pump([600.0] * 40)
    assert await sqlite_database.read("remembered", remembered) == ["new"]
    await server.app.stop()
