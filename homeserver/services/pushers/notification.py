"""Builds the bodies of requests to push gateways, from values that the caller has read.

Laws:
- A pusher of the format `event_id_only` gets IDs and counts, and nothing that a user wrote. It gets
  no tweaks either: tweaks show whether the event mentions the user, and may contain any text from
  the user's push rules. The device fetches the event and evaluates the rules itself.
- The content of an encrypted event is never sent: a gateway cannot use it, and the push services of
  phone vendors transport only 4 KB.

spec: push-gateway-api#post_matrixpushv1notify
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from federation.protocol.events import Event
from homeserver.services.pushers.pushers import EVENT_ID_ONLY
from storage.push.pushers import PusherRow

ENCRYPTED: Final = "m.room.encrypted"
MAX_CONTENT_BYTES: Final = 16 * 1024
"""Larger content of an event is left out."""
MAX_NAME_CHARS: Final = 256
"""Longer names of rooms and senders are cut: gateways refuse a notification that is too large."""

_encode = msgspec.json.Encoder().encode


class NotificationNames(msgspec.Struct, frozen=True):
    """The display name of the sender, and name and alias of the room, if there are any."""

    sender: str | None = None
    room: str | None = None
    alias: str | None = None


def encode_event(
    pusher: PusherRow,
    event: Event,
    names: NotificationNames,
    tweaks: Mapping[str, Any],
    unread: int | None,
    *,
    with_content: bool,
) -> bytes:
    """Return the request for an event. `unread`: the badge; None if the client counts itself."""
    data = _data(pusher)
    notification: dict[str, Any] = {
        "event_id": event.event_id,
        "room_id": event.room_id,
        "prio": "high" if _is_urgent(event, tweaks) else "low",
        "devices": [_device(pusher, data, tweaks)],
    }
    if unread is not None:
        notification["counts"] = {"unread": unread} if unread else {}
    if data.get("format") != EVENT_ID_ONLY:
        notification |= {
            "type": event.type,
            "sender": event.sender,
            "user_is_target": event.type == "m.room.member" and event.state_key == pusher.user_id,
        }
        further = {
            "sender_display_name": names.sender,
            "room_name": names.room,
            "room_alias": names.alias,
        }
        notification |= {
            name: value[:MAX_NAME_CHARS] for name, value in further.items() if value is not None
        }
        if (
            with_content
            and event.type != ENCRYPTED
            and len(_encode(event.content)) <= MAX_CONTENT_BYTES
        ):
            notification["content"] = event.content
    return _encode({"notification": notification})


def encode_badge(pusher: PusherRow, unread: int) -> bytes:
    """Return the request that only sets the badge. It contains a zero: leaving it out would change
    nothing."""
    device = _device(pusher, _data(pusher), {})
    return _encode(
        {"notification": {"prio": "low", "counts": {"unread": unread}, "devices": [device]}}
    )


def _data(pusher: PusherRow) -> dict[str, Any]:
    return msgspec.json.decode(pusher.data, type=dict[str, Any])


def _device(
    pusher: PusherRow, data: Mapping[str, Any], tweaks: Mapping[str, Any]
) -> dict[str, Any]:
    device: dict[str, Any] = {
        "app_id": pusher.app_id,
        "pushkey": pusher.pushkey,
        "pushkey_ts": pusher.set_ts // 1000,
        "data": {name: value for name, value in data.items() if name != "url"},
    }
    return device if data.get("format") == EVENT_ID_ONLY else device | {"tweaks": tweaks}


def _is_urgent(event: Event, tweaks: Mapping[str, Any]) -> bool:
    """Return whether the device should wake. For an encrypted event only the device can decide."""
    return event.type == ENCRYPTED or tweaks.get("highlight") is True or "sound" in tweaks
