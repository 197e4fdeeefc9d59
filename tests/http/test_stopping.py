"""A server that is stopped while it is still about to begin its work."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from storage.database import Database
from storage.leases import LeaseStore
from tests.helpers.server import TestServer


@pytest.mark.parametrize("name", ["sending", "push"])
def test_the_stop_waits_for_a_lease_that_is_just_being_taken(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Else it would ask a database that is closed, or keep a lease which others wait for."""
    worker = server.app.federation_out.sender if name == "sending" else server.app.pushers.reading
    taken: Deferred[None] = Deferred()
    take = LeaseStore.take

    async def take_slowly(self: LeaseStore, *args: Any, **more: Any) -> Any:
        await taken
        return await take(self, *args, **more)

    monkeypatch.setattr(LeaseStore, "take", take_slowly)
    worker.start()
    stopped: list[None] = []
    Deferred.fromCoroutine(worker.stop()).addCallback(stopped.append)
    assert stopped == []

    taken.callback(None)

    assert stopped == [None]
    assert server.run(is_free(server.app.database, name, int(server.clock.seconds() * 1000)))


async def is_free(database: Database, name: str, now: int) -> bool:
    return await LeaseStore(database, name).take("another node", now, now + 1, by_force=False) is not None
