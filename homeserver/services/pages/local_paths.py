"""Checks the path that a page redirects to, so that the redirect stays on this server."""

import re
from typing import Final

MAX_LENGTH: Final = 4000
_OWN_PATH: Final = re.compile(r"/(?:[^/\\\x00-\x20\x7f-\U0010ffff][^\\\x00-\x20\x7f-\U0010ffff]*)?")
"""Browsers read two leading slashes or backslashes as another host, and skip tabs and line
breaks."""


def local_path_or(text: str, otherwise: str) -> str:
    """Return `text` if it is a path of this server, with or without a query, else `otherwise`."""
    return text if len(text) <= MAX_LENGTH and _OWN_PATH.fullmatch(text) else otherwise
