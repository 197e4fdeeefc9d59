"""Reads the `Retry-After` header, which says how long to wait before the next request.

spec: client-server-api#rate-limiting; RFC 9110, section 10.2.3
"""

from collections.abc import Mapping
from typing import Final

from federation.protocol.http_dates import read_http_date

MAX_DIGITS: Final = 9
"""Of a number of seconds; a longer number is ignored."""
MAX_SECONDS: Final = 10**MAX_DIGITS - 1


def read_retry_after(headers: Mapping[str, str], now: float) -> int:
    """Return the time to wait in milliseconds. 0 without a valid number or a future date.

    Names of headers are in lower case. `now`: in seconds since 1970; the `Date` of the response,
    if it has one, counts instead.
    """
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdecimal():
        return int(text) * 1000 if len(text) <= MAX_DIGITS else 0
    until = read_http_date(text)
    if until is None:
        return 0
    date = read_http_date(headers.get("date", ""))
    return int(min(max(until - (now if date is None else date), 0), MAX_SECONDS) * 1000)
