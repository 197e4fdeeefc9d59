"""Who this server is to others: its name, and the key that it signs with."""

import msgspec

from federation.protocol.ids import ServerName
from federation.protocol.signing import SigningKey


class ServerIdentity(msgspec.Struct, frozen=True):
    """Passed to whoever signs, or has to know whose users are ours."""

    server_name: ServerName
    key: SigningKey

    def is_local(self, identifier: str) -> bool:
        """Whether a user id or alias is of this server."""
        return identifier.partition(":")[2] == self.server_name
