"""Checks the type that a sender claims for a file, and replaces it if the file does not match.

The check uses the first bytes of the file. It covers plain text, and the picture, video and audio
types that browsers display inline. A picture type stays if the file begins like a picture. A video
or audio type stays unless the file is known to be something else. Otherwise the type becomes
`application/octet-stream`, for example for an encrypted file that is claimed to be a picture. Plain
text that begins like HTML becomes `text/html`, which is served as an attachment. All other types
stay as claimed.

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
"""The first bytes of pictures that are displayed inline. A wrong type among these does no harm."""
_HTML: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:!--|(?:!doctype html|html|head|script|iframe|h1|div|font|table"
    rb"|a|style|title|b|body|br|p)[\s>/])",
    re.IGNORECASE,
)
"""The first bytes of HTML pages. source:
https://mimesniff.spec.whatwg.org/#identifying-a-resource-with-an-unknown-mime-type"""
_XML: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|svg)\b", re.IGNORECASE)
_AUDIO_VIDEO: Final = ("video", "audio")


class ReadableFile(Protocol):
    """Received bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Read the next bytes, at most `size`."""
        ...

    def seek(self, offset: int, /) -> int:
        """Set the offset of the next read."""
        ...


def settle_type(claimed: str, file: ReadableFile) -> str:
    """Return the type to serve for a file with this claimed type. The file is left at its start."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return claimed if is_plausible(claimed, head) else _fallback_type(claimed)


def is_plausible(claimed: str, head: bytes) -> bool:
    """Whether a file with these first bytes may have the claimed type."""
    essence = claimed.partition(";")[0].strip().lower()
    kind = essence.partition("/")[0]
    if essence == "text/plain":
        return _HTML.match(head) is None
    if essence not in INLINE_TYPES:
        return True
    if kind == "image":
        return _PICTURE.match(head) is not None
    if kind in _AUDIO_VIDEO:
        # videos and audio have many formats: only what is known to be something else is refused
        found = filetype.guess_mime(head) or ""
        is_text = _HTML.match(head) or _XML.match(head)
        return not is_text and (not found or found.startswith(_AUDIO_VIDEO))
    return True


def _fallback_type(claimed: str) -> str:
    return "text/html" if claimed.lower().startswith("text/plain") else UNKNOWN_TYPE
