"""Delayed events: schedule, list, send, restart and cancel them. Serves the current form of
MSC4140, and the earlier forms that released clients use.

Clients schedule events here, or with the `org.matrix.msc4140.delay` parameter of the send endpoints
(`homeserver/client/room_events.py`). Sending, restarting or cancelling an event needs no access
token, because its `delay_id` is secret. A client may pass the `delay_id` to another service, such
as the server of a call.
"""

from typing import Any, Literal

import msgspec

from federation.protocol.errors import Forbidden, LimitExceeded, NotFound
from federation.protocol.ids import RoomID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.rooms.delayed_events import (
    AlreadyFinalised,
    DelayedEvents,
    DelayTooLong,
    TooManyDelayedEvents,
)

_PREFIX = "/_matrix/client/unstable/org.matrix.msc4140"
_ALL = ("/_matrix/client/v1/delayed_events", _PREFIX + "/delayed_events")
_ONE = tuple(path + "/{delay_id}" for path in _ALL)

Action = Literal["send", "cancel", "restart"]


class ScheduleBody(msgspec.Struct, frozen=True):
    """The event, and the delay in milliseconds after which it is sent."""

    delay_ms: int
    content: dict[str, Any]
    state_key: str | None = None


@endpoint(
    "PUT",
    "/_matrix/client/v3/rooms/{room_id}/delayed_event/{event_type}/{txn_id}",
    _PREFIX + "/rooms/{room_id}/delayed_event/{event_type}/{txn_id}",
    auth=Auth.GUEST,
    limit=Limit.MESSAGE,
    max_body=128 * 1024,
)
async def schedule_event(
    delayed: DelayedEvents,
    caller: Requester,
    *,
    room_id: RoomID,
    event_type: str,
    txn_id: str,
    body: ScheduleBody,
    ts: int | None = None,
) -> dict[str, str]:
    """Schedule a delayed event."""
    try:
        delay_id = await delayed.do_schedule(
            caller, room_id, event_type, body.state_key, body.content, body.delay_ms, txn_id, ts
        )
    except DelayTooLong as error:
        raise Forbidden(error.text) from None
    except TooManyDelayedEvents as error:
        raise LimitExceeded(error.text, retry_after_ms=error.retry_after_ms) from None
    return {"delay_id": delay_id}


@endpoint("GET", *_ALL, auth=Auth.GUEST, limit=Limit.DELAYED_EVENT)
async def get_delayed_events(
    delayed: DelayedEvents,
    caller: Requester,
    *,
    status: Literal["scheduled", "finalised"] | None = None,
    delay_id: list[str] | None = None,
) -> dict[str, Any]:
    """Return the caller's delayed events, with the field names of both drafts."""
    response: dict[str, Any] = {}
    if status != "finalised":
        scheduled = await delayed.get_scheduled(caller)
        if delay_id:
            scheduled = [event for event in scheduled if event["delay_id"] in delay_id]
        response |= {"delayed_events": scheduled, "scheduled": scheduled}
    if status != "scheduled":
        finalised = await delayed.get_finalised(caller)
        if delay_id:
            finalised = [
                event for event in finalised if event["delayed_event"]["delay_id"] in delay_id
            ]
        response["finalised"] = finalised
    return response


@endpoint("GET", *_ONE, auth=Auth.GUEST, limit=Limit.DELAYED_EVENT)
async def get_delayed_event(
    delayed: DelayedEvents, caller: Requester, *, delay_id: str
) -> dict[str, Any]:
    """Return one of the caller's delayed events."""
    return await delayed.get_event(caller, delay_id)


@endpoint("POST", "/_matrix/client/v1/delayed_events/{delay_id}/{action}", auth=Auth.NONE)
async def manage_delayed_event(delayed: DelayedEvents, *, delay_id: str, action: Action) -> Empty:
    """Send a delayed event now, restart its delay, or cancel it."""
    return await _manage(delayed, delay_id, action)


@endpoint("POST", _PREFIX + "/delayed_events/{delay_id}/{action}", auth=Auth.NONE)
async def manage_delayed_event_as_released(
    delayed: DelayedEvents, *, delay_id: str, action: Action
) -> Empty:
    """Manage a delayed event, with the errors that released clients expect."""
    return await _manage_as_released(delayed, delay_id, action)


class ManageBody(msgspec.Struct, frozen=True):
    """The action to take."""

    action: Action


@endpoint("POST", _PREFIX + "/delayed_events/{delay_id}", auth=Auth.NONE)
async def manage_delayed_event_by_body(
    delayed: DelayedEvents, *, delay_id: str, body: ManageBody
) -> Empty:
    """Manage a delayed event, with the action in the body, as clients did until the end of 2025."""
    return await _manage_as_released(delayed, delay_id, body.action)


async def _manage_as_released(delayed: DelayedEvents, delay_id: str, action: Action) -> Empty:
    try:
        return await _manage(delayed, delay_id, action)
    except AlreadyFinalised as error:
        # COMPAT(matrix-js-sdk, Element Call): they expect M_NOT_FOUND for an event that is already
        # sent or cancelled
        raise NotFound(error.text) from None


async def _manage(delayed: DelayedEvents, delay_id: str, action: Action) -> Empty:
    match action:
        case "send":
            await delayed.do_send(delay_id)
        case "cancel":
            await delayed.do_cancel(delay_id)
        case "restart":
            await delayed.do_restart(delay_id)
    return EMPTY
