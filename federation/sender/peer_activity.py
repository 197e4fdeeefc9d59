"""Reports to the federation sender which servers have sent authenticated requests. If the sender
could not reach such a server before, it then retries the server."""

from typing import Protocol

from federation.api.request import Peer
from federation.sender.sender import FederationSender


class RequestAuthenticator(Protocol):
    """Authenticates requests of other servers."""

    def check_head(self, authorization: list[str], uri: str) -> None: ...

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer: ...


class PeerActivityRecorder:
    """Authenticates requests with another object, and reports each remote server to the sender."""

    def __init__(self, *, checker: RequestAuthenticator, sender: FederationSender) -> None:
        self._checker = checker
        self._sender = sender

    def check_head(self, authorization: list[str], uri: str) -> None:
        """Check the headers. Raises the errors of the wrapped checker."""
        self._checker.check_head(authorization, uri)

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer:
        """Return the peer. Raises the errors of the wrapped checker."""
        peer = await self._checker.get_peer(authorization, method, uri, body, address)
        self._sender.record_activity(peer.server_name)
        return peer
