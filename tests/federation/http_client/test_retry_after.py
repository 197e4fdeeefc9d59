"""`Retry-After` in its two forms: a number of seconds, or a date."""

import pytest

from federation.http_client.retry_after import MAX_SECONDS, read_retry_after

NOW = 784_111_777.0
"""Sun, 06 Nov 1994 08:49:37 GMT"""


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "120"}, 120),
        ({"retry-after": "9" * 9}, MAX_SECONDS),
        ({"retry-after": "9" * 10}, 0),
        ({"retry-after": "1.5"}, 0),
        ({"retry-after": "-60"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "Sun, 06 Nov 1994 08:51:37 GMT"}, 120),
        ({"retry-after": "Sunday, 06-Nov-94 08:51:37 GMT"}, 120),
        ({"retry-after": "Sun Nov  6 08:51:37 1994"}, 120),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:36 GMT"}, 0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, MAX_SECONDS),
        ({"retry-after": "Fri, 31 Dec 10000 23:59:59 GMT"}, 0),
        ({"retry-after": "Fri, 31 Dec 99999999999 23:59:59 GMT"}, 0),
        ({"retry-after": "Fri, 31 Dec 1994 23:59:59 GMT" + " " * 10_000}, 0),
        (
            {
                "retry-after": "Sat, 01 Jan 2000 00:02:00 GMT",
                "date": "Sat, 01 Jan 2000 00:00:00 GMT",
            },
            120,
        ),
        ({"retry-after": "Sun, 06 Nov 1994 08:51:37 GMT", "date": "today"}, 120),
    ],
    ids=lambda value: str(value)[:60],
)
def test_retry_after_is_read_as_a_number_or_a_date(headers: dict[str, str], seconds: int) -> None:
    """A date counts relative to the `Date` of the answer, if it has one."""
    assert read_retry_after(headers, NOW) == seconds * 1000
