"""Managing events that are sent later. Proposal: MSC4140, in the words of both its texts.

They are scheduled here, or by a `delay` where events are sent (`homeserver/client/room_events.py`).
Managing one needs no token: who knows its id may do so, such as the server of a call to which a
client has told it.
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
    TooManyDelayed,
)

_PREFIX = "/_matrix/client/unstable/org.matrix.msc4140"
_ALL = ("/_matrix/client/v1/delayed_events", _PREFIX + "/delayed_events")
_ONE = tuple(path + "/{delay_id}" for path in _ALL)

Action = Literal["send", "cancel", "restart"]


class ScheduleBody(msgspec.Struct, frozen=True):
    """An event, and in how many milliseconds it is to be sent."""

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
    """Schedule an event."""
    try:
        delay_id = await delayed.do_schedule(
            caller, room_id, event_type, body.state_key, body.content, body.delay_ms, txn_id, ts
        )
    except DelayTooLong as error:
        raise Forbidden(error.text) from None
    except TooManyDelayed as error:
        raise LimitExceeded(error.text, retry_after_ms=error.next_ms) from None
    return {"delay_id": delay_id}


@endpoint("GET", *_ALL, auth=Auth.GUEST, limit=Limit.DELAYED_EVENT)
async def get_delayed_events(
    delayed: DelayedEvents,
    caller: Requester,
    *,
    status: Literal["scheduled", "finalised"] | None = None,
    delay_id: list[str] | None = None,
) -> dict[str, Any]:
    """The caller's events, in the words of either text."""
    answer: dict[str, Any] = {}
    if status != "finalised":
        scheduled = await delayed.get_scheduled(caller)
        if delay_id:
            scheduled = [event for event in scheduled if event["delay_id"] in delay_id]
        answer |= {"delayed_events": scheduled, "scheduled": scheduled}
    if status != "scheduled":
        finalised = await delayed.get_finalised(caller)
        if delay_id:
            finalised = [
                event for event in finalised if event["delayed_event"]["delay_id"] in delay_id
            ]
        answer["finalised"] = finalised
    return answer


@endpoint("GET", *_ONE, auth=Auth.GUEST, limit=Limit.DELAYED_EVENT)
async def get_delayed_event(
    delayed: DelayedEvents, caller: Requester, *, delay_id: str
) -> dict[str, Any]:
    """One of the caller's events."""
    return await delayed.get_event(caller, delay_id)


@endpoint("POST", "/_matrix/client/v1/delayed_events/{delay_id}/{action}", auth=Auth.NONE)
async def manage_delayed_event(delayed: DelayedEvents, *, delay_id: str, action: Action) -> Empty:
    """Send an event now, put it off by its whole delay, or cancel it."""
    return await _manage(delayed, delay_id, action)


@endpoint("POST", _PREFIX + "/delayed_events/{delay_id}/{action}", auth=Auth.NONE)
async def manage_delayed_event_as_released(
    delayed: DelayedEvents, *, delay_id: str, action: Action
) -> Empty:
    """The same for released clients."""
    return await _manage_as_released(delayed, delay_id, action)


class ManageBody(msgspec.Struct, frozen=True):
    """What is to be done."""

    action: Action


@endpoint("POST", _PREFIX + "/delayed_events/{delay_id}", auth=Auth.NONE)
async def manage_delayed_event_by_body(
    delayed: DelayedEvents, *, delay_id: str, body: ManageBody
) -> Empty:
    """The same, as clients asked for it until the end of 2025."""
    return await _manage_as_released(delayed, delay_id, body.action)


async def _manage_as_released(delayed: DelayedEvents, delay_id: str, action: Action) -> Empty:
    try:
        return await _manage(delayed, delay_id, action)
    except AlreadyFinalised as error:
        # COMPAT(matrix-js-sdk, Element Call): for an event that is sent or cancelled already they
        # expect M_NOT_FOUND
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
