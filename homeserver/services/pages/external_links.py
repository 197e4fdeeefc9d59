"""Checks external URLs that pages link or redirect to, and gives the text to show for them.

Law: a URL is accepted only if all browsers parse it as this server does, so the browser opens the
host that the page shows.

`oauth/redirect_uris.py` has the further rules for OAuth clients; `local_paths.py` has those for
paths of this server.

spec: https://url.spec.whatwg.org/#url-parsing
"""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

MAX_LENGTH: Final = 4096
_FORBIDDEN: Final = re.compile(r"[^\x21-\x7e]|\\")
"""Characters that browsers treat in their own way: they skip tabs and line breaks, read a backslash
as a slash, and map non-ASCII characters."""
_HOST: Final = re.compile(r"[a-z0-9_](?:[a-z0-9._-]{0,252}[a-z0-9_.])?|[0-9a-f:]+:[0-9a-f.]*")
_WEB: Final = ("http", "https")
_FORBIDDEN_SCHEMES: Final = frozenset(
    {"javascript", "data", "vbscript", "file", "blob", "about", "view-source", "filesystem"}
)
"""Schemes that are not external: a browser would run or show their content as ours."""


def parse_link(text: str) -> SplitResult | None:
    """Parse a web URL, or the URL of an app's own scheme; None if pages may not lead there."""
    if len(text) > MAX_LENGTH or _FORBIDDEN.search(text):
        return None
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    if not parts.scheme or parts.scheme in _FORBIDDEN_SCHEMES:
        return None
    if parts.scheme in _WEB and ("@" in parts.netloc or not _HOST.fullmatch(parts.hostname or "")):
        return None
    return parts


def parse_web_link(text: str) -> SplitResult | None:
    """Parse a link as `parse_link` does, but accept only web URLs."""
    parts = parse_link(text)
    return parts if parts is not None and parts.scheme in _WEB else None


def link_text(text: str) -> str:
    """Return the text to show for a URL: its host and port, or the scheme of an app; empty if pages
    may not lead there."""
    parts = parse_link(text)
    if parts is None:
        return ""
    return parts.netloc if parts.scheme in _WEB else f"{parts.scheme}:"
