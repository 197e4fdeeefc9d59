"""Puts the sections of a /sync response together.

spec: client-server-api#get_matrixclientv3sync
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from homeserver.services.filters.event_filters import RoomEventFilter
from homeserver.services.push.unread_counts import RoomUnread, Unread
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.device_sections import DeviceSections, as_list
from homeserver.services.sync.request import SyncRequest

NO_ROOMS: Final[Mapping[str, Any]] = {}


class SyncResponse(msgspec.Struct, frozen=True, gc=False):
    """A response. `has_changes`: whether anything is new, so that the request ends its wait."""

    body: dict[str, Any]
    has_changes: bool


def build_body(
    token: SyncToken,
    devices: DeviceSections,
    account_data: Sequence[dict[str, Any]] = (),
    presence: Sequence[msgspec.Raw] = (),
    rooms: Mapping[str, Any] = NO_ROOMS,
) -> dict[str, Any]:
    """Return the JSON of a response. `rooms`: the parts of that section that are not empty."""
    counts = devices.counts
    body: dict[str, Any] = {
        "next_batch": str(token),
        "account_data": {"events": account_data},
        "presence": {"events": presence},
        "to_device": {"events": as_list(devices.messages) if devices.messages else ()},
        "device_lists": devices.lists,
        "device_one_time_keys_count": counts.one_time,
        "device_unused_fallback_key_types": counts.unused_fallback,
        "org.matrix.msc2732.device_unused_fallback_key_types": counts.unused_fallback,
    }
    if rooms:
        body["rooms"] = rooms
    return body


def add_unread_counts(request: SyncRequest, room: dict[str, Any], count: RoomUnread) -> None:
    """Add the unread counts to the JSON of a room."""
    if not count.threads:
        room["unread_notifications"] = _unread_json(count.main)
        return
    thread_keys = _thread_keys(request.filter.room.timeline)
    room["unread_notifications"] = _unread_json(count.main if thread_keys else count.total)
    by_thread = {root: _unread_json(each) for root, each in count.threads.items()}
    room.update(dict.fromkeys(thread_keys, by_thread))


def _thread_keys(filter: RoomEventFilter) -> list[str]:
    """Return the fields in which the client wants the counts of threads, if it wants them
    (MSC3773)."""
    names = []
    if filter.unread_thread_notifications:
        names.append("unread_thread_notifications")
    if filter.unstable_thread_notifications:
        names.append("org.matrix.msc3773.unread_thread_notifications")
    return names


def _unread_json(count: Unread) -> dict[str, int]:
    return {"notification_count": count.notifications, "highlight_count": count.highlights}
