"""Simulated users who long-poll /sync and record when a message reaches them."""

from collections.abc import Sequence
from time import perf_counter

from twisted.internet.defer import Deferred, DeferredList

from bench_parts.client import Client, User
from bench_parts.connection import Connection

WAIT_MS = 120_000


class Pollers:
    """Long-polling users. Call `prepare` once, `start`, then `deliver` for each message, and
    `stop`."""

    def __init__(self, client: Client, users: Sequence[User]) -> None:
        self._client = client
        self._users = users
        self._since: list[str] = []
        self._connections: Sequence[Connection] = ()
        self._polls: list[Deferred[None]] = []
        self._has_stopped = False
        self._marker = b""
        self._arrived: dict[int, float] = {}
        self._all_arrived: Deferred[None] = Deferred()

    async def prepare(self, connection: Connection) -> None:
        """Run the first /sync of each user."""
        self._since = [(await self._client.sync(connection, user))[0] for user in self._users]

    def start(self, connections: Sequence[Connection]) -> None:
        """Start to poll, each user on their own connection."""
        self._connections = connections
        self._polls = [
            Deferred.fromCoroutine(self._poll(number)) for number in range(len(self._users))
        ]

    async def deliver(
        self, connection: Connection, sender: User, room_id: str, marker: str
    ) -> Sequence[float]:
        """Send a message with this text. Return the seconds until each user received it, in
        ascending order."""
        self._marker = marker.encode()
        self._arrived = {}
        self._all_arrived = Deferred()
        started = perf_counter()
        await self._client.send(connection, sender, room_id, marker)
        await self._all_arrived
        return sorted(at - started for at in self._arrived.values())

    async def stop(self) -> None:
        """Close the connections."""
        self._has_stopped = True
        for connection in self._connections:
            connection.close()
        await DeferredList(self._polls)

    async def _poll(self, number: int) -> None:
        connection = self._connections[number]
        while True:
            try:
                since, answer = await self._client.sync(
                    connection, self._users[number], self._since[number], timeout=WAIT_MS
                )
            except ConnectionError:
                if self._has_stopped:
                    return
                raise
            self._since[number] = since
            if self._marker and self._marker in answer and number not in self._arrived:
                self._arrived[number] = connection.answered_at
                if len(self._arrived) == len(self._users):
                    self._all_arrived.callback(None)
