"""The other servers that this one sends to, as administrators see them, and try them anew; and how
they are forgotten.

Law: what waits for a server that cannot be reached does so for a bounded time. A name that somebody
made up is tried for `STRANGERS_DAYS`, and leaves nothing behind.
"""

from collections.abc import Callable, Sequence
from typing import Final

from federation.peers.policy import Policy
from federation.protocol.errors import NotFound
from federation.protocol.ids import ServerName
from federation.sender.sender import Sender
from storage.federation.destination_lists import (
    DestinationListStore,
    DestinationRoom,
    DestinationSummary,
    Order,
)
from storage.federation.forgotten_destinations import Ages, ForgottenDestinationStore

STRANGERS_DAYS: Final = 7
"""How long messages to devices wait for a server that cannot be reached and shares no room with
us."""
DEAD_DAYS: Final = 90
"""How long they wait for any server that cannot be reached; and what else one has missed that
shares no room any more."""
QUIET_DAYS: Final = 1
"""How long after the last try it is remembered how such a server stands for which nothing waits."""
DAY_MS: Final = 24 * 3600 * 1000


class Destinations:
    """What is known of them."""

    def __init__(
        self,
        store: DestinationListStore,
        forgotten: ForgottenDestinationStore,
        sender: Sender,
        policy: Policy,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._forgotten = forgotten
        self._now_ms = now_ms
        self._sender = sender
        self._policy = policy

    async def get_page(
        self, term: str, order: Order, backwards: bool, offset: int, limit: int
    ) -> tuple[Sequence[DestinationSummary], int]:
        """A page of those whose name has `term` in it; and how many these are."""
        return await self._store.get_page(term, order, backwards, offset, limit)

    async def get(self, server: ServerName) -> DestinationSummary:
        """How one of them stands. Raises NotFound."""
        found = await self._store.get_one(server)
        if found is None:
            raise NotFound("This server shares no room with that one, and has nothing to tell it")
        return found

    def find_refusal(self, server: ServerName) -> str | None:
        """Why this server does not talk with that one; None where it does, be it that refusals are
        only simulated."""
        return None if self._policy.rules.is_simulation else self._policy.find_refusal(server)

    async def get_rooms(
        self, server: ServerName, backwards: bool, offset: int, limit: int
    ) -> tuple[Sequence[DestinationRoom], int]:
        """A page of its rooms; and how many there are. Raises NotFound."""
        await self.get(server)
        return await self._store.get_rooms(server, backwards, offset, limit)

    async def do_try_now(self, server: ServerName) -> None:
        """Try a server that could not be reached, as if it had just spoken to us for the first
        time. Raises NotFound."""
        await self.get(server)
        await self._sender.try_now(server)

    async def do_expire(self, limit: int) -> int:
        """Remove some of the messages to devices that have waited too long for a server; how
        many."""
        return await self._forgotten.remove_expired(self._ages(), limit)

    async def do_forget(self, limit: int) -> int:
        """Forget some of the servers that share no room with us and for which nothing waits; how
        many. The node that sends does it."""
        if not self._sender.is_sending:
            return 0
        gone = await self._forgotten.forget(self._ages(), limit)
        for server in gone:
            self._sender.forget(ServerName(server))
        return len(gone)

    def _ages(self) -> Ages:
        now = self._now_ms()
        return Ages(
            now - DEAD_DAYS * DAY_MS, now - STRANGERS_DAYS * DAY_MS, now - QUIET_DAYS * DAY_MS
        )
