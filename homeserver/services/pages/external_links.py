"""Addresses elsewhere that pages lead people to: which may be, and what people are told that they
are.

Laws:
- An address is taken only where every browser reads it as this server does: so the host that a page
  names is the host that it leads to.

What may be said besides of the addresses of OAuth clients is in `oauth/addresses.py`; paths of this
server are in `local_paths.py`.

spec: https://url.spec.whatwg.org/#url-parsing
"""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

LONGEST: Final = 4096
_WRONG: Final = re.compile(r"[^\x21-\x7e]|\\")
"""Browsers skip over tabs and line breaks, take a backslash for a slash, and have many ways to
write a letter."""
_HOST: Final = re.compile(r"[a-z0-9_](?:[a-z0-9._-]{0,252}[a-z0-9_.])?|[0-9a-f:]+:[0-9a-f.]*")
_WEB: Final = ("http", "https")
_NOT_ELSEWHERE: Final = frozenset(
    {"javascript", "data", "vbscript", "file", "blob", "about", "view-source", "filesystem"}
)
"""Schemes under which nothing is elsewhere: a browser would run or show it as ours."""


def read_link(text: str) -> SplitResult | None:
    """The parts of an address of the web, or of an app that has a scheme of its own; None for what
    may not be led to."""
    if len(text) > LONGEST or _WRONG.search(text):
        return None
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    if not parts.scheme or parts.scheme in _NOT_ELSEWHERE:
        return None
    if parts.scheme in _WEB and ("@" in parts.netloc or not _HOST.fullmatch(parts.hostname or "")):
        return None
    return parts


def read_web_link(text: str) -> SplitResult | None:
    """As `read_link`; an address of the web only."""
    parts = read_link(text)
    return parts if parts is not None and parts.scheme in _WEB else None


def shown_link(text: str) -> str:
    """What people know an address by: its host, with the port where it has one, or the scheme of an
    app; empty for what may not be led to."""
    parts = read_link(text)
    if parts is None:
        return ""
    return parts.netloc if parts.scheme in _WEB else f"{parts.scheme}:"
