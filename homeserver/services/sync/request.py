"""A request of /sync, parsed."""

from typing import Final

import msgspec

from homeserver.api.requester import Requester
from homeserver.services.filters.event_filters import Filter
from homeserver.services.streams.sync_tokens import SyncToken

STATE_BEFORE: Final = "state"
STATE_AFTER: Final = "state_after"
UNSTABLE_STATE_AFTER: Final = "org.matrix.msc4222.state_after"
"""The field that has a room's state. A client that asks by the unstable name expects the unstable
field."""


class SyncRequest(msgspec.Struct, frozen=True, gc=False):
    """spec: client-server-api#get_matrixclientv3sync"""

    caller: Requester
    since: SyncToken | None
    filter: Filter
    full_state: bool
    state_section: str
    token: str = ""
    """`since` as the client sent it; empty for an initial sync."""

    @property
    def loads_lazily(self) -> bool:
        """Whether the client wants only the members that the events of the response need."""
        return self.filter.loads_lazily

    @property
    def state_after(self) -> bool:
        """Whether the client wants the state at the end of the timelines, not at their start."""
        return self.state_section != STATE_BEFORE


class SyncRange(msgspec.Struct, frozen=True, gc=False):
    """The part of the stream that a response covers: since < position ≤ upto."""

    since: int
    """0 for an initial sync."""
    upto: int
