"""The cross-origin headers (CORS) of responses.

All responses have them, including errors, except pages below `/_mahalla/` (`allows_cors` in
`page_paths.py`). The server responds to preflight requests itself, without calling a handler.

spec: client-server-api#web-browser-clients
"""

from typing import Final

CORS_HEADERS: Final = (
    b"Access-Control-Allow-Origin: *\r\n"
    b"Access-Control-Allow-Methods: GET, HEAD, POST, PUT, DELETE, OPTIONS\r\n"
    b"Access-Control-Allow-Headers: X-Requested-With, Content-Type, Authorization, "
    b"If-Match, If-None-Match\r\n"
    b"Access-Control-Expose-Headers: Retry-After, ETag, Location, Content-Disposition\r\n"
)

PREFLIGHT_HEADERS: Final = CORS_HEADERS + b"Access-Control-Max-Age: 86400\r\n"
