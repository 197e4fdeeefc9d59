"""Send events to rooms, and read them. spec: client-server-api#events"""

from typing import Annotated, Any, Literal

import msgspec

from federation.api.endpoint import QueryNames
from federation.protocol.errors import InvalidParam
from federation.protocol.events import StateKey
from federation.protocol.ids import EventID, RoomID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.filters.event_filters import RoomEventFilter, parse_room_event_filter
from homeserver.services.media.references import MediaReferences
from homeserver.services.presence.presence import Presence
from homeserver.services.rooms.delayed_events import DelayedEvents
from homeserver.services.rooms.reading import DEFAULT_PAGE, RoomReading
from homeserver.services.rooms.sending import RoomSending
from storage.events.timelines import Direction
from storage.rooms.sticky_events import MAX_STICKY_MS

Content = dict[str, Any]
DelayMs = Annotated[int | None, QueryNames("org.matrix.msc4140.delay")]
"""The delay in milliseconds after which the event is sent (MSC4140)."""
StickyMs = Annotated[
    int | None, QueryNames("sticky_duration_ms", "org.matrix.msc4354.sticky_duration_ms")
]
"""The time in milliseconds for which the event is sticky: newcomers to the room receive it too
(MSC4354)."""
AttachedMedia = Annotated[
    list[str] | None, QueryNames("attach_media", "org.matrix.msc3911.attach_media")
]
"""Media to attach to the event, which may be encrypted. They are deleted with the event (MSC3911).
"""


class SentEvent(msgspec.Struct, frozen=True):
    event_id: EventID


def _paths(suffix: str) -> tuple[str, str]:
    return (
        f"/_matrix/client/v3/rooms/{{room_id}}/{suffix}",
        f"/_matrix/client/r0/rooms/{{room_id}}/{suffix}",
    )


@endpoint(
    "PUT",
    *_paths("send/{event_type}/{txn_id}"),
    auth=Auth.GUEST,
    limit=Limit.MESSAGE,
    max_body=128 * 1024,
    while_suspended=True,
)
async def send_message(
    sending: RoomSending,
    delayed: DelayedEvents,
    references: MediaReferences,
    presence: Presence,
    caller: Requester,
    *,
    room_id: RoomID,
    event_type: str,
    txn_id: str,
    body: Content,
    ts: int | None = None,
    delay: DelayMs = None,
    sticky: StickyMs = None,
    attached: AttachedMedia = None,
) -> Any:
    """Send a message event, once for each transaction ID. A suspended user may redact their own
    events."""
    presence.record_activity(caller)
    files = await references.check_attachments(caller.user_id, attached or ())
    if delay is not None:
        if files:
            raise InvalidParam("Files cannot be attached to a delayed event")
        delay_id = await delayed.do_schedule(
            caller, room_id, event_type, None, body, delay, txn_id, ts, _check_sticky(sticky)
        )
        return {"delay_id": delay_id}
    response = await sending.do_send(
        caller, room_id, event_type, body, txn_id, ts, sticky_ms=_check_sticky(sticky)
    )
    if files:
        await references.do_attach(msgspec.json.decode(response, type=SentEvent).event_id, files)
    return response


RelationTypes = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=255)], ...],
    msgspec.Meta(max_length=20),
]


class RedactionBody(msgspec.Struct, frozen=True):
    """The reason of a redaction, and the relation types whose child events are redacted too (`*`
    for all; MSC3912)."""

    reason: str | None = None
    with_rel_types: RelationTypes | None = None
    with_relations: RelationTypes | None = msgspec.field(
        default=None, name="org.matrix.msc3912.with_relations"
    )


@endpoint(
    "PUT",
    *_paths("redact/{event_id}/{txn_id}"),
    auth=Auth.GUEST,
    limit=Limit.MESSAGE,
    admin_limit=Limit.ADMIN_REDACTION,
    while_suspended=True,
)
async def redact_event(
    sending: RoomSending,
    presence: Presence,
    caller: Requester,
    *,
    room_id: RoomID,
    event_id: EventID,
    txn_id: str,
    body: RedactionBody = RedactionBody(),
) -> msgspec.Raw:
    """Redact an event."""
    presence.record_activity(caller)
    related = body.with_rel_types or body.with_relations or ()
    return await sending.do_redact(caller, room_id, event_id, body.reason, txn_id, related)


