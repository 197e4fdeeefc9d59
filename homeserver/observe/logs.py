"""Writes log events as JSON for machines, or as text for people.

A JSON event is one line. A text event is also one line, but a traceback follows on further lines.
The fields of the current request (`homeserver/observe/context.py`) are added to every event.
Twisted's own messages, such as those about factories and ports, are dropped, except warnings and
errors.
"""

from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

import msgspec
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from homeserver.observe.context import CURRENT_REQUEST

Write = Callable[[str], object]
MakeLine = Callable[[], str]

MAX_BUFFERED_LINES: Final = 1000
"""The largest number of lines that are buffered."""
_OWN: Final = frozenset({"time", "isError", "system", "message", "format", "failure", "why"})
"""Keys of Twisted's old and new logging that are not fields of the event; all that begin with
`log_` are not either."""
_TWISTED: Final = ("twisted.", "log_legacy")
"""Loggers of Twisted itself; the second one is its old logging."""


class LogFile:
    """The log file. Any thread may write."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._buffer: deque[MakeLine] = deque()

    def write(self, line: str) -> None:
        """Write a line at once, after all buffered ones."""
        self._write_buffer()
        self._file.write(line)
        self._file.flush()

    def write_later(self, make_line: MakeLine) -> None:
        """Buffer a line until the next `write` or `flush`. It is formatted only then, so that no
        request waits for it."""
        self._buffer.append(make_line)
        if len(self._buffer) > MAX_BUFFERED_LINES:
            self._write_buffer()

    def flush(self) -> None:
        """Write all buffered lines."""
        self._write_buffer()
        self._file.flush()

    def _write_buffer(self) -> None:
        while self._buffer:
            try:
                make_line = self._buffer.popleft()
            except IndexError:  # another thread was faster
                return
            self._file.write(make_line())


def _should_log(event: LogEvent, minimum: LogLevel) -> bool:
    level = event.get("log_level", LogLevel.info)
    if level < minimum:
        return False
    namespace = event.get("log_namespace") or ""
    return not (namespace.startswith(_TWISTED) and level < LogLevel.warn)


def _fields(event: LogEvent) -> dict[str, object]:
    fields: dict[str, object] = {}
    request = CURRENT_REQUEST.get()
    if request is not None:
        fields["request_id"] = request.request_id
        fields["endpoint"] = request.endpoint
        if request.caller is not None:
            fields["caller"] = request.caller
    for key, value in event.items():
        if key not in _OWN and not key.startswith("log_"):
            fields[key] = value
    return fields


def _traceback(event: LogEvent) -> str | None:
    failure = event.get("log_failure")
    return failure.getTraceback() if isinstance(failure, Failure) else None


def _to_text(value: object) -> object:
    return str(value)


@implementer(ILogObserver)
class JsonObserver:
    """Writes each event as a JSON object on one line: `time` (ISO 8601, UTC), `level`, `logger`,
    `text`, and the event's fields."""

    def __init__(self, *, write: Write, minimum: LogLevel = LogLevel.info) -> None:
        self._write = write
        self._minimum = minimum
        self._encoder = msgspec.json.Encoder(enc_hook=_to_text)

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        if not _should_log(event, self._minimum):
            return
        line: dict[str, object] = {
            "time": _time(event),
            "level": event.get("log_level", LogLevel.info).name,
            "logger": event.get("log_namespace") or "",
            "text": _text(event),
            **_fields(event),
        }
        traceback = _traceback(event)
        if traceback is not None:
            line["traceback"] = traceback
        self._write(self._encode(line) + "\n")

    def _encode(self, line: Mapping[str, object]) -> str:
        try:
            return self._encoder.encode(line).decode()
        except (TypeError, ValueError, RecursionError):
            return self._encoder.encode(
                {str(key): ascii(value) for key, value in line.items()}
            ).decode()


@implementer(ILogObserver)
class TextObserver:
    """Writes each event as text: time, level, request, message, and the traceback if there is
    one."""

    def __init__(self, *, write: Write, minimum: LogLevel = LogLevel.info) -> None:
        self._write = write
        self._minimum = minimum

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        if not _should_log(event, self._minimum):
            return
        fields = _fields(event)
        request_id = f" [{fields['request_id']}]" if fields.get("request_id") else ""
        text = _text(event).replace("\r", "\\r").replace("\n", "\\n")
        level = event.get("log_level", LogLevel.info).name
        self._write(
            f"{_time(event)} {level:8} {event.get('log_namespace') or '-'}{request_id} {text}\n"
        )
        traceback = _traceback(event)
        if traceback is not None:
            self._write("".join(f"    {line}\n" for line in traceback.splitlines()))


def _text(event: LogEvent) -> str:
    """Return the message of an event. `log_text` avoids the formatting, which costs more than the
    rest."""
    text = event.get("log_text")
    return text if isinstance(text, str) else formatEvent(event)


def _time(event: LogEvent) -> str:
    time = datetime.fromtimestamp(event.get("log_time") or 0, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
