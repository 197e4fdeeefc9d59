"""What is said of a file when it is sent: its type, its name, whether a browser may show it, what
it may do there.

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
"""What no browser runs as a program when it is told so. Everything else is for saving."""
MAX_TYPE_LENGTH: Final = 255
MAX_NAME_BYTES: Final = 1024

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = rf'[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|"[ !#-\[\]-~]*")'
_TYPE: Final = re.compile(rf"{_TOKEN}/{_TOKEN}(?:{_PARAMETER})*")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()-]*")

_SAFETY: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; "
        "object-src 'self';"
    ),
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Robots-Tag": "noindex, nofollow, noarchive, noimageindex",
}


def parse_type(claimed: str) -> str:
    """The type that a client says its file has; `application/octet-stream` for none, and for what
    is no type."""
    claimed = claimed.strip()
    if len(claimed) > MAX_TYPE_LENGTH or not _TYPE.fullmatch(claimed):
        return UNKNOWN_TYPE
    return claimed


def parse_name(name: str) -> str | None:
    """A file's name; None for an empty one. Raises `InvalidParam`."""
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidParam(f"A file's name may have {MAX_NAME_BYTES} bytes at most")
    return name or None


def file_headers(type: str, name: str | None, *, public: bool) -> Mapping[str, str]:
    """The headers of a file. `public`: whoever knows the address may have it, so a shared cache may
    keep it."""
    essence = type.partition(";")[0].strip().lower()
    disposition = "inline" if essence in INLINE_TYPES else "attachment"
    if essence.startswith("text/") and "charset" not in type.lower():
        type += "; charset=utf-8"
    return {
        "Content-Type": type,
        "Content-Disposition": disposition if name is None else f"{disposition}; {_name(name)}",
        # The bytes behind an address never change; that they may be taken away is why it is not for
        # ever.
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
