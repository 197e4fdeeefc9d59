"""Cross-origin headers of responses, including errors, and of preflight responses, for which no
endpoint code runs.

Only pages below `/_mahalla/` have none (`allows_cors` in `page_paths.py`).

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
