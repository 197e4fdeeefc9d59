"""Purge the history of rooms, and report how many messages were purged, for administrators. The
paths under `/_synapse` are those of Synapse's administration API."""

from typing import Annotated, Any, Final

import msgspec

from federation.api.endpoint import QueryNames
from federation.protocol.errors import BadJson, InvalidParam
from federation.protocol.ids import EventID, RoomID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.retention.history_purges import HistoryPurges
from homeserver.services.retention.purge_log import PurgeLog

_V1: Final = "/_synapse/admin/v1"
MAX_PAGE_SIZE: Final = 1000
"""The largest number of entries in one response."""
Time = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
From = Annotated[str | None, QueryNames("from")]


class PurgeBody(msgspec.Struct, frozen=True):
    """The purge request."""

    purge_up_to_ts: Time | None = None
    purge_up_to_event_id: EventID | None = None
    delete_local_events: bool = False


@endpoint("POST", f"{_V1}/purge_history/{{room_id}}", auth=Auth.ADMIN)
async def purge_history(
    purges: HistoryPurges, caller: Requester, *, room_id: RoomID, body: PurgeBody
) -> dict[str, str]:
    """Start to delete the events before an event or a time. Events of local users stay, unless
    `delete_local_events` is set. Raises NotFound, BadJson, MatrixError."""
    return await _begin(purges, caller, room_id, body.purge_up_to_event_id, body)


@endpoint("POST", f"{_V1}/purge_history/{{room_id}}/{{event_id}}", auth=Auth.ADMIN)
async def purge_history_before(
    purges: HistoryPurges,
    caller: Requester,
    *,
    room_id: RoomID,
    event_id: EventID,
    body: PurgeBody = PurgeBody(),
) -> dict[str, str]:
    """Start a purge up to the event in the path, which itself stays. Raises what `purge_history`
    raises."""
    return await _begin(purges, caller, room_id, event_id, body)


async def _begin(
    purges: HistoryPurges,
    caller: Requester,
    room_id: RoomID,
    event_id: EventID | None,
    body: PurgeBody,
) -> dict[str, str]:
    if event_id is None and body.purge_up_to_ts is None:
        raise BadJson("Either purge_up_to_ts or purge_up_to_event_id is required")
    purge_id = await purges.do_start(
        room_id,
        event_id,
        body.purge_up_to_ts,
        include_local=body.delete_local_events,
        by=caller.user_id,
    )
    return {"purge_id": purge_id}


@endpoint("GET", f"{_V1}/purge_history_status/{{purge_id}}", auth=Auth.ADMIN)
async def get_purge_status(purges: HistoryPurges, *, purge_id: str) -> dict[str, Any]:
    """Return the status of a purge (`active`, `complete` or `failed`), and how many messages lost
    their content. Raises NotFound."""
    return await purges.get_status(purge_id)


@endpoint("GET", "/_mahalla/admin/v1/purged_messages", auth=Auth.ADMIN)
async def get_purged_messages(
    record: PurgeLog, *, from_: From = None, limit: int = 100
) -> dict[str, Any]:
    """Return how many messages were deleted, by day, room and reason (retention, purge, forgotten),
    latest day first."""
    if not 1 <= limit <= MAX_PAGE_SIZE:
        raise InvalidParam(f"limit must be between 1 and {MAX_PAGE_SIZE}")
    return await record.get_page(from_, limit)
