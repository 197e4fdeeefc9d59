"""What a push gateway is told: the bodies of requests, from plain values.

Laws:
- A pusher of the format `event_id_only` is told ids and numbers, and nothing that somebody wrote:
  neither are the tweaks, which say whether it names the user, and are whatever the user's rules
  say. The device reads the event, and knows the rules itself.
- The content of an encrypted event is told to nobody: a gateway can make nothing of it, and vendors
  carry but 4 KB.

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
"""Of an event's content; what is larger is left out."""
MAX_NAME_CHARS: Final = 256
"""Of what a room and who writes are called; what is longer is cut. Gateways refuse a whole
notification that is too much for them."""

_encode = msgspec.json.Encoder().encode


class Names(msgspec.Struct, frozen=True):
    """What people call the one who sent an event and the room, where there are names."""

    sender: str | None = None
    room: str | None = None
    alias: str | None = None


def encode_event(
    pusher: PusherRow,
    event: Event,
    names: Names,
    tweaks: Mapping[str, Any],
    unread: int | None,
    *,
    with_content: bool,
) -> bytes:
    """The request about an event. `unread`: the number for the badge; None where the client counts
    itself."""
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
    """The request that only sets the badge. A zero is said here: left out it would change
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
    """Whether the device should wake for it. Of an encrypted event only the device can tell."""
    return event.type == ENCRYPTED or tweaks.get("highlight") is True or "sound" in tweaks
