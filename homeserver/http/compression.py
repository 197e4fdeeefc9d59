"""gzip, where it pays: for text that is longer than one packet, at the level that costs least."""

import zlib
from typing import Final

MIN_BYTES: Final = 1400
_LEVEL: Final = 1
_GZIP: Final = 31


def pays(body: bytes, content_type: str) -> bool:
    """Whether a body of this type is worth compressing."""
    return len(body) >= MIN_BYTES and content_type.startswith(
        ("application/json", "text/", "application/javascript")
    )


def compress(body: bytes) -> bytes:
    """The body as a gzip stream."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return compressor.compress(body) + compressor.flush()
