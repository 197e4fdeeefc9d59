"""Receipts, read markers and typing notifications. spec: client-server-api#receipts,
client-server-api#typing-notifications"""

from typing import Any

import msgspec

from federation.protocol.errors import Forbidden, InvalidParam
from federation.protocol.ids import EventID, RoomID, UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.ephemeral.typing import DEFAULT_TIMEOUT_MS, Typing
from homeserver.services.presence.presence import Presence
from homeserver.services.rooms.reading import RoomReading
from homeserver.services.rooms.receipts import ReadMarkers


def _paths(suffix: str) -> tuple[str, str]:
    return (
        f"/_matrix/client/v3/rooms/{{room_id}}/{suffix}",
        f"/_matrix/client/r0/rooms/{{room_id}}/{suffix}",
    )


class ReceiptBody(msgspec.Struct, frozen=True):
    """The thread of the receipt."""

    thread_id: Any = msgspec.UNSET
    """Any JSON value, so that a wrong type is an invalid parameter and not malformed JSON."""

    def read(self) -> str | None:
        """Return the thread ID, or None for an unthreaded receipt. Raises InvalidParam."""
        if self.thread_id is msgspec.UNSET:
            return None
        if not isinstance(self.thread_id, str):
            raise InvalidParam("thread_id must be the event id of a thread root, or main")
        return self.thread_id


@endpoint(
    "POST",
    *_paths("receipt/{receipt_type}/{event_id}"),
    auth=Auth.USER,
    limit=Limit.RECEIPT,
    while_suspended=True,
)
async def post_receipt(
    markers: ReadMarkers,
    presence: Presence,
    caller: Requester,
    *,
    room_id: RoomID,
    receipt_type: str,
    event_id: EventID,
    body: ReceiptBody = ReceiptBody(),
) -> Empty:
    """Move one receipt."""
    presence.record_activity(caller)
    await markers.do_move(caller, room_id, {receipt_type: event_id}, body.read())
    return EMPTY


class MarkersBody(msgspec.Struct, frozen=True):
    """The event IDs of the fully read marker and of the receipts."""

    fully_read: EventID | None = msgspec.field(default=None, name="m.fully_read")
    read: EventID | None = msgspec.field(default=None, name="m.read")
    read_private: EventID | None = msgspec.field(default=None, name="m.read.private")


@endpoint(
    "POST", *_paths("read_markers"), auth=Auth.USER, limit=Limit.RECEIPT, while_suspended=True
)
async def set_read_marker(
    markers: ReadMarkers,
    presence: Presence,
    caller: Requester,
    *,
    room_id: RoomID,
    body: MarkersBody = MarkersBody(),
) -> Empty:
    """Move the fully read marker and receipts in one request."""
    presence.record_activity(caller)
    receipts = {
        "m.fully_read": body.fully_read,
        "m.read": body.read,
        "m.read.private": body.read_private,
    }
    await markers.do_move(
        caller, room_id, {kind: event_id for kind, event_id in receipts.items() if event_id}, None
    )
    return EMPTY


class TypingBody(msgspec.Struct, frozen=True):
    """Whether the user is typing, and the timeout in milliseconds."""

    typing: bool
    timeout: int | None = None


@endpoint("PUT", *_paths("typing/{user_id}"), auth=Auth.USER, limit=Limit.TYPING)
async def set_typing(
    typing: Typing,
    reading: RoomReading,
    presence: Presence,
    caller: Requester,
    *,
    room_id: RoomID,
    user_id: UserID,
    body: TypingBody,
) -> Empty:
    """Set whether the caller is typing."""
    if user_id != caller.user_id:
        raise Forbidden("You can only set your own typing state")
    snapshot = await reading.check_joined(caller.user_id, room_id)
    presence.record_activity(caller)
    timeout = DEFAULT_TIMEOUT_MS if body.timeout is None else body.timeout
    if not caller.is_shadow_banned:
        typing.set_typing(snapshot.room.room_nid, user_id, timeout if body.typing else None)
    return EMPTY
