"""The headers of a connection's latest request, known again by their bytes: clients send the same
with one request after the other, but for how long the body is, and what was read once need not be
read again.

Laws:
- Only what llhttp has read and found right is known; a request with it is what llhttp would make of
  it.
- That is so for a request whose headers are all there, and after which no other has come, in whose
  headers nothing is said about the connection or the form of the body. All others are llhttp's.
- Where one request after the other has other headers, as from a proxy, hardly any are kept.
- What is kept is little, for it is kept as long as the connection is there.
"""

from typing import Final

from homeserver.http.head import USUAL, Head

_METHODS: Final = {name.encode(): name for name in ("GET", "POST", "PUT", "DELETE")}
_VERSION: Final = b" HTTP/1.1"
_SPECIAL: Final = frozenset({b"connection", b"expect", b"transfer-encoding", b"upgrade"})
_LENGTH: Final = b"content-length"
_END: Final = b"\r\n\r\n"
MOST_DIGITS: Final = 15
"""Of a length: longer ones are llhttp's."""
MOST_IN_VAIN: Final = 8
"""So many headers in a row that were other than those before; then only each so-many-th are looked
at."""
LOOKED_AT: Final = 64
LONGEST_KEPT: Final = 4096
"""In bytes, with the first line: usual ones are a fourth of that."""


class SameHeaders:
    """Of one connection."""

    __slots__ = ("_after", "_before", "_head", "_in_vain", "_length_at")

    def __init__(self) -> None:
        self._head: Head | None = None
        """None: nothing is known."""
        self._before = b""
        """All after the first line, with the empty line at the end; or what is before the length of
        the body."""
        self._after = b""
        """What is after that length."""
        self._length_at = -1
        """Which of the headers tells it; -1: none does."""
        self._in_vain = 0

    def learn(self, data: bytes, head: Head) -> None:
        """llhttp has made this of what has come, from its first byte on; no other request has begun
        in it."""
        in_vain = self._in_vain = self._in_vain + 1
        if in_vain > MOST_IN_VAIN and in_vain % LOOKED_AT:
            self._head = None
            return
        begin, end = data.find(b"\r\n") + 2, data.find(_END) + len(_END)
        last = head.last
        length = last.get(_LENGTH)
        if (
            len(data) - end > (0 if length is None else int(length))
            or end > LONGEST_KEPT
            or not (head.keep_alive and head.takes_chunks)
            or not _SPECIAL.isdisjoint(last)
        ):
            return
        known = data[begin:end]
        if known.count(b"\r\n") != len(head.lines) + 1:
            return  # else each line is a header of its own, and the first line none
        self._head, self._before, self._after, self._length_at = head, known, b"", -1
        if length is not None:
            lines = known.split(b"\r\n")
            at = [name for name, _ in head.lines].index(_LENGTH)
            name, colon, value = lines[at].partition(b":")
            if value.strip(b" \t") != length:
                self._head = None
                return
            rest = value[value.index(length) + len(length) :]
            written = b"\r\n".join([*lines[:at], name + colon + value[: value.index(length)]])
            self._before, self._length_at = written, at
            self._after = b"\r\n".join([rest, *lines[at + 1 :]])
        again = self.read(data, end)
        self._in_vain = in_vain
        if again is None or again[0] != head:
            # what it would be taken for is something else, as where its first line is unusual
            self._head = None

    def read(self, data: bytes, most: int) -> tuple[Head, int, bytes] | None:
        """The request, how long its body is, and what has come of it, if it has the same headers.
        `most`: how many bytes may be before the body."""
        known = self._head
        if known is None:
            return None
        begin = data.find(b"\r\n") + 2
        if not data.startswith(self._before, begin):
            return None
        end = begin + len(self._before)
        if self._length_at < 0:
            length, lines, last = 0, known.lines, known.last
        else:
            written = data[end : data.find(b"\r", end, end + MOST_DIGITS + 1)]
            if not written.isdigit() or not data.startswith(self._after, end + len(written)):
                return None
            end += len(written) + len(self._after)
            length, lines, last = int(written), known.lines, known.last
            if written != last[_LENGTH]:
                lines = [*lines]
                lines[self._length_at] = (_LENGTH, written)
                last = {**last, _LENGTH: written}
        if len(data) - end > length or end > most:
            return None
        space, version = data.find(b" "), begin - 2 - len(_VERSION)
        method, uri = _METHODS.get(data[:space]), data[space + 1 : version]
        if (
            method is None
            or version <= space
            or not data.startswith(_VERSION, version)
            or not uri.startswith(b"/")
            or uri.translate(None, USUAL)
        ):
            return None
        self._in_vain = 0
        return Head(method, uri, True, True, lines, last, known.token), length, data[end:]
