"""HTTP headers of responses with files: type, name, whether a browser may display the file, and
security headers such as `Content-Security-Policy`.

spec: client-server-api#serving-inline-content, client-server-api#content-repository
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from federation.protocol.errors import InvalidParam

UNKNOWN_TYPE: Final = "application/octet-stream"
INLINE_TYPES: Final = frozenset(
    {
        "text/css",
        "text/plain",
        "text/csv",
        "application/json",
        "application/ld+json",
        "image/jpeg",
        "image/gif",
        "image/png",
        "image/apng",
        "image/webp",
        "image/avif",
        "video/mp4",
        "video/webm",
        "video/ogg",
        "video/quicktime",
        "audio/mp4",
        "audio/webm",
        "audio/aac",
        "audio/mpeg",
        "audio/ogg",
        "audio/wave",
        "audio/wav",
        "audio/x-wav",
        "audio/x-pn-wav",
        "audio/flac",
        "audio/x-flac",
    }
)
"""Types that no browser executes if the response names the type. All others are attachments."""
MAX_TYPE_LENGTH: Final = 255
MAX_NAME_BYTES: Final = 1024

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = rf'[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|"[ !#-\[\]-~]*")'
_TYPE: Final = re.compile(rf"{_TOKEN}/{_TOKEN}(?:{_PARAMETER})*")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()-]*")

_SAFETY: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; "
        "style-src 'unsafe-inline'; "
        "object-src 'self';"
    ),
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Robots-Tag": "noindex, nofollow, noarchive, noimageindex",
}


def parse_type(claimed: str) -> str:
    """Return the type that a client claims; `application/octet-stream` for an empty or invalid
    one."""
    claimed = claimed.strip()
    if len(claimed) > MAX_TYPE_LENGTH or not _TYPE.fullmatch(claimed):
        return UNKNOWN_TYPE
    return claimed


def parse_name(name: str) -> str | None:
    """Return the name of a file; None for an empty one. Raises `InvalidParam`."""
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidParam(f"The name of a file may have at most {MAX_NAME_BYTES} bytes")
    return name or None


def file_headers(type: str, name: str | None, *, public: bool) -> Mapping[str, str]:
    """Return the headers of a file. `public`: no access token is needed, so shared caches may store
    it."""
    essence = type.partition(";")[0].strip().lower()
    disposition = "inline" if essence in INLINE_TYPES else "attachment"
    if essence.startswith("text/") and "charset" not in type.lower():
        type += "; charset=utf-8"
    return {
        "Content-Type": type,
        "Content-Disposition": disposition if name is None else f"{disposition}; {_name(name)}",
        # the bytes of a content URI never change, but the file may be deleted: so not forever
        "Cache-Control": f"{'public' if public else 'private'}, max-age=86400, immutable",
        **_SAFETY,
    }


def _name(name: str) -> str:
    if _PLAIN_NAME.fullmatch(name):
        return (
            f'filename="{name}"'
            if " " in name or "(" in name or ")" in name
            else f"filename={name}"
        )
    return f"filename*=utf-8''{quote(name, safe='')}"
