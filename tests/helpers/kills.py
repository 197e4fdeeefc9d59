"""Clients of a server that is killed while they use it: they repeat each unanswered request to the
server that runs next."""

import http.client
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.running import Reply, RunningServer, exchange


@dataclass
class Where:
    """The process that serves now; None while there is none. Told to all threads."""

    server: RunningServer | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    over: bool = False
    asked: int = 0
    """Requests that were made of any process so far."""

    def tell(self, server: RunningServer | None, *, over: bool = False) -> None:
        with self.changed:
            self.server, self.over = server, over
            self.changed.notify_all()

    def wait(self) -> RunningServer:
        """The process that serves, once there is one."""
        with self.changed:
            self.changed.wait_for(lambda: self.server is not None, 120)
            assert self.server is not None
            return self.server

    def wait_until_asked(self, count: int) -> None:
        """Until so many more requests have been made; the last of them is not answered yet, however
        slow the machine is."""
        with self.changed:
            wanted = self.asked + count
            assert self.changed.wait_for(lambda: self.asked >= wanted, 120), "nobody asks any more"

    def note_asked(self) -> None:
        with self.changed:
            self.asked += 1
            self.changed.notify_all()


class Caller:
    """Somebody's client, on one connection as long as it lasts; for one thread."""

    def __init__(self, where: Where, token: str) -> None:
        self.token = token
        self.repeated = 0
        """How often something was asked again."""
        self._where = where
        self._connection: http.client.HTTPConnection | None = None
        self._server: RunningServer | None = None

    def until_answered(self, method: str, path: str, body: Any) -> Reply:
        """The answer, which has to be 200."""
        while True:
            server = self._where.wait()
            if server is not self._server or self._connection is None:
                self._server, self._connection = server, server.connect()
            self._where.note_asked()
            try:
                reply = exchange(self._connection, method, path, body, token=self.token)
            except (OSError, http.client.HTTPException):
                self._connection = None
                self.repeated += 1
                time.sleep(0.01)
                continue
            assert reply.status == 200, (method, path, reply.status, reply.body)
            return reply
