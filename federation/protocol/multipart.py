"""Parses the `multipart/mixed` response by which another server sends a file, without any I/O.

The response has two parts. The first part is JSON about the file. In the current specification it
is an empty object, so it is skipped. The second part is the file, or it is empty and has a
`Location` header with the URL of the file. A response of any other form is refused. The response is
parsed piece by piece as it arrives, and at most some kilobytes are buffered.

spec: server-server-api#get_matrixfederationv1mediadownloadmediaid; RFC 2046 section 5.1
"""

import re
from collections.abc import Callable, Mapping
from email.message import Message
from email.utils import collapse_rfc2231_value
from enum import Enum
from typing import Final

MAX_HEAD_BYTES: Final = 16 << 10
"""Length of the headers of a part."""
MAX_METADATA_BYTES: Final = 64 << 10
"""Length of the first part, including anything before it."""
MAX_PADDING_BYTES: Final = 256
"""Length of the blanks after a boundary."""
MAX_PARSED_LETTERS: Final = 2048
"""Length of a header whose parameters are parsed. The time of the standard library's parser grows
with the square of the length, and blocks the server: a second for the longest header, a millisecond
or two for this length. A file name of 255 bytes fits, even twice and percent-encoded."""
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_FIELD_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class BadMultipart(ValueError):
    """The answer does not have the form of a file with its metadata."""


class _At(Enum):
    PREAMBLE = 0
    DELIMITER = 1
    HEAD = 2
    METADATA = 3
    FILE = 4
    END = 5


class MultipartFile:
    """Reads one answer. `begin` is called with the headers of the file, then `give` with its
    bytes."""

    def __init__(
        self,
        content_type: str,
        begin: Callable[[Mapping[str, str]], None],
        give: Callable[[bytes], None],
    ) -> None:
        """`content_type`: of the whole answer. Raises BadMultipart. Names of headers are in lower
        case."""
        self._delimiter = b"\r\n--" + _boundary_of(content_type)
        self._begin = begin
        self._give = give
        self._at = _At.PREAMBLE
        self._parts = 0
        self._metadata_bytes = 0
        self._skipped = 0
        self._held = b"\r\n"  # the first boundary has none before it

    @property
    def is_whole(self) -> bool:
        """Whether the last boundary has come."""
        return self._at is _At.END

    def take(self, data: bytes) -> None:
        """The next piece. Raises BadMultipart, and what `begin` and `give` raise."""
        if self._at is _At.END:
            return  # what comes after the last boundary counts for nothing
        self._held += data
        while self._step():
            pass

    def _step(self) -> bool:
        """Whether there may be more to do with what is held."""
        match self._at:
            case _At.DELIMITER:
                return self._after_delimiter()
            case _At.HEAD:
                return self._head()
            case _At.END:
                return False
        found = self._held.find(self._delimiter)
        # What may be the beginning of a boundary is kept for the next piece
        end = found if found >= 0 else max(0, len(self._held) - len(self._delimiter) + 1)
        skipped = min(self._skipped, end)
        content, self._held = self._held[skipped:end], self._held[end:]
        self._skipped -= skipped
        self._pass(content)
        if found < 0:
            return False
        self._skipped = 0
        self._held = self._held[len(self._delimiter) :]
        self._at = _At.DELIMITER
        return True

    def _pass(self, content: bytes) -> None:
        if self._at is _At.FILE:
            if content:
                self._give(content)
            return
        self._metadata_bytes += len(content)
        if self._metadata_bytes > MAX_METADATA_BYTES:
            raise BadMultipart("what comes before the file is too long")

    def _after_delimiter(self) -> bool:
        if self._held.startswith(b"--"):
            if self._parts != 2:
                raise BadMultipart("it ends before the file")
            self._at, self._held = _At.END, b""
            return False
        line, end, _ = self._held.partition(b"\r\n")
        if (
            line.rstrip(b"\r").strip(b" \t-" if not end else b" \t")
            or len(line) > MAX_PADDING_BYTES
        ):
            raise BadMultipart("something follows a boundary on its line")
        if not end:
            return False
        if self._parts == 2:
            raise BadMultipart("it has more than two parts")
        self._parts += 1
        self._held = self._held[
            len(line) :
        ]  # with the line's end, which ends the headers where there are none
        self._at = _At.HEAD
        return True

    def _head(self) -> bool:
        end = self._held.find(b"\r\n\r\n")
        if max(end, 0 if end >= 0 else len(self._held)) > MAX_HEAD_BYTES:
            raise BadMultipart("the headers of a part are too long")
        if end < 0:
            return False
        headers = _read_headers(self._held[2:end]) if end else {}
        # The empty line may be the one before the boundary that ends an empty part, so it is looked
        # through too
        self._held, self._skipped = self._held[end + 2 :], 2
        if self._parts == 1:
            self._at = _At.METADATA
        else:
            self._at = _At.FILE
            self._begin(headers)
        return True


def name_in(disposition: str) -> str | None:
    """The file's name in a `Content-Disposition`, if there is one that can be read. RFC 6266, RFC
    2231."""
    if len(disposition) > MAX_PARSED_LETTERS:
        return None
    message = Message()
    try:
        message["Content-Disposition"] = disposition
        params = message.get_params([], "Content-Disposition")
        found: list[object] = [value for key, value in params if key.lower() == "filename"]
        encoded = [
            each for each in found if isinstance(each, tuple)
        ]  # which comes before one that is not
        if not found:
            return None
        name = collapse_rfc2231_value(encoded[0]) if encoded else _as_utf8(str(found[0]))
        name.encode()
    except (ValueError, LookupError, TypeError, AttributeError):
        return None  # the standard library's reader stumbles over some of what is sent
    return "".join(letter for letter in name if letter.isprintable()).strip() or None


def _as_utf8(text: str) -> str:
    """Headers are read as Latin-1; some servers send UTF-8."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _boundary_of(content_type: str) -> bytes:
    if len(content_type) > MAX_PARSED_LETTERS:
        raise BadMultipart("its type is too long")
    message = Message()
    try:
        message["Content-Type"] = content_type
        boundary = message.get_boundary()
        essence = message.get_content_type()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadMultipart("its type cannot be read") from error
    if essence != "multipart/mixed" or boundary is None or not _BOUNDARY.fullmatch(boundary):
        raise BadMultipart("it is no multipart/mixed with a boundary")
    return boundary.encode("ascii")


def _read_headers(block: bytes) -> Mapping[str, str]:
    headers = {}
    for line in block.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or not _FIELD_NAME.fullmatch(name) or any(each in value for each in b"\r\n\0"):
            raise BadMultipart("a header of a part cannot be read")
        headers[name.decode("ascii").lower()] = value.strip(b" \t").decode("latin-1")
    return headers
