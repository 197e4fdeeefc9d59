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
        self._allow = _compile(content.get("allow"))
        self._deny = _compile(content.get("deny"))

    def allows(self, server_name: str) -> bool:
        """Whether a server may take part. Its port does not count, nor does case."""
        if not self._allow_ip_literals and is_ip_literal(server_name):
            return False
        host = host_of(server_name).lower()
        return not _matches(self._deny, host) and _matches(self._allow, host)


def _compile(globs: object) -> list[tuple[str, ...] | str]:
    """Each glob as the string that it stands for, or as its parts between `*`."""
    if not isinstance(globs, list):
        return []
    compiled: list[tuple[str, ...] | str] = []
    for glob in globs:
        if isinstance(glob, str):
            # Case is taken away here and from the host, so that it costs nothing at each question.
            glob = _STARS.sub("*", glob.lower())
            compiled.append(tuple(glob.split("*")) if "*" in glob or "?" in glob else glob)
    return compiled


_STARS = re.compile(r"\*+")


def _matches(globs: list[tuple[str, ...] | str], host: str) -> bool:
    return any(glob == host if isinstance(glob, str) else _matches_parts(glob, host) for glob in globs)


def _matches_parts(parts: tuple[str, ...], host: str) -> bool:
    """Whether a glob matches. Its parts are found from left to right, each as early as can be: no backtracking.

    A regular expression with many `.*` takes time without bound on a hostile list; this takes at most the product of the
    two lengths.
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
