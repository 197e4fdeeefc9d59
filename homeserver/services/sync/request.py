"""What a client asks of /sync, as it is worked on."""

from dataclasses import dataclass

from homeserver.http.endpoint import Requester
from homeserver.services.event_filters import Filter
from homeserver.services.stream_tokens import SyncToken


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """spec: client-server-api#get_matrixclientv3sync"""

    caller: Requester
    since: SyncToken | None
    filter: Filter
    full_state: bool
    state_after: bool
    """Give the state at the end of the timelines, not at their start."""


@dataclass(frozen=True, slots=True)
class Range:
    """The stretch of the one sequence that an answer covers."""

    since: int
    """0 for an initial one."""
    upto: int
