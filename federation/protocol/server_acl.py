"""Server access control lists: which servers may take part in a room.

They act on the network layer only: on who may make requests about a room and whose transactions' parts are taken in,
never on authorization. A malformed list must not open the room nor lock out everybody by accident, so each field that
is not of its type counts as absent, and each entry that is no string is passed over.

spec: client-server-api#mroomserver_acl, appendices#glob-style-matching
"""

import re
from collections.abc import Mapping
from typing import Any

from federation.protocol.ids import host_of, is_ip_literal


class ServerACL:
    """An evaluated m.room.server_acl. Made once for each event of that type, then asked often."""

    __slots__ = ("_allow", "_allow_ip_literals", "_deny")

    def __init__(self, content: Mapping[str, Any]) -> None:
        """`content` is that of the event, whatever is in it."""
        allow_ip_literals = content.get("allow_ip_literals")
        self._allow_ip_literals = allow_ip_literals if isinstance(allow_ip_literals, bool) else True
        self._allow = _Globs(content.get("allow"))
        self._deny = _Globs(content.get("deny"))

    def allows(self, server_name: str) -> bool:
        """Whether a server may take part. Its port does not count, nor does case."""
        if not self._allow_ip_literals and is_ip_literal(server_name):
            return False
        host = host_of(server_name).lower()
        return not self._deny.match(host) and self._allow.match(host)


class _Globs:
    """A list of globs: those without wildcards in a set, the others as their parts between the `*`."""

    __slots__ = ("_exact", "_patterns")

    def __init__(self, globs: object) -> None:
        # Case is taken away here and from the host, so that it costs nothing at each question.
        texts = {glob.lower() for glob in globs if isinstance(glob, str)} if isinstance(globs, list) else set()
        wild = {text for text in texts if "*" in text or "?" in text}
        self._exact = texts - wild
        self._patterns = [tuple(_STARS.sub("*", text).split("*")) for text in wild]

    def match(self, host: str) -> bool:
        return host in self._exact or any(_matches_parts(parts, host) for parts in self._patterns)


_STARS = re.compile(r"\*+")


def _matches_parts(parts: tuple[str, ...], host: str) -> bool:
    """Whether a glob matches. Its parts are found from left to right, each as early as can be: no backtracking.

    A regular expression with many `.*` takes time without bound on a hostile list; this takes at most the product of
    the two lengths.
    """
    if len(parts) == 1:
        return len(host) == len(parts[0]) and _stands_at(parts[0], host, 0)
    first, *middle, last = parts
    end = len(host) - len(last)
    if end < len(first) or not _stands_at(first, host, 0) or not _stands_at(last, host, end):
        return False
    position = len(first)
    for part in middle:
        while position + len(part) <= end and not _stands_at(part, host, position):
            position += 1
        position += len(part)
        if position > end:
            return False
    return True


def _stands_at(part: str, host: str, position: int) -> bool:
    """Whether the part (with `?` for any character) stands at that place of the host."""
    if "?" not in part:
        return host.startswith(part, position)
    return all(
        wanted == "?" or wanted == found
        for wanted, found in zip(part, host[position : position + len(part)], strict=True)
    )