@endpoint(
    "PUT",
    *_paths("state/{event_type}/{state_key}"),
    *_paths("state/{event_type}"),
    auth=Auth.GUEST,
    limit=Limit.MESSAGE,
    max_body=128 * 1024,
    while_suspended=True,
)
async def set_room_state(
    sending: RoomSending,
    delayed: DelayedEvents,
    references: MediaReferences,
    presence: Presence,
    caller: Requester,
    *,
    room_id: RoomID,
    event_type: str,
    state_key: str = "",
    body: Content,
    ts: int | None = None,
    delay: DelayMs = None,
    sticky: StickyMs = None,
    attached: AttachedMedia = None,
) -> dict[str, str]:
    """Set a state entry. A suspended user may only leave the room."""
    presence.record_activity(caller)
    files = await references.check_attachments(caller.user_id, attached or ())
    if delay is not None:
        if files:
            raise InvalidParam("Files cannot be attached to a delayed event")
        delay_id = await delayed.do_schedule(
            caller, room_id, event_type, state_key, body, delay, None, ts, _check_sticky(sticky)
        )
        return {"delay_id": delay_id}
    event_id = await sending.do_set_state(
        caller, room_id, event_type, state_key, body, ts, sticky_ms=_check_sticky(sticky)
    )
    if files:
        await references.do_attach(event_id, files)
    return {"event_id": event_id}


@endpoint(
    "GET", *_paths("state/{event_type}/{state_key}"), *_paths("state/{event_type}"), auth=Auth.GUEST
)
async def get_room_state_with_key(
    reading: RoomReading,
    caller: Requester,
    *,
    room_id: RoomID,
    event_type: str,
    state_key: str = "",
    format: Literal["content", "event"] = "content",
) -> Any:
    """Return one state entry: its content or the complete event."""
    return await reading.get_state_entry(
        caller, room_id, StateKey(event_type, state_key), as_event=format == "event"
    )


@endpoint("GET", *_paths("state"), auth=Auth.GUEST)
async def get_room_state(
    reading: RoomReading, caller: Requester, *, room_id: RoomID
) -> msgspec.Raw:
    """Return the complete current state."""
    return await reading.get_state(caller, room_id)


@endpoint("GET", *_paths("messages"), auth=Auth.GUEST)
async def get_room_messages(
    reading: RoomReading,
    caller: Requester,
    *,
    room_id: RoomID,
    dir: Literal["b", "f"],
    from_: str | None = None,
    to: str | None = None,
    limit: int = DEFAULT_PAGE,
    filter: str | None = None,
) -> dict[str, Any]:
    """Return a page of the timeline."""
    return await reading.get_messages(
        caller, room_id, Direction(dir), from_, to, limit, _filter(filter)
    )


@endpoint("GET", *_paths("event/{event_id}"), auth=Auth.GUEST)
async def get_room_event(
    reading: RoomReading, caller: Requester, *, room_id: RoomID, event_id: EventID
) -> msgspec.Raw:
    """Return one event."""
    return await reading.get_event(caller, room_id, event_id)


@endpoint("GET", *_paths("context/{event_id}"), auth=Auth.GUEST)
async def get_event_context(
    reading: RoomReading,
    caller: Requester,
    *,
    room_id: RoomID,
    event_id: EventID,
    limit: int = DEFAULT_PAGE,
    filter: str | None = None,
) -> dict[str, Any]:
    """Return an event with the events around it."""
    return await reading.get_context(caller, room_id, event_id, limit, _filter(filter))


@endpoint("GET", *_paths("members"), auth=Auth.GUEST)
async def get_members_by_room(
    reading: RoomReading,
    caller: Requester,
    *,
    room_id: RoomID,
    at: str | None = None,
    membership: Literal["join", "invite", "knock", "leave", "ban"] | None = None,
    not_membership: Literal["join", "invite", "knock", "leave", "ban"] | None = None,
) -> dict[str, msgspec.Raw]:
    """Return the membership events of a room."""
    return {"chunk": await reading.get_members(caller, room_id, at, membership, not_membership)}


@endpoint("GET", *_paths("joined_members"), auth=Auth.GUEST)
async def get_joined_members_by_room(
    reading: RoomReading, caller: Requester, *, room_id: RoomID
) -> dict[str, msgspec.Raw]:
    """Return the display names and avatars of the joined members."""
    return {"joined": await reading.get_joined_members(caller, room_id)}


def _check_sticky(duration_ms: int | None) -> int | None:
    if duration_ms is not None and not 0 <= duration_ms <= MAX_STICKY_MS:
        raise InvalidParam(
            f"The sticky duration must be between 0 and {MAX_STICKY_MS} milliseconds"
        )
    return duration_ms


def _filter(text: str | None) -> RoomEventFilter:
    return RoomEventFilter() if text is None else parse_room_event_filter(text)
