"""The other servers that this one sends to, as administrators see them, and try them anew."""

from collections.abc import Sequence

from federation.policy import Policy
from federation.protocol.errors import NotFound
from federation.protocol.ids import ServerName
from federation.sender.sender import Sender
from storage.destination_lists import DestinationListStore, DestinationRoom, DestinationSummary, Order


class Destinations:
    """What is known of them."""

    def __init__(self, store: DestinationListStore, sender: Sender, policy: Policy) -> None:
        self._store = store
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
        """Why this server does not talk with that one; None where it does, be it that refusals are only simulated."""
        return None if self._policy.rules.is_simulation else self._policy.find_refusal(server)

    async def get_rooms(
        self, server: ServerName, backwards: bool, offset: int, limit: int
    ) -> tuple[Sequence[DestinationRoom], int]:
        """A page of its rooms; and how many there are. Raises NotFound."""
        await self.get(server)
        return await self._store.get_rooms(server, backwards, offset, limit)

    async def do_try_now(self, server: ServerName) -> None:
        """Try a server that could not be reached, as if it had just spoken to us for the first time. Raises NotFound."""
        await self.get(server)
        self._sender.try_now(server)
        await self._sender.pass_on()
