"""Leased work starts, stores its position and stops with its lease, on one node at a time."""

from twisted.internet.task import Clock

from storage.cluster.lease_loop import LEASE_DURATION_MS, ROUND_SECONDS, LeaseLoop
from storage.cluster.leases import Lease, LeaseStore
from storage.cluster.node_lease import FIRST_RENEWAL_SECONDS, NodeLease
from storage.engine.database import Database
from storage.engine.interface import DatabaseUnavailable


class Work:
    """Work that records its calls."""

    def __init__(self, database: Database, clock: Clock, process: str) -> None:
        self.position = 0
        self.log: list[str] = []
        self.is_done = True
        self.fails = 0
        self.rounds = 0
        lease = NodeLease(database=database, name="push", process=process, get_node=lambda: 0)
        self.loop = LeaseLoop(
            clock=clock, lease=lease, work=self, name="work", after_round=self.do_round
        )

    def is_idle(self) -> bool:
        return self.is_done

    async def begin(self, lease: Lease) -> None:
        if self.fails:
            self.fails -= 1
            raise DatabaseUnavailable("away")
        self.position = lease.position
        self.log.append("begin")

    async def store_progress(self) -> int:
        self.log.append("note")
        return self.position

    def on_lease_lost(self) -> None:
        self.log.append("lose")

    async def finish(self) -> int:
        self.log.append("finish")
        return self.position

    async def do_round(self) -> None:
        self.rounds += 1


async def stored_position(database: Database) -> int:
    lease = await LeaseStore(database=database, name="push").take("test", 0, 0, force=True)
    assert lease is not None
    return lease.position


async def test_work_begins_with_the_lease_and_its_position_is_stored(database: Database) -> None:
    clock = Clock()
    work = Work(database, clock, "a")
    work.loop.start()
    assert (work.loop.is_held, work.log) == (True, ["begin"])
    work.position += 7
    clock.advance(FIRST_RENEWAL_SECONDS)
    assert work.loop.stored_position == work.position
    clock.advance(ROUND_SECONDS)
    assert (work.log, work.rounds) == (["begin", "note", "note"], 3)
    work.position += 1
    await work.loop.stop()
    assert (work.loop.is_held, work.log[-1]) == (False, "finish")
    assert await stored_position(database) == work.position
    clock.advance(10 * ROUND_SECONDS)
    assert work.rounds == 3


async def test_a_second_node_waits_until_the_first_releases_the_lease(
    postgres_database: Database,
) -> None:
    clock = Clock()
    first, second = Work(postgres_database, clock, "a"), Work(postgres_database, clock, "b")
    first.loop.start()
    second.loop.start()
    clock.pump([FIRST_RENEWAL_SECONDS, *([ROUND_SECONDS] * 10)])
    assert (second.loop.is_held, second.log) == (False, [])
    assert second.rounds > 5, "`after_round` is called without the lease too"
    first.position += 7
    await first.loop.stop()
    clock.advance(ROUND_SECONDS)
    assert second.log == ["begin"]
    assert second.position == first.position
    await second.loop.stop()


async def test_a_node_that_lost_the_lease_ends_its_work_and_takes_it_again_when_idle(
    postgres_database: Database,
) -> None:
    clock = Clock()
    work, store = (
        Work(postgres_database, clock, "a"),
        LeaseStore(database=postgres_database, name="push"),
    )
    work.loop.start()
    assert await store.take("b", 0, 3 * LEASE_DURATION_MS, force=True) is not None
    clock.advance(ROUND_SECONDS)
    assert (work.loop.is_held, work.log[-1]) == (False, "lose")
    work.is_done = False
    clock.pump([ROUND_SECONDS] * 12)
    assert not work.loop.is_held
    work.is_done = True
    clock.advance(ROUND_SECONDS)
    assert (work.loop.is_held, work.log[-1]) == (True, "begin")
    await work.loop.stop()


async def test_a_failed_round_is_retried(database: Database) -> None:
    clock = Clock()
    work = Work(database, clock, "a")
    work.fails = 2
    work.loop.start()
    assert not work.loop.is_held
    clock.advance(ROUND_SECONDS)
    assert not work.loop.is_held
    clock.advance(ROUND_SECONDS)
    assert (work.loop.is_held, work.log) == (True, ["begin"])
    await work.loop.stop()


async def test_a_loop_that_never_held_the_lease_stops_and_stores_nothing(
    postgres_database: Database,
) -> None:
    clock = Clock()
    store = LeaseStore(database=postgres_database, name="push")
    taken = await store.take("b", 0, LEASE_DURATION_MS, force=True)
    work = Work(postgres_database, clock, "a")
    work.loop.start()
    await work.loop.stop()
    assert work.log == []
    assert await store.renew("b", LEASE_DURATION_MS, taken.position if taken else 0)
