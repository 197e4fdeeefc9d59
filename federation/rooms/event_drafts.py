"""Drafts of the events that local users add to rooms."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from federation.protocol.events import Event
from federation.protocol.ids import EventID, UserID
from storage.engine.transaction import WriteTransaction
from storage.rooms.rooms import RoomRow
from storage.rooms.sent_transactions import SentTransaction

Check = Callable[[Sequence[Event]], Awaitable[None]]
ExtraWrite = Callable[[WriteTransaction, RoomRow], None]
"""Writes more in the transaction that writes the event."""


class Draft(msgspec.Struct, frozen=True):
    """An event to build. The engine adds its prev_events, depth, auth events, id, hash and
    signature."""

    type: str
    sender: UserID
    content: Mapping[str, Any]
    state_key: str | None = None
    redacts: EventID | None = None
    origin_server_ts: int | None = None
    """Only for application services that import history; None: now."""
    sent: SentTransaction | None = None
    """The client's request that it comes from, which must not be applied twice."""
    sticky_ms: int | None = None
    """Milliseconds for which it is sticky (MSC4354)."""
    check: Check | None = None
    """Called in the event's turn once it is authorized, with the events of its chain that are not
    written yet. No other event of this node comes in between. Raises the error for the sender."""
    unless_same: bool = False
    """Build no event if the state entry has this content already; return the current event."""
    extra_write: ExtraWrite | None = None
    """Writes more in the same transaction."""
