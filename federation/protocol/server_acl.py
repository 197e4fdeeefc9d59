"""Server access control lists: which servers may take part in a room.

An ACL applies when another server sends a request about the room, or a transaction with events,
typing or receipts of the room. The authorization rules for events ignore it. A field of the wrong
type counts as absent, and an entry that is no string is ignored, so that one malformed value does
not disable the rest of the list.

spec: client-server-api#mroomserver_acl, appendices#glob-style-matching
"""

from collections.abc import Mapping
from typing import Any

from federation.protocol.globs import Globs
from federation.protocol.ids import host_of, is_ip_literal


class ServerACL:
    """An evaluated m.room.server_acl. Made once for each event of that type, then used often."""

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
