"""How long whoever was asked wants to be left alone.

spec: client-server-api#rate-limiting
"""

from collections.abc import Mapping
from typing import Final

MOST_DIGITS: Final = 9
"""Of the seconds; more are taken for none."""


def read_retry_after(headers: Mapping[str, str]) -> int:
    """How long `Retry-After` asks to wait, in milliseconds, where it is a number of seconds; else 0. Names are in lower case."""
    text = headers.get("retry-after", "")
    is_number = text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS
    return int(text) * 1000 if is_number else 0
