"""What a file is as it begins, where what its sender says is obviously wrong.

A type that a browser would show inline has to be what the file is: else it is
`application/octet-stream`, as for an encrypted file that is said to be a picture. HTML is not told
as plain text. All else stays as it was said.

spec: client-server-api#get_matrixclientv1mediadownloadservernamemediaid (the bounds of a reasonable
`Content-Type`)
"""

import re
from typing import Final, Protocol

import filetype

from homeserver.services.media.headers import INLINE_TYPES, UNKNOWN_TYPE

HEAD_BYTES: Final = 512

_PICTURE: Final = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|....ftyp(?:avi[fs]|mi[fa][1f]|msf1)",
    re.DOTALL,
)
"""How those pictures begin that are shown inline. One that is said to be another of them harms
nobody."""
_HTML: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:!--|(?:!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p)[\s>/])",
    re.IGNORECASE,
)
"""How pages begin. source:
https://mimesniff.spec.whatwg.org/#identifying-a-resource-with-an-unknown-mime-type"""
_XML: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|svg)\b", re.IGNORECASE)
_PLAYED: Final = ("video", "audio")


class Readable(Protocol):
    """Bytes that were received."""

    def read(self, size: int = -1, /) -> bytes:
        """The next ones, at most so many."""
        ...

    def seek(self, offset: int, /) -> int:
        """Where to go on."""
        ...


def settle_type(said: str, file: Readable) -> str:
    """The type that is told of a file that was said to be of this one. The file is left at its
    start."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return said if is_plausible(said, head) else _other(said)


def is_plausible(said: str, head: bytes) -> bool:
    """Whether a file that begins so may be what is said of it."""
    essence = said.partition(";")[0].strip().lower()
    kind = essence.partition("/")[0]
    if essence == "text/plain":
        return _HTML.match(head) is None
    if essence not in INLINE_TYPES:
        return True
    if kind == "image":
        return _PICTURE.match(head) is not None
    if kind in _PLAYED:
        # There are many ways to begin a film or a sound: only what is known to be something else is
        # not one
        found = filetype.guess_mime(head) or ""
        is_text = _HTML.match(head) or _XML.match(head)
        return not is_text and (not found or found.startswith(_PLAYED))
    return True


def _other(said: str) -> str:
    return "text/html" if said.lower().startswith("text/plain") else UNKNOWN_TYPE
