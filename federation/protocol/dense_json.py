"""JSON that takes very much more room, and time, when it is read than as a text: looked through before it is read.

A body of nothing but empty objects becomes twenty times as long as it was. What people say, and servers of them, is mostly strings.
"""

import re
from itertools import islice
from typing import Final

MOST_VALUES: Final = 750_000
"""Strings, and brackets and commas between values, of a text that is read at once: an honest one of ten megabytes has fewer."""
_VALUE: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{,]', re.DOTALL)


def has_too_many_values(text: bytes, most: int = MOST_VALUES) -> bool:
    """Whether there are more strings, brackets and commas in a text than so many."""
    return next(islice(_VALUE.finditer(text), most, None), None) is not None
