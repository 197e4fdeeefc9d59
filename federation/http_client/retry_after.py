"""How long whoever was asked wants to be left alone.

spec: client-server-api#rate-limiting; RFC 9110, section 10.2.3
"""

from collections.abc import Mapping
from typing import Final

from federation.protocol.http_dates import read_http_date

MOST_DIGITS: Final = 9
"""Of the seconds; more are taken for none."""
MOST_SECONDS: Final = 10**MOST_DIGITS - 1


def read_retry_after(headers: Mapping[str, str], now: float) -> int:
    """How long `Retry-After` asks to wait, in milliseconds: a number of seconds, or until a date; 0
    where it says neither, or a time that is over. Names are in lower case. `now`: in seconds since
    1970; where the answer has a date itself, that counts, by the same clock.
    """
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdecimal():
        return int(text) * 1000 if len(text) <= MOST_DIGITS else 0
    until = read_http_date(text)
    if until is None:
        return 0
    said = read_http_date(headers.get("date", ""))
    return int(min(max(until - (now if said is None else said), 0), MOST_SECONDS) * 1000)
