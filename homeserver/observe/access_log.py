"""The access log: one line for each request. The lines of slow requests, except long polls, are
warnings. If `log.level` is above `info`, only these warnings are logged. Secrets, e-mail addresses
and telephone numbers in URLs are masked."""

import re
from collections.abc import Callable
from functools import lru_cache, partial
from time import gmtime, strftime
from typing import Final, Protocol

import msgspec

from homeserver.observe.context import RequestInfo

Write = Callable[[str], object]
WriteSoon = Callable[[Callable[[], str]], object]

_SECRET_WORDS: Final = (
    *("token", "password", "secret", "sid", "code", "ticket", "signature", "session"),
    *("address", "mail", "phone", "number"),
)
"""Words that mark credentials and contact data of people."""
_SECRET_IN_PATH: Final = re.compile(
    r"(/rendezvous/|/registration_tokens/|/delayed_events/|/threepid/[^/]*/users/)[^/]+"
)
"""Paths with such a segment."""


class AccessRecord(RequestInfo, gc=False):
    """A request from its last byte to its response. The result is filled in when the request has
    ended. Times are in seconds since 1970; sizes are those of bodies, in bytes."""

    client_ip: str = ""
    method: str = ""
    uri: bytes = b""
    long_poll: bool = False
    received: int = 0
    began: float = 0.0
    ended: float = 0.0
    status: int = 0
    sent: int = 0

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.ended - self.began


class AccessLog(Protocol):
    """A log with one line for each request."""

    def write(self, record: AccessRecord) -> None: ...


class SilentAccessLog:
    """Discards everything."""

    def write(self, record: AccessRecord) -> None:
        """Discard the record."""


class FormattedAccessLog:
    """Formats the lines of the access log itself: the general log would cost a third of a small
    request.

    A request of at least `slow_seconds` is a warning, unless it is a long poll. `write_soon` may
    delay lines of information, and only then formats them. Warnings go through `write`.
    """

    def __init__(
        self,
        *,
        write: Write,
        write_soon: WriteSoon,
        as_json: bool,
        slow_seconds: float = 5.0,
        only_slow: bool = False,
    ) -> None:
        self._write = write
        self._write_soon = write_soon
        self._format = _json_line if as_json else _text_line
        self._slow_seconds = slow_seconds
        self._only_slow = only_slow

    def write(self, record: AccessRecord) -> None:
        """Log one request."""
        if record.ended - record.began >= self._slow_seconds and not record.long_poll:
            self._write(self._format(record, "warn"))
        elif not self._only_slow:
            self._write_soon(partial(self._format, record, "info"))


def _text_line(record: AccessRecord, level: str) -> str:
    return (
        f"{_timestamp(record.ended)} {level:8} homeserver.access [{record.request_id}] "
        f"{_text(record)}{' (slow)' * (level == 'warn')}"
        f" {record.client_ip} {record.caller or '-'}\n"
    )


def _json_line(record: AccessRecord, level: str) -> str:
    line = {
        "time": _timestamp(record.ended),
        "level": level,
        "logger": "homeserver.access",
        "text": _text(record),
        "method": record.method,
        "uri": _uri(record),
        "status": record.status,
        "milliseconds": round(record.seconds * 1000, 1),
        "sent": record.sent,
        "received": record.received,
        "slow": level == "warn",
        "request_id": record.request_id,
        "endpoint": record.endpoint,
        "client_ip": record.client_ip,
        "caller": record.caller,
    }
    return msgspec.json.encode(line).decode() + "\n"


def _text(record: AccessRecord) -> str:
    return (
        f"{record.method} {_uri(record)} {record.status} "
        f"{record.seconds * 1000:.1f} ms {record.sent} bytes"
    )


def _uri(record: AccessRecord) -> str:
    return mask_secrets(record.uri.decode("latin-1"))


def _timestamp(time: float) -> str:
    seconds, milliseconds = divmod(int(time * 1000), 1000)
    return f"{_second(seconds)}.{milliseconds:03d}Z"


@lru_cache(2)
def _second(seconds: int) -> str:
    """Cached, since formatting it costs as much as the rest of the line."""
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds))


def mask_secrets(uri: str) -> str:
    """Return a URI with secrets masked: secret path segments, and query fields whose name, or a
    nested URI in whose value (`next`), contains a secret word."""
    path, separator, query = uri.partition("?")
    if (
        "/rendezvous/" in path
        or "/registration_tokens/" in path
        or "/threepid/" in path
        or "/delayed_events/" in path
    ):
        path = _SECRET_IN_PATH.sub(r"\1…", path)
    if not _may_be_secret(query):
        return path + separator + query  # as most queries
    return path + separator + "&".join(map(_without_secret, query.split("&")))


def _without_secret(field: str) -> str:
    name, is_equal, _ = field.partition("=")
    return f"{name}=…" if is_equal and _may_be_secret(field) else field


def _may_be_secret(text: str) -> bool:
    text = text.lower()
    return any(map(text.__contains__, _SECRET_WORDS))
