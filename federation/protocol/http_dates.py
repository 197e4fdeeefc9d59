"""Parses dates in HTTP headers, in the three forms that recipients have to accept (RFC 9110,
section 5.6.7)."""

from email.utils import mktime_tz, parsedate_tz
from typing import Final

MAX_CHARS: Final = 100


def read_http_date(text: str) -> float | None:
    """Return the date in seconds since 1970, or None if the text is not a date."""
    parts = parsedate_tz(text) if len(text) <= MAX_CHARS else None
    if parts is None:
        return None
    try:
        return float(mktime_tz((*parts[:9], parts[9] or 0)))
    except (ValueError, OverflowError):  # a year that no calendar has
        return None
