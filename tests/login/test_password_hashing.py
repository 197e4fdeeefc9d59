"""Hashing of passwords: cost, pepper, and the queue of the hashing threads."""

from threading import Event
from typing import cast

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.threadpool import ThreadPool

from federation.protocol.errors import LimitExceeded
from homeserver.services.login.passwords import HashingThreads, Passwords
from tests.helpers.executors import InlineThreads

THREADED = cast(IReactorFromThreads, reactor)


async def test_a_hash_depends_on_the_pepper_and_is_renewed_at_a_higher_cost() -> None:
    cheap, usual = (
        Passwords(threads=InlineThreads(), rounds=rounds, pepper="p") for rounds in (4, 12)
    )
    password_hash = await cheap.hash("wonderland")
    assert password_hash.startswith("$argon2id$v=19$m=76,t=1,p=1$")
    assert (await cheap.verify("wonderland", password_hash)).correct
    assert not (await cheap.verify("wonderland", None)).correct
    assert not (await cheap.verify("wonderland", "not a hash")).correct
    assert not (await cheap.verify("wonderland", "$2b$not a hash")).correct
    assert not (
        await Passwords(threads=InlineThreads(), rounds=4).verify("wonderland", password_hash)
    ).correct

    verdict = await usual.verify("wonderland", password_hash)
    assert verdict.correct
    assert verdict.new_hash is not None
    assert verdict.new_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert (await usual.verify("wonderland", verdict.new_hash)).new_hash is None


@pytest.mark.reactor(60)
async def test_hashing_threads_have_a_bounded_queue() -> None:
    pool = ThreadPool(minthreads=1, maxthreads=2)
    pool.start()
    try:
        passwords = Passwords(threads=HashingThreads(reactor=THREADED, pool=pool), rounds=4)
        assert (await passwords.verify("x", await passwords.hash("x"))).correct
        full = Passwords(threads=HashingThreads(reactor=THREADED, pool=pool, max_queue=0), rounds=4)
        with pytest.raises(LimitExceeded):
            await full.hash("x")
    finally:
        pool.stop()


@pytest.mark.reactor(60)
async def test_a_flood_from_one_address_does_not_delay_another() -> None:
    pool = ThreadPool(minthreads=1, maxthreads=1)
    pool.start()
    try:
        threads = HashingThreads(reactor=THREADED, pool=pool, max_queue=100, max_queue_per_key=20)
        done: list[str] = []
        first = Event()

        def work(asker: str) -> Deferred[None]:
            async def run() -> None:
                await threads.run(first.wait, asker)
                done.append(asker)

            return Deferred.fromCoroutine(run())

        flood = [work("flood") for _ in range(21)]
        with pytest.raises(LimitExceeded):
            await threads.run(first.wait, "flood")
        other = work("office")
        first.set()
        await gatherResults([*flood, other])
        assert done.index("office") <= 2
    finally:
        pool.stop()
