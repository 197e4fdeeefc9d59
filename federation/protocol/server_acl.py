"""Server access control lists: which servers may take part in a room.

They act on the network layer only: on who may make requests about a room and whose transactions'
parts are taken in, never on authorization. A malformed list must not open the room nor lock out
everybody by accident, so each field that is not of its type counts as absent, and each entry that
is no string is passed over.

spec: client-server-api#mroomserver_acl, appendices#glob-style-matching
"""

from collections.abc import Mapping
from typing import Any

from federation.protocol.globs import Globs
from federation.protocol.ids import host_of, is_ip_literal


class ServerACL:
    """An evaluated m.room.server_acl. Made once for each event of that type, then asked often."""

    __slots__ = ("_allow", "_allow_ip_literals", "_deny")

    def __init__(self, content: Mapping[str, Any]) -> None:
        """`content` is that of the event, whatever is in it."""
        allow_ip_literals = content.get("allow_ip_literals")
        self._allow_ip_literals = allow_ip_literals if isinstance(allow_ip_literals, bool) else True
        self._allow = Globs(content.get("allow"))
        self._deny = Globs(content.get("deny"))

    def allows(self, server_name: str) -> bool:
        """Whether a server may take part. Its port does not count, nor does case."""
        if not self._allow_ip_literals and is_ip_literal(server_name):
            return False
        host = host_of(server_name).lower()
        return not self._deny.match(host) and self._allow.match(host)
