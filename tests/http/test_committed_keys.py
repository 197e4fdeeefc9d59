"""Device keys that are committed, but not yet announced to the caches."""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed

from federation.protocol.ids import UserID
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.keys import V3, identity_keys, upload
from tests.helpers.server import TestServer, User


class BusyReactor:
    """A writer that commits at once; its notifications wait while the reactor is busy."""

    def __init__(self) -> None:
        self.is_busy = False
        self._queue: deque[Callable[[], Any]] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def deliver(self, call: Callable[[], Any]) -> None:
        if self.is_busy:
            self._queue.append(call)
        else:
            call()

    def close(self) -> Deferred[None]:
        return succeed(None)

    def turn(self) -> None:
        self.is_busy = False
        while self._queue:
            self._queue.popleft()()


def test_a_device_list_has_the_changes_that_its_stream_id_stands_for(
    tmp_path: Path, sqlite_template: Path
) -> None:
    """Otherwise a server would keep the list under that ID for ever, and never encrypt for the
    device."""
    reactor = BusyReactor()
    server = TestServer(
        tmp_path, open_inline(copy_sqlite(sqlite_template, tmp_path), writer=reactor)
    )
    bob = server.register("bob")
    upload(bob, device_keys=identity_keys(bob, 1)[1])
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": bob.user_id}}
    second = User(server, server.post(f"{V3}/login", {**login, "password": "wonderland"}).json)
    devices = server.app.federation_sender.own_devices

    def read() -> tuple[int, set[str]]:
        found = server.run(devices.get_list(UserID(bob.user_id)))
        return found["stream_id"], {device["device_id"] for device in found["devices"]}

    before = read()
    reactor.is_busy = True
    pending = second.start(
        "POST", f"{V3}/keys/upload", {"device_keys": identity_keys(second, 2)[1]}
    )
    during = read()
    reactor.turn()
    assert pending.answer.status == 200
    after = read()
    assert (before[1], after[1]) == ({bob.device_id}, {bob.device_id, second.device_id})
    assert during in (before, after)
