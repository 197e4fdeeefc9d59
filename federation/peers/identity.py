"""The name of this server and its signing key."""

import msgspec

from federation.protocol.ids import ServerName
from federation.protocol.signing import SigningKey


class ServerIdentity(msgspec.Struct, frozen=True):
    """The identity of this server, for code that signs events or distinguishes local from remote
    users."""

    server_name: ServerName
    key: SigningKey

    def is_local(self, identifier: str) -> bool:
        """Return whether a user ID or alias belongs to this server."""
        return identifier.partition(":")[2] == self.server_name
