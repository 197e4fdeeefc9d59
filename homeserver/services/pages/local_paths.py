"""Where a page may lead afterwards: to a path of this server, and nowhere else."""

import re
from typing import Final

LONGEST: Final = 4000
_OWN_PATH: Final = re.compile(r"/(?:[^/\\\x00-\x20\x7f-\U0010ffff][^\\\x00-\x20\x7f-\U0010ffff]*)?")
"""What browsers read as another host begins with two slashes, a backslash being one for them; they
also skip over tabs and line breaks."""


def own_path(text: str, otherwise: str) -> str:
    """The path with its query if it is one of this server's, else `otherwise`."""
    return text if len(text) <= LONGEST and _OWN_PATH.fullmatch(text) else otherwise
