"""What a client asks of /sync, as it is worked on."""

from enum import Enum

import msgspec

from federation.protocol.endpoint import Requester
from homeserver.services.event_filters import Filter
from homeserver.services.stream_tokens import SyncToken


class StateSection(Enum):
    """Where an answer has a room's state. Who asks by the unstable name looks for it under the unstable name."""

    BEFORE = "state"
    AFTER = "state_after"
    UNSTABLE_AFTER = "org.matrix.msc4222.state_after"


class SyncRequest(msgspec.Struct, frozen=True, gc=False):
    """spec: client-server-api#get_matrixclientv3sync"""

    caller: Requester
    since: SyncToken | None
    filter: Filter
    full_state: bool
    state_section: StateSection

    @property
    def loads_lazily(self) -> bool:
        """Of members only those are told who have to do with the events of the answer."""
        return self.filter.room.state.lazy_load_members or self.filter.room.timeline.lazy_load_members

    @property
    def state_after(self) -> bool:
        """Give the state at the end of the timelines, not at their start."""
        return self.state_section is not StateSection.BEFORE


class Range(msgspec.Struct, frozen=True, gc=False):
    """The stretch of the one sequence that an answer covers."""

    since: int
    """0 for an initial one."""
    upto: int
