"""What someone of this server wants to add to a room, before it is an event."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from federation.protocol.events import Event
from federation.protocol.ids import EventID, UserID
from storage.engine.transaction import WriteTransaction
from storage.rooms.rooms import RoomRow
from storage.rooms.sent_transactions import SentTransaction

Check = Callable[[Sequence[Event]], Awaitable[None]]
Also = Callable[[WriteTransaction, RoomRow], None]
"""What else is to be written in a transaction that writes to a room."""


class Draft(msgspec.Struct, frozen=True):
    """An event to be. The engine finds its place in the room, its auth events, id, hash and
    signature."""

    type: str
    sender: UserID
    content: Mapping[str, Any]
    state_key: str | None = None
    redacts: EventID | None = None
    origin_server_ts: int | None = None
    """Only for application services that bring history; None: now."""
    sent: SentTransaction | None = None
    """The client's request that it comes from, which must not act twice."""
    sticky_ms: int | None = None
    """For how long it is told to everyone in the room (MSC4354)."""
    check: Check | None = None
    """Asked when its turn has come and it is allowed, with the events of its chain that are not
    written yet: nothing of this node's comes in between. Raises what its sender is told."""
    unless_same: bool = False
    """Make no event when the state entry has this content already; the present event is the
    answer."""
    also: Also | None = None
    """What is to be written if the event is, and with it."""
