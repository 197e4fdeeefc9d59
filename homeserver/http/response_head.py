"""Response heads as bytes. Parts that most responses share are made once."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final
from wsgiref.handlers import format_date_time

from homeserver.http.cors import CORS_HEADERS
from homeserver.http.responses import JSON_TYPE

NO_BODY: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
JSON_HEADERS: Final = (
    b"Content-Type: application/json\r\nCache-Control: no-store\r\n" + CORS_HEADERS
)
SECONDS_A_DAY: Final = 86_400
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


def status_line(status: int) -> bytes:
    """Return the status line."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Other\r\n" % status


class ResponseHeadCache:
    """Caches the `Date` header and the head of a usual response, which are remade each second. The
    part of the date that names the day is remade once a day."""

    def __init__(self) -> None:
        self._day = -1
        self._day_part = b""
        self._second = -1
        self._line = b""
        self._json_head = b""

    def json_head_at(self, seconds: float) -> bytes:
        """Return the head of a JSON response with status 200, up to the value of its length.
        `seconds`: since 1970."""
        if int(seconds) != self._second:
            self.date_line_at(seconds)
        return self._json_head

    def date_line_at(self, seconds: float) -> bytes:
        """Return the `Date` line. `seconds`: since 1970."""
        now = int(seconds)
        if now != self._second:
            day, second = divmod(now, SECONDS_A_DAY)
            if day != self._day:
                self._day = day
                date = format_date_time(now)[: -len("00:00:00 GMT")]
                self._day_part = f"Date: {date}".encode()
            minute, second = divmod(second, 60)
            self._second = now
            self._line = b"%b%02d:%02d:%02d GMT\r\n" % (
                self._day_part,
                *divmod(minute, 60),
                second,
            )
            self._json_head = (
                status_line(HTTPStatus.OK) + self._line + JSON_HEADERS + b"Content-Length: "
            )
        return self._line


def header_lines(
    headers: Mapping[str, str], cookies: Sequence[str] = (), *, is_open: bool = True
) -> tuple[bytes, str]:
    """Return the header lines of a response, and its content type. `is_open`: scripts of other
    sites may read it. Raises ValueError for a line break in a header."""
    if is_open and not headers and not cookies:
        return JSON_HEADERS, JSON_TYPE
    content_type = JSON_TYPE
    caching = "no-store"
    lines = []
    for name, value in (*headers.items(), *(("Set-Cookie", cookie) for cookie in cookies)):
        if "\r" in value or "\n" in value or "\0" in value:
            raise ValueError(f"the header {name} has a line break in it")
        match name.lower():
            case "content-type":
                content_type = value
            case "cache-control":
                caching = value
            case _:
                lines.append(f"{name}: {value}\r\n")
    head = f"Content-Type: {content_type}\r\nCache-Control: {caching}\r\n{''.join(lines)}"
    return (head.encode() + CORS_HEADERS if is_open else head.encode()), content_type


def malformed_response() -> bytes:
    """Return the complete response to a malformed request, or to one without exactly one Host (RFC
    9112 section 3.2)."""
    return _closing_response(
        HTTPStatus.BAD_REQUEST, "M_UNKNOWN", "This is not a well-formed HTTP request"
    )


def unknown_expectation_response() -> bytes:
    """Return the complete response to an unsupported Expect header (RFC 9110 section 10.1.1)."""
    return _closing_response(
        HTTPStatus.EXPECTATION_FAILED, "M_UNKNOWN", "The only supported expectation is 100-continue"
    )


def too_long_response(max_bytes: int, *, is_uri: bool) -> bytes:
    """Return the complete response to a head of more than `max_bytes`. `is_uri`: most of it is the
    URI."""
    if is_uri:
        text = (
            f"The URI and headers together may have at most {max_bytes} bytes; "
            "upload a long filter with POST /filter and use its id"
        )
        return _closing_response(HTTPStatus.REQUEST_URI_TOO_LONG, "M_TOO_LARGE", text)
    text = f"There may be at most 100 headers, with at most {max_bytes} bytes"
    return _closing_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "M_TOO_LARGE", text)


def too_slow_response() -> bytes:
    """Return the complete response to a request that takes too long to arrive."""
    return _closing_response(
        HTTPStatus.REQUEST_TIMEOUT, "M_UNKNOWN", "The request took too long to arrive"
    )


def unknown_method_response() -> bytes:
    """Return the complete response to an unknown method."""
    return _closing_response(
        HTTPStatus.METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", "This is not an HTTP method"
    )


def _closing_response(status: HTTPStatus, errcode: str, text: str) -> bytes:
    body = b'{"errcode":"%s","error":"%s"}' % (errcode.encode(), text.encode())
    head = b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    return status_line(status) + JSON_HEADERS + head + body
