"""Notices who speaks to us: a server that could not be reached and now asks something is there
again."""

from typing import Protocol

from federation.api.request import Peer
from federation.sender.sender import Sender


class Checker(Protocol):
    """Proves who sends a request."""

    def check_head(self, authorization: list[str], uri: str) -> None: ...

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer: ...


class HeardPeers:
    """Checks signatures as another does, and tells the sender of each peer."""

    def __init__(self, checker: Checker, sender: Sender) -> None:
        self._checker = checker
        self._sender = sender

    def check_head(self, authorization: list[str], uri: str) -> None:
        """Raises what the other raises."""
        self._checker.check_head(authorization, uri)

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer:
        """Raises what the other raises."""
        peer = await self._checker.get_peer(authorization, method, uri, body, address)
        self._sender.heard_from(peer.server_name)
        return peer
