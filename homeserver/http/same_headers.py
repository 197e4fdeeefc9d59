"""The headers of a connection's latest request, known again by their bytes: clients send the same with one request after the other, and
what was read once need not be read again.

Laws:
- Only what llhttp has read and found right is known; a request with it is what llhttp would make of it.
- That is so for a request that is all there, and ends where what has come ends, in whose headers nothing is said about the connection or
  the form of the body. All others are llhttp's.
- What is kept is little, for it is kept as long as the connection is there.
"""

import re
from typing import Final

from homeserver.http.head import Head

_REQUEST_LINE: Final = re.compile(rb"(GET|POST|PUT|DELETE) (/[A-Za-z0-9/?&=%._~!$'()*+,;:@-]*) HTTP/1\.1")
_METHODS: Final = {name.encode(): name for name in ("GET", "POST", "PUT", "DELETE")}
_SPECIAL: Final = frozenset({b"connection", b"expect", b"transfer-encoding", b"upgrade"})
_END: Final = b"\r\n\r\n"
LONGEST_KEPT: Final = 4096
"""In bytes, with the first line: usual ones are a fourth of that."""


class SameHeaders:
    """Of one connection."""

    __slots__ = ("_bytes", "_head", "_length")

    def __init__(self) -> None:
        self._bytes = b""
        """All after the first line, with the empty line at the end; empty: nothing is known."""
        self._head: Head | None = None
        self._length = 0
        """Of the body."""

    def learn(self, data: bytes, head: Head) -> None:
        """llhttp has made this of what has come, from its first byte on; all that has begun in it is whole."""
        begin, end = data.find(b"\r\n") + 2, data.find(_END) + len(_END)
        length = int(head.last.get(b"content-length", b"0"))
        if (
            len(data) - end != length
            or end > LONGEST_KEPT
            or not (head.keep_alive and head.takes_chunks)
            or not _SPECIAL.isdisjoint(head.last)
        ):
            return
        known = data[begin:end]
        # each line is a header of its own, and the first line none
        if known.count(b"\r\n") == len(head.lines) + 1 and _REQUEST_LINE.fullmatch(data, 0, begin - 2):
            self._bytes, self._head, self._length = known, head, length

    def read(self, data: bytes, most: int) -> tuple[Head, bytes] | None:
        """The request and its body, if it has the same headers. `most`: how many bytes may be before the body."""
        head, known = self._head, self._bytes
        if head is None:
            return None
        begin = data.find(b"\r\n") + 2
        end = begin + len(known)
        if len(data) - end != self._length or end > most or not data.startswith(known, begin):
            return None
        line = _REQUEST_LINE.fullmatch(data, 0, begin - 2)
        if line is None:
            return None
        method, uri = line.groups()
        return Head(_METHODS[method], uri, True, True, head.lines, head.last), data[end:]
