"""The fair semaphore: bounds, rounds among keys, refusals, cancellation, and slow keys."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from federation.peers.fair_semaphore import (
    MAX_SLOW_KEYS,
    SLOW_FOR_SECONDS,
    FairSemaphore,
    WaitLimits,
)
from federation.protocol.errors import LimitExceeded
from tests.helpers.state_machines import run_machine

NORTH, SOUTH, WEST = "north", "south", "west"


def acquire(semaphore: FairSemaphore[str], *keys: str) -> Deferred[None]:
    return Deferred.fromCoroutine(semaphore.acquire(*keys))


def called(*waiters: Deferred[None]) -> list[bool]:
    return [each.called for each in waiters]


def hold_until(semaphore: FairSemaphore[str], done: Deferred[None], *keys: str) -> Deferred[None]:
    """Hold a permit until `done` is called."""

    async def work() -> None:
        async with semaphore.hold(*keys):
            await done

    return Deferred.fromCoroutine(work())


async def test_the_stack_does_not_grow_with_a_queue_of_short_work() -> None:
    semaphore: FairSemaphore[str] = FairSemaphore(permits=1, permits_per_key=1)
    await semaphore.acquire(NORTH)
    done: list[int] = []

    async def work(number: int) -> None:
        await semaphore.acquire(NORTH)
        done.append(number)
        semaphore.release(NORTH)

    working = [Deferred.fromCoroutine(work(number)) for number in range(5000)]
    semaphore.release(NORTH)
    for each in working:
        await each
    assert done == list(range(5000))


async def test_one_key_holds_its_share_and_the_others_have_turns() -> None:
    semaphore: FairSemaphore[str] = FairSemaphore(permits=3, permits_per_key=2)
    norths = [acquire(semaphore, NORTH) for _ in range(5)]
    assert called(*norths) == [True, True, False, False, False]
    souths = [acquire(semaphore, SOUTH) for _ in range(3)]
    assert called(*souths) == [True, False, False]

    semaphore.release(NORTH)
    assert called(*norths) == [True, True, True, False, False]
    semaphore.release(SOUTH)
    assert called(*souths) == [True, True, False]
    norths[3].cancel()
    with pytest.raises(CancelledError):
        await norths[3]
    for server in (NORTH, NORTH, SOUTH):
        semaphore.release(server)
    assert norths[4].called
    assert souths[2].called
    for server in (NORTH, SOUTH):
        semaphore.release(server)
    assert called(*(acquire(semaphore, NORTH) for _ in range(3))) == [True, True, False]


def test_permits_go_round_among_keys_whoever_queued_first() -> None:
    semaphore: FairSemaphore[str] = FairSemaphore(permits=1, permits_per_key=1)
    acquire(semaphore, WEST)
    norths = [acquire(semaphore, NORTH) for _ in range(3)]
    south = acquire(semaphore, SOUTH)
    semaphore.release(WEST)
    semaphore.release(NORTH)
    assert called(*norths, south) == [True, False, False, True]
    semaphore.release(SOUTH)
    assert called(*norths) == [True, True, False]


def test_a_key_can_be_given_the_next_permit() -> None:
    semaphore: FairSemaphore[str] = FairSemaphore(permits=1, permits_per_key=1)
    acquire(semaphore, WEST)
    north, south = acquire(semaphore, NORTH), acquire(semaphore, SOUTH)
    semaphore.prioritize(WEST)  # nobody waits for it
    semaphore.prioritize(SOUTH)
    semaphore.release(WEST)
    assert called(north, south) == [False, True]


def test_every_key_of_a_permit_needs_a_share() -> None:
    semaphore: FairSemaphore[str] = FairSemaphore(permits=10, permits_per_key=1)
    acquire(semaphore, "alice", NORTH)
    waiting = [acquire(semaphore, "alice", SOUTH), acquire(semaphore, "bob", NORTH)]
    other = acquire(semaphore, "bob", SOUTH)
    assert called(*waiting, other) == [False, False, True]
    assert list(semaphore.waiting_keys()) == [("alice", SOUTH), ("bob", NORTH)]
    semaphore.release("bob", SOUTH)
    semaphore.release("alice", NORTH)
    assert called(*waiting) == [True, True]


def test_a_share_that_rises_admits_waiters_on_a_recheck() -> None:
    shares = {NORTH: 0, SOUTH: 1}
    semaphore: FairSemaphore[str] = FairSemaphore(permits=2, permits_per_key=shares.__getitem__)
    north = acquire(semaphore, NORTH)
    assert acquire(semaphore, SOUTH).called
    assert not north.called
    shares[NORTH] = 1
    semaphore.recheck()
    assert north.called


async def test_a_full_queue_refuses_and_names_the_key() -> None:
    semaphore: FairSemaphore[str] = FairSemaphore(
        permits=1,
        permits_per_key=1,
        max_waiting=3,
        max_waiting_per_key=lambda key: 2 if key == NORTH else None,
        refusal=lambda key: LimitExceeded(f"full: {key}"),
    )
    acquire(semaphore, WEST)
    norths = [acquire(semaphore, NORTH) for _ in range(2)]
    with pytest.raises(LimitExceeded, match="full: north"):
        await semaphore.acquire(NORTH)
    acquire(semaphore, SOUTH)
    with pytest.raises(LimitExceeded, match="full: None"):
        await semaphore.acquire(SOUTH)
    norths[0].addErrback(lambda failure: failure.trap(CancelledError))
    norths[0].cancel()
    assert not acquire(semaphore, NORTH).called, "it waits, and is not refused"
    assert (semaphore.waiting(NORTH), semaphore.total_waiting) == (2, 3)


def test_a_permit_is_held_at_once_or_refused() -> None:
    semaphore: FairSemaphore[str] = FairSemaphore(
        permits=2, permits_per_key=lambda _key: semaphore.free
    )
    with semaphore.hold_now(NORTH):
        assert semaphore.held(NORTH) == 1
        with pytest.raises(LimitExceeded), semaphore.hold_now(NORTH):
            pytest.fail("it holds as many as it leaves free")
        with semaphore.hold_now(SOUTH), pytest.raises(LimitExceeded), semaphore.hold_now(WEST):
            pytest.fail("there are only two")
    assert (semaphore.held(NORTH), semaphore.free) == (0, 2)


async def test_a_waiter_is_refused_after_the_longest_wait() -> None:
    clock = Clock()
    semaphore: FairSemaphore[str] = FairSemaphore(
        permits=1, permits_per_key=1, wait_limits=WaitLimits(clock, max_wait=20)
    )
    done = Deferred[None]()
    hold_until(semaphore, done, NORTH)
    late, patient = acquire(semaphore, SOUTH), Deferred[None]()
    clock.advance(15)
    next_one = hold_until(semaphore, patient, WEST)
    clock.advance(5)
    with pytest.raises(LimitExceeded):
        await late
    done.callback(None)
    patient.callback(None)
    await next_one
    assert semaphore.seconds_waited == 25
    assert (semaphore.free, semaphore.total_waiting, clock.getDelayedCalls()) == (1, 0, [])


async def test_waiters_of_a_key_can_be_refused() -> None:
    semaphore: FairSemaphore[str] = FairSemaphore(permits=1, permits_per_key=1)
    acquire(semaphore, WEST)
    norths, south = [acquire(semaphore, NORTH) for _ in range(2)], acquire(semaphore, SOUTH)
    semaphore.refuse_waiting(LimitExceeded, WEST)  # nobody waits for it
    semaphore.refuse_waiting(LimitExceeded, NORTH)
    for each in norths:
        with pytest.raises(LimitExceeded):
            await each
    assert semaphore.total_waiting == 1
    semaphore.release(WEST)
    assert south.called


def test_slow_keys_share_what_one_key_may_hold_for_a_while() -> None:
    clock = Clock()
    semaphore: FairSemaphore[str] = FairSemaphore(
        permits=3, permits_per_key=2, wait_limits=WaitLimits(clock, slow_after=5)
    )
    for key in (NORTH, SOUTH, WEST):
        done = Deferred[None]()
        hold_until(semaphore, done, key)
        clock.advance(6)
        done.callback(None)
    done = Deferred()
    for key in (NORTH, SOUTH, WEST):
        hold_until(semaphore, done, key)
    assert [semaphore.held(key) for key in (NORTH, SOUTH, WEST)] == [1, 1, 0]
    hold_until(semaphore, done, "quick")
    assert semaphore.held("quick") == 1
    done.callback(None)
    assert semaphore.free == 3

    clock.advance(SLOW_FOR_SECONDS)
    done = Deferred()
    for key in (NORTH, SOUTH, WEST):
        hold_until(semaphore, done, key)
    assert semaphore.free == 0


def test_the_number_of_slow_keys_that_are_remembered_is_bounded() -> None:
    clock = Clock()
    semaphore: FairSemaphore[int] = FairSemaphore(
        permits=MAX_SLOW_KEYS + 2, permits_per_key=1, wait_limits=WaitLimits(clock, slow_after=5)
    )

    async def work(key: int, done: Deferred[None]) -> None:
        async with semaphore.hold(key):
            await done

    done = Deferred[None]()
    for key in range(MAX_SLOW_KEYS + 1):
        Deferred.fromCoroutine(work(key, done))
    clock.advance(6)
    done.callback(None)
    done = Deferred()
    for key in range(MAX_SLOW_KEYS + 1):
        Deferred.fromCoroutine(work(key, done))
    assert [semaphore.held(key) for key in range(3)] == [1, 1, 0], (
        "the first was forgotten, the second is slow"
    )


class Semaphores(RuleBasedStateMachine):
    """Any order of acquiring, releasing and cancelling, with two kinds of keys."""

    waiters = Bundle("waiters")

    def __init__(self) -> None:
        super().__init__()
        self.semaphore: FairSemaphore[str] = FairSemaphore(
            permits=3, permits_per_key=2, max_waiting=6, max_waiting_per_key=4
        )
        self.live: list[tuple[Deferred[None], tuple[str, ...]]] = []

    @rule(target=waiters, server=st.sampled_from("ABC"), user=st.sampled_from("xy"))
    def ask(self, server: str, user: str) -> Deferred[None]:
        waiter = acquire(self.semaphore, server, user)
        failures: list[object] = []
        waiter.addErrback(
            lambda failure: failures.append(failure.trap(LimitExceeded, CancelledError))
        )
        if failures:
            assert self.semaphore.total_waiting == 6 or 4 in map(
                self.semaphore.waiting, (server, user)
            )
        else:
            self.live.append((waiter, (server, user)))
        return waiter

    @rule(waiter=consumes(waiters))
    def give_up(self, waiter: Deferred[None]) -> None:
        for each in list(self.live):
            if each[0] is waiter:
                self.live.remove(each)
                if waiter.called:
                    self.semaphore.release(*each[1])
                else:
                    waiter.cancel()

    @invariant()
    def bounds_hold_and_no_permit_lies_idle(self) -> None:
        held: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        for waiter, keys in self.live:
            (held if waiter.called else waiting).update(keys)
        in_all = sum(waiter.called for waiter, _ in self.live)
        assert in_all <= 3
        assert self.semaphore.free == 3 - in_all
        for key in "ABCxy":
            assert self.semaphore.held(key) == held[key] <= 2
            assert self.semaphore.waiting(key) == waiting[key] <= 4
        if self.semaphore.free:
            for waiter, keys in self.live:
                assert waiter.called or any(held[key] == 2 for key in keys)


def test_bounds_hold_in_any_history() -> None:
    run_machine(Semaphores, runs=100, steps=40)
