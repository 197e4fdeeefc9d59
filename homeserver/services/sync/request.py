"""What a client asks of /sync, as it is worked on."""

from typing import Final

import msgspec

from homeserver.api.requester import Requester
from homeserver.services.filters.event_filters import Filter
from homeserver.services.streams.sync_tokens import SyncToken

STATE_BEFORE: Final = "state"
STATE_AFTER: Final = "state_after"
UNSTABLE_STATE_AFTER: Final = "org.matrix.msc4222.state_after"
"""Where an answer has a room's state. Who asks by the unstable name looks for it under the unstable
name."""


class SyncRequest(msgspec.Struct, frozen=True, gc=False):
    """spec: client-server-api#get_matrixclientv3sync"""

    caller: Requester
    since: SyncToken | None
    filter: Filter
    full_state: bool
    state_section: str
    token: str = ""
    """`since` as the client gave it; empty where it has none."""

    @property
    def loads_lazily(self) -> bool:
        """Of members only those are told who have to do with the events of the answer."""
        return self.filter.loads_lazily

    @property
    def state_after(self) -> bool:
        """Give the state at the end of the timelines, not at their start."""
        return self.state_section != STATE_BEFORE


class Range(msgspec.Struct, frozen=True, gc=False):
    """The stretch of the one sequence that an answer covers."""

    since: int
    """0 for an initial one."""
    upto: int
