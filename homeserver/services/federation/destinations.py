"""Federation destinations: administrators list and retry them, and jobs delete expired data.

Laws:
- To-device messages for a server are deleted when it has been unreachable for `DEAD_DAYS`. If it
  shares no room with us, they are deleted after `UNKNOWN_SERVER_DAYS`: a client may have invented
  the server's name.
- Other data for an unreachable server is kept for as long as the server shares a room with us. If
  it shares none, the data is deleted when the server has been unreachable for `DEAD_DAYS`.
- If a server shares no room with us and no data is pending for it, its row in the table
  `destinations` is deleted `QUIET_DAYS` after the last attempt to reach it.
"""

from collections.abc import Callable, Sequence
from typing import Final

from federation.peers.federation_policy import FederationPolicy
from federation.protocol.errors import NotFound
from federation.protocol.ids import ServerName
from federation.sender.sender import FederationSender
from storage.federation.destination_cleanup import CleanupAges, DestinationCleanupStore
from storage.federation.destination_lists import (
    DestinationListStore,
    DestinationRoom,
    DestinationSummary,
    Order,
)

UNKNOWN_SERVER_DAYS: Final = 7
"""After this time, to-device messages for an unreachable server that shares no room with us are
deleted."""
DEAD_DAYS: Final = 90
"""After this time, to-device messages for any unreachable server are deleted. If the server shares
no room with us, all other data for it is deleted too."""
QUIET_DAYS: Final = 1
"""The time after the last attempt. Then the row of a server is deleted if the server shares no room
with us and no data is pending for it."""
DAY_MS: Final = 24 * 3600 * 1000


class DestinationAdministration:
    """Reads, retries and removes destinations."""

    def __init__(
        self,
        *,
        store: DestinationListStore,
        cleanup: DestinationCleanupStore,
        sender: FederationSender,
        policy: FederationPolicy,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._cleanup = cleanup
        self._now_ms = now_ms
        self._sender = sender
        self._policy = policy

    async def get_page(
        self, term: str, order: Order, backwards: bool, offset: int, limit: int
    ) -> tuple[Sequence[DestinationSummary], int]:
        """Return a page of destinations whose name contains `term`, and their total number."""
        return await self._store.get_page(term, order, backwards, offset, limit)

    async def get(self, server: ServerName) -> DestinationSummary:
        """Return the state of a destination. Raises NotFound."""
        found = await self._store.get_one(server)
        if found is None:
            raise NotFound(
                "This server shares no room with that one, and has nothing to send to it"
            )
        return found

    def find_refusal(self, server: ServerName) -> str | None:
        """Return why the policy blocks a server; None if it is allowed, or if the policy is only
        simulated."""
        return None if self._policy.rules.is_simulation else self._policy.find_refusal(server)

    async def get_rooms(
        self, server: ServerName, backwards: bool, offset: int, limit: int
    ) -> tuple[Sequence[DestinationRoom], int]:
        """Return a page of the rooms shared with a server, and their total number. Raises
        NotFound."""
        await self.get(server)
        return await self._store.get_rooms(server, backwards, offset, limit)

    async def do_try_now(self, server: ServerName) -> None:
        """Reset the back-off of a server and retry now. Raises NotFound."""
        await self.get(server)
        await self._sender.retry_now(server)

    async def do_remove_expired(self, limit: int) -> int:
        """Remove some of the expired to-device messages; return their number."""
        return await self._cleanup.remove_expired(self._ages(), limit)

    async def do_remove_forgotten(self, limit: int) -> int:
        """Remove some of the servers that share no room with us and have nothing pending; return
        their number. Only on the node that sends."""
        if not self._sender.is_sending:
            return 0
        removed = await self._cleanup.remove_unneeded(self._ages(), limit)
        for server in removed:
            self._sender.remove(ServerName(server))
        return len(removed)

    def _ages(self) -> CleanupAges:
        now = self._now_ms()
        return CleanupAges(
            now - DEAD_DAYS * DAY_MS, now - UNKNOWN_SERVER_DAYS * DAY_MS, now - QUIET_DAYS * DAY_MS
        )
