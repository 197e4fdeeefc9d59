"""The access log: a line for each request, and a louder one for a slow request. No token is ever in it."""

import re
from dataclasses import dataclass
from typing import Final, Protocol

from twisted.logger import Logger, LogLevel

_SECRETS: Final = re.compile(r"(?<=[?&])([^=&]*(?:token|password|secret|sid|code)[^=&]*)=[^&]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """A request that has ended. `seconds` from the last byte of the request; sizes are of bodies, in bytes."""

    request_id: str
    client_ip: str
    caller: str | None
    method: str
    uri: str
    endpoint: str
    long_poll: bool
    status: int
    seconds: float
    received: int
    sent: int


class AccessLog(Protocol):
    """Keeps a line for each request."""

    def write(self, record: AccessRecord) -> None: ...


class SilentAccessLog:
    """Keeps nothing."""

    def write(self, record: AccessRecord) -> None:
        """Forget it."""


class LoggedAccess:
    """Writes access lines to the log; a request that took `slow_seconds` is a warning, unless it was made to wait."""

    def __init__(self, log: Logger, *, slow_seconds: float = 5.0, only_slow: bool = False) -> None:
        self._log = log
        self._slow_seconds = slow_seconds
        self._only_slow = only_slow

    def write(self, record: AccessRecord) -> None:
        """Log one request."""
        slow = record.seconds >= self._slow_seconds and not record.long_poll
        if self._only_slow and not slow:
            return
        uri = without_secrets(record.uri)
        milliseconds = round(record.seconds * 1000, 1)
        self._log.emit(
            LogLevel.warn if slow else LogLevel.info,
            "{log_text}",
            log_text=f"{record.method} {uri} {record.status} {milliseconds} ms {record.sent} bytes{' (slow)' * slow}",
            method=record.method,
            uri=uri,
            status=record.status,
            milliseconds=milliseconds,
            sent=record.sent,
            received=record.received,
            slow=slow,
            request_id=record.request_id,
            endpoint=record.endpoint,
            client_ip=record.client_ip,
            caller=record.caller,
        )


def without_secrets(uri: str) -> str:
    """A URI whose query hides the values of whatever may be a secret."""
    return _SECRETS.sub(r"\1=…", uri) if "?" in uri else uri
