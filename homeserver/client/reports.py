"""Report events, rooms and users. spec: client-server-api#reporting-content"""

from typing import Annotated

import msgspec

from federation.protocol.ids import EventID, RoomID, UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.moderation.reports import Reports

Reason = Annotated[str, msgspec.Meta(max_length=4096)]


class ReasonBody(msgspec.Struct, frozen=True):
    """The reason, which may be blank."""

    reason: Reason


class OptionalReasonBody(msgspec.Struct, frozen=True):
    """The optional reason."""

    reason: Reason | None = None


@endpoint(
    "POST",
    "/_matrix/client/v3/rooms/{room_id}/report/{event_id}",
    "/_matrix/client/r0/rooms/{room_id}/report/{event_id}",
    auth=Auth.USER,
    limit=Limit.REPORT,
    while_suspended=True,
)
async def report_event(
    reports: Reports,
    caller: Requester,
    *,
    room_id: RoomID,
    event_id: EventID,
    body: OptionalReasonBody = OptionalReasonBody(),
) -> Empty:
    """Report an event."""
    await reports.do_report_event(caller, room_id, event_id, body.reason)
    return EMPTY


@endpoint(
    "POST",
    "/_matrix/client/v3/rooms/{room_id}/report",
    "/_matrix/client/unstable/org.matrix.msc4151/rooms/{room_id}/report",
    auth=Auth.USER,
    limit=Limit.REPORT,
    while_suspended=True,
)
async def report_room(
    reports: Reports, caller: Requester, *, room_id: RoomID, body: ReasonBody
) -> Empty:
    """Report a room."""
    await reports.do_report_room(caller, room_id, body.reason)
    return EMPTY


@endpoint(
    "POST",
    "/_matrix/client/v3/users/{user_id}/report",
    "/_matrix/client/unstable/org.matrix.msc4260/users/{user_id}/report",
    auth=Auth.USER,
    limit=Limit.REPORT,
    while_suspended=True,
)
async def report_user(
    reports: Reports, caller: Requester, *, user_id: UserID, body: ReasonBody
) -> Empty:
    """Report a user."""
    await reports.do_report_user(caller, user_id, body.reason)
    return EMPTY
