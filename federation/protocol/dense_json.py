"""Scans JSON texts before they are parsed, for too many values and for too deep nesting.

A body that consists of empty objects takes twenty times its size in memory when it is parsed.
Usual bodies consist mostly of strings, so they contain fewer values for their length. So callers
limit the number of values in a long text, besides its length.

Law: the time of a scan is linear in the length of the text, even if the text is not valid JSON.
"""

import re
from itertools import islice
from typing import Final

MOST_VALUES: Final = 750_000
"""Strings, and brackets and commas between values, of a text that is parsed at once. A usual text
of ten megabytes has fewer."""
STRING_OR_REST: Final = rb'"(?:[^"\\]++|\\.)*+(?:"|\\?+\Z)'
"""A string, or the whole rest if it is unterminated. Otherwise each quote in the rest would start
another search for the end."""
_UPTO_BRACKET: Final = re.compile(
    rb'(?:[^"\]\[{}]++|' + STRING_OR_REST + rb")*+(?:([\]\[{}])|\Z)", re.DOTALL
)
_VALUE: Final = re.compile(STRING_OR_REST + rb"|[\[{,]", re.DOTALL)


def has_too_many_values(text: bytes, most: int = MOST_VALUES) -> bool:
    """Return whether a text has more than `most` strings, brackets and commas."""
    return next(islice(_VALUE.finditer(text), most, None), None) is not None


def without_deep(text: bytes, levels: int) -> bytes:
    """Return a JSON text with `null` in place of each list or object that is nested in `levels`
    others."""
    kept: list[bytes] = []
    depth = begin = deep_from = 0
    for token in _UPTO_BRACKET.finditer(text):
        match token[1]:
            case b"[" | b"{":
                if depth == levels:
                    deep_from = token.start(1)
                depth += 1
            case b"]" | b"}":
                depth -= 1
                if depth == levels:
                    kept += (text[begin:deep_from], b"null")
                    begin = token.end()
    return b"".join([*kept, text[begin:]])
