"""Finds the items of a transaction that a destination refuses, by splitting it into halves.

A destination parses a transaction as a whole. If it cannot parse one item, such as JSON nested too
deeply or a number out of range, it refuses all other items too, at each retry.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from federation.remote.transactions import FederationTransaction

MIN_TOO_LARGE_BYTES: Final = 16 << 10
"""A shorter transaction is not too large for any server. A proxy that answers 413 to it answers so
to nearly everything, though not to an empty transaction."""
_TO_DEVICE: Final = b'"edu_type":"m.direct_to_device"}'
"""The end of a to-device EDU in canonical JSON."""


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


def is_single_item(transaction: FederationTransaction) -> bool:
    """Return whether the transaction holds a single item, so that a refusal is about this item."""
    return len(transaction.pdus) + len(transaction.edus) == 1


def is_about_content(status: int, transaction: FederationTransaction) -> bool:
    """Return whether this status may be about the content of the transaction.

    Other statuses are about the sender, the address or the time.
    """
    if status == 413:
        return (
            not is_single_item(transaction)
            or sum(map(len, (*transaction.pdus, *transaction.edus))) >= MIN_TOO_LARGE_BYTES
        )
    return status in (400, 422)


def get_kinds(transaction: FederationTransaction) -> set[str]:
    """Return the types of the EDUs in the transaction, and "" if it holds events."""
    kinds = {""} if transaction.pdus else set[str]()
    for edu in transaction.edus:
        with suppress(msgspec.DecodeError, RecursionError):  # unreadable for us too
            kinds.add(msgspec.json.decode(edu, type=_Edu).edu_type)
    return kinds


def is_to_device(edu: bytes) -> bool:
    """Return whether the EDU is a to-device message."""
    return edu.endswith(_TO_DEVICE)


def split_transaction(
    transaction: FederationTransaction, make_id: Callable[[], str]
) -> tuple[FederationTransaction, FederationTransaction]:
    """Split a transaction into two, to be sent one after the other.

    To-device messages come first, as they hold the keys of encrypted events. Then come events, then
    the other EDUs, which refer to events.
    """
    edus = transaction.edus
    parts = [
        *((False, edu) for edu in edus if is_to_device(edu)),
        *((True, pdu) for pdu in transaction.pdus),
        *((False, edu) for edu in edus if not is_to_device(edu)),
    ]
    middle = len(parts) // 2

    def make(half: list[tuple[bool, bytes]]) -> FederationTransaction:
        return FederationTransaction(
            make_id(),
            transaction.origin_server_ts,
            [part for is_pdu, part in half if is_pdu],
            [part for is_pdu, part in half if not is_pdu],
        )

    return make(parts[:middle]), make(parts[middle:])


def describe_item(transaction: FederationTransaction) -> str:
    """Describe the single item for an operator, without any content written by people."""
    try:
        for pdu in transaction.pdus:
            event = msgspec.json.decode(pdu, type=_Event)
            return (
                f"the event {event.type!r} of {event.sender} in {event.room_id}, "
                f"made at {event.origin_server_ts}"
            )
        edu = msgspec.json.decode(transaction.edus[0], type=_Edu)
    except (msgspec.DecodeError, RecursionError):  # unreadable for us too
        return "an event" if transaction.pdus else "an EDU"
    content = edu.content
    return f"an EDU {edu.edu_type!r}" + (
        f" {content.message_id!r} of {content.sender}" if content.message_id else ""
    )
