"""With whom this server talks. Consulted everywhere a server name comes in or is to be contacted."""

from collections.abc import Collection

from federation.protocol.errors import Forbidden
from federation.protocol.ids import ServerName


class Policy:
    """The policy of the configuration."""

    def __init__(self, allowed: Collection[str] | None) -> None:
        """`allowed`: the only servers to talk with, None for all."""
        self._allowed = None if allowed is None else frozenset(name.lower() for name in allowed)

    def allows(self, server: ServerName) -> bool:
        """Whether this server talks with that one at all."""
        return self._allowed is None or server.lower() in self._allowed

    def check_destination(self, server: ServerName) -> None:
        """Raises Forbidden, with a text for the person who wanted to reach somebody there."""
        if not self.allows(server):
            raise Forbidden(f"The policy of this server does not allow federation with {server}")

    def check_origin(self, server: ServerName) -> None:
        """Raises Forbidden, with a text for the server that asks."""
        if not self.allows(server):
            raise Forbidden("The policy of this server does not allow federation with you")
