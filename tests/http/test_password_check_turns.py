"""Turns of password checks at a user directory: a client with many requests does not keep others
from signing in."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Semaphore
from types import MethodType
from typing import cast

import pytest
from twisted.internet import reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.threadpool import ThreadPool

from federation.protocol.ids import UserID
from homeserver.commands.setup import (
    DIRECTORY_THREADS,
    MAX_DIRECTORY_THREADS_PER_CLIENT,
    start_directory_threads,
)
from homeserver.config.ldap import LDAPProviderOptions
from homeserver.services.login.passwords import HashingThreads
from homeserver.services.upstream.accounts import UpstreamAccounts
from homeserver.services.upstream.identity import ProviderInfo
from homeserver.services.upstream.ldap.login import Directory, DirectoryPasswords, RemovedUserCheck
from homeserver.services.upstream.ldap.types import DirectoryClient, DirectoryPasswordCheck
from storage.upstream.external_ids import ExternalIdStore

SECONDS = 20
"""Timeout of a test that hangs. A successful test waits for nothing that takes time."""


class SlowDirectory:
    """Finds no user, and returns only when released, except for users called `quick`."""

    def __init__(self) -> None:
        self.goes_on = Event()
        self.asked: list[str] = []
        self.begun = Semaphore(0)
        """Has an entry for each check."""

    def check_password(self, name: str, password: str) -> DirectoryPasswordCheck:
        self.asked.append(name)
        self.begun.release()
        if name != "quick":
            assert self.goes_on.wait(SECONDS)
        return DirectoryPasswordCheck(None)


class PoolKeeper:
    """A reactor that records how to end its threads."""

    def __init__(self) -> None:
        self.pools: list[ThreadPool] = []

    def __getattr__(self, name: str) -> object:
        return getattr(reactor, name)

    def addSystemEventTrigger(self, phase: str, event: str, stop: MethodType) -> None:
        self.pools.append(cast(ThreadPool, stop.__self__))


@contextmanager
def threads_of_the_server() -> Iterator[HashingThreads]:
    keeper = PoolKeeper()
    threads = start_directory_threads(cast(ReactorBase, keeper))
    try:
        yield threads
    finally:
        for pool in keeper.pools:
            pool.stop()


@pytest.mark.reactor(30)
async def test_one_address_does_not_occupy_all_threads() -> None:
    with threads_of_the_server() as threads:
        slow = SlowDirectory()
        directory = Directory(
            ProviderInfo("ldap", "ldap"),
            LDAPProviderOptions(uri=("ldaps://example.org",), base="dc=example"),
            cast(DirectoryClient, slow),
            cast(RemovedUserCheck, None),
        )
        passwords = DirectoryPasswords(
            threads=threads,
            directories=[directory],
            links=cast(ExternalIdStore, None),
            accounts=cast(UpstreamAccounts, None),
        )

        def ask(name: str, address: str) -> Deferred[UserID | None]:
            return Deferred.fromCoroutine(passwords.check(name, None, "guess", address))

        try:
            # of one IPv6 subscriber
            flood = [
                ask(f"name{number}", f"2001:db8::{number:x}")
                for number in range(1, 5 * DIRECTORY_THREADS)
            ]
            assert await ask("quick", "10.0.0.2") is None
            # a thread of the flood may start after the response
            assert all(
                slow.begun.acquire(timeout=SECONDS)
                for _ in range(MAX_DIRECTORY_THREADS_PER_CLIENT + 1)
            )
            assert len(slow.asked) == MAX_DIRECTORY_THREADS_PER_CLIENT + 1
        finally:
            slow.goes_on.set()
        await gatherResults(flood)
        assert len(slow.asked) == len(flood) + 1
