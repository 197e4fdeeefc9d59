"""gzip compression of text responses longer than one packet, at the cheapest level."""

import zlib
from typing import Final

MIN_BYTES: Final = 1400
_LEVEL: Final = 1
_GZIP: Final = 31


def is_worth_compressing(body: bytes, content_type: str) -> bool:
    """Return whether compressing a body of this type is worth it."""
    return len(body) >= MIN_BYTES and content_type.startswith(
        ("application/json", "text/", "application/javascript")
    )


def compress(body: bytes) -> bytes:
    """Return the body as a gzip stream."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return compressor.compress(body) + compressor.flush()
