"""What happened, in order: the one sequence, and those who listen to it.

A change takes its position in the transaction that makes it; it is published on the reactor thread after the commit,
in order of position. Readers (sync, notifier, push, the sender to other servers, application services, other nodes)
subscribe here and import no writer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum


class Topic(Enum):
    """What kind of thing changed."""

    EVENT = "event"
    REDACTED = "redacted"
    """An event lost its content; `detail` is its number."""
    MEMBERSHIP = "membership"
    """Someone's membership of a room; `detail` is the `MembershipRow`."""
    ACCOUNT_DATA = "account_data"
    RECEIPT = "receipt"
    DEVICE = "device"
    PROFILE = "profile"
    TO_DEVICE = "to_device"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Change:
    """One durable change: where in the sequence, of what kind, whom it concerns."""

    position: int
    topic: Topic
    room_id: str | None = None
    user_id: str | None = None
    detail: object = None
    """What the writer has at hand (for EVENT: the `EventRow`); a reader on another node finds None and reads it."""


Subscriber = Callable[[Sequence[Change]], None]
"""Called on the reactor thread with the changes of one commit, in order; may not raise and may not block."""


class Streams:
    """The head of the sequence, and its readers."""

    def current(self) -> int:
        """The highest position below which all is committed and published."""
        raise NotImplementedError

    def subscribe(self, subscriber: Subscriber) -> None:
        raise NotImplementedError
