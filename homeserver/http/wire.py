"""The head of an answer, as bytes. What is the same for most answers is made once."""

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
    """The first line of an answer."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Other\r\n" % status


class TimedLines:
    """The header `Date`, and the head that most answers have, made once a second, and of their
    parts the day once a day."""

    def __init__(self) -> None:
        self._day = -1
        self._beginning = b""
        self._second = -1
        self._line = b""
        self._usual = b""

    def usual_at(self, seconds: float) -> bytes:
        """The head of what is well and JSON, up to its length, at a time in seconds since 1970."""
        if int(seconds) != self._second:
            self.date_at(seconds)
        return self._usual

    def date_at(self, seconds: float) -> bytes:
        """The line of a time, in seconds since 1970."""
        now = int(seconds)
        if now != self._second:
            day, second = divmod(now, SECONDS_A_DAY)
            if day != self._day:
                self._day = day
                self._beginning = f"Date: {format_date_time(now).removesuffix(' GMT')[: -len('00:00:00')]}".encode()
            minute, second = divmod(second, 60)
            self._second = now
            self._line = b"%b%02d:%02d:%02d GMT\r\n" % (
                self._beginning,
                *divmod(minute, 60),
                second,
            )
            self._usual = (
                status_line(HTTPStatus.OK) + self._line + JSON_HEADERS + b"Content-Length: "
            )
        return self._line


def header_lines(
    headers: Mapping[str, str], cookies: Sequence[str] = (), *, is_open: bool = True
) -> tuple[bytes, str]:
    """The header lines of an answer, and its content type. `is_open`: scripts of other sites may
    read it. Raises ValueError for a line break in a header."""
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


def malformed() -> bytes:
    """The whole answer to what is not HTTP; nor is what does not say once for which host it is (RFC
    9112 section 3.2)."""
    return _last_answer(
        HTTPStatus.BAD_REQUEST, "M_UNKNOWN", "This is not a well-formed HTTP request"
    )


def unknown_expectation() -> bytes:
    """The whole answer to one that expects what we do not know (RFC 9110 section 10.1.1)."""
    return _last_answer(
        HTTPStatus.EXPECTATION_FAILED, "M_UNKNOWN", "Nothing may be expected but 100-continue"
    )


def too_long(most: int, *, is_address: bool) -> bytes:
    """The whole answer to more than `most` bytes before the body, most of them in the address or in
    headers."""
    if is_address:
        text = f"The address and headers may have {most} bytes together; keep a long filter with POST /filter, and name it"
        return _last_answer(HTTPStatus.REQUEST_URI_TOO_LONG, "M_TOO_LARGE", text)
    text = f"The headers may have {most} bytes, and be 100 at most"
    return _last_answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "M_TOO_LARGE", text)


def too_slow() -> bytes:
    """The whole answer to a request that does not come to its end."""
    return _last_answer(
        HTTPStatus.REQUEST_TIMEOUT, "M_UNKNOWN", "The request took too long to arrive"
    )


def unknown_method() -> bytes:
    """The whole answer to a method that HTTP does not have."""
    return _last_answer(HTTPStatus.METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", "There is no such method")


def _last_answer(status: HTTPStatus, errcode: str, text: str) -> bytes:
    body = b'{"errcode":"%s","error":"%s"}' % (errcode.encode(), text.encode())
    head = b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    return status_line(status) + JSON_HEADERS + head + body
