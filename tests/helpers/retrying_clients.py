"""Clients of a server that is killed at any time. They repeat each request that got no response."""

import http.client
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.server_process import Reply, RunningServer, exchange


@dataclass
class CurrentServer:
    """The current server process, or None while none runs. Threads wait for changes of it."""

    server: RunningServer | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    over: bool = False
    asked: int = 0
    """The number of requests so far, over all processes."""

    def set_server(self, server: RunningServer | None, *, over: bool = False) -> None:
        with self.changed:
            self.server, self.over = server, over
            self.changed.notify_all()

    def wait(self) -> RunningServer:
        """Wait for a server process and return it."""
        with self.changed:
            self.changed.wait_for(lambda: self.server is not None, 120)
            assert self.server is not None
            return self.server

    def wait_until_asked(self, count: int) -> None:
        """Wait until `count` more requests have been sent. The last one is not answered yet,
        however slow the machine is."""
        with self.changed:
            wanted = self.asked + count
            assert self.changed.wait_for(lambda: self.asked >= wanted, 120), (
                "no client sends requests"
            )

    def note_asked(self) -> None:
        with self.changed:
            self.asked += 1
            self.changed.notify_all()


class RetryingClient:
    """A client with one persistent connection, for one thread."""

    def __init__(self, where: CurrentServer, token: str) -> None:
        self.token = token
        self.repeated = 0
        """The number of repeated requests."""
        self._where = where
        self._connection: http.client.HTTPConnection | None = None
        self._server: RunningServer | None = None

    def until_answered(self, method: str, path: str, body: Any) -> Reply:
        """Send a request until it is answered. Return the response, whose status must be 200."""
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
