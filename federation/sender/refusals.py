"""What a server refuses for good, and how it is found: the transaction is tried in smaller ones,
halves of halves.

A transaction is read as a whole: something in it that its reader cannot hold, nested too deeply, a
number too large, makes it refuse all that stands beside it, however often that is sent.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from federation.remote.transactions import Transaction

SHORTEST_TOO_LARGE: Final = 16 << 10
"""What is shorter is too large for nobody: a proxy that says so says it of nearly everything,
though not of an empty transaction."""
_TO_DEVICE: Final = b'"edu_type":"m.direct_to_device"}'
"""How such an EDU ends, in canonical JSON."""


class _Content(msgspec.Struct):
    sender: str = ""
    message_id: str = ""


class _Edu(msgspec.Struct):
    edu_type: str
    content: _Content = msgspec.field(default_factory=_Content)


class _Event(msgspec.Struct):
    room_id: str = ""
    sender: str = ""
    type: str = ""
    origin_server_ts: int = 0


def is_alone(transaction: Transaction) -> bool:
    """Whether it has one part, which is what is refused with it."""
    return len(transaction.pdus) + len(transaction.edus) == 1


def is_of_content(status: int, transaction: Transaction) -> bool:
    """Whether a server that answers so may speak of what is in it; other answers are about who
    sends it, where to, or when."""
    if status == 413:
        return (
            not is_alone(transaction)
            or sum(map(len, (*transaction.pdus, *transaction.edus))) >= SHORTEST_TOO_LARGE
        )
    return status in (400, 422)


def kinds_of(transaction: Transaction) -> set[str]:
    """What kinds of things are in it: the types of its EDUs, and "" for events."""
    kinds = {""} if transaction.pdus else set[str]()
    for edu in transaction.edus:
        with suppress(msgspec.DecodeError, RecursionError):  # as unreadable to us
            kinds.add(msgspec.json.decode(edu, type=_Edu).edu_type)
    return kinds


def is_to_device(edu: bytes) -> bool:
    """Whether it is a message to devices."""
    return edu.endswith(_TO_DEVICE)


def split(transaction: Transaction, make_id: Callable[[], str]) -> tuple[Transaction, Transaction]:
    """Two transactions with the parts of one: to be sent one after the other, as whoever gets it
    takes them in one after the other.

    Messages to devices come first, as they hold the keys of events; then events, then what is about
    these.
    """
    edus = transaction.edus
    parts = [
        *((False, edu) for edu in edus if is_to_device(edu)),
        *((True, pdu) for pdu in transaction.pdus),
        *((False, edu) for edu in edus if not is_to_device(edu)),
    ]
    middle = len(parts) // 2

    def make(half: list[tuple[bool, bytes]]) -> Transaction:
        return Transaction(
            make_id(),
            transaction.origin_server_ts,
            [part for is_pdu, part in half if is_pdu],
            [part for is_pdu, part in half if not is_pdu],
        )

    return make(parts[:middle]), make(parts[middle:])


def describe(transaction: Transaction) -> str:
    """What its one part is, for an operator: never what people have written in it."""
    try:
        for pdu in transaction.pdus:
            event = msgspec.json.decode(pdu, type=_Event)
            return f"the event {event.type!r} of {event.sender} in {event.room_id}, made at {event.origin_server_ts}"
        edu = msgspec.json.decode(transaction.edus[0], type=_Edu)
    except (msgspec.DecodeError, RecursionError):  # as unreadable to us
        return "an event" if transaction.pdus else "an EDU"
    content = edu.content
    return f"an EDU {edu.edu_type!r}" + (
        f" {content.message_id!r} of {content.sender}" if content.message_id else ""
    )
