"""The parts of an answer of /sync, put together.

spec: client-server-api#get_matrixclientv3sync
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

import msgspec

from homeserver.services.filters.event_filters import RoomEventFilter
from homeserver.services.push.unread_counts import COUNTED, RoomUnread, Unread
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.devices import DeviceNews, as_list
from homeserver.services.sync.joined import RoomWork
from homeserver.services.sync.request import SyncRequest

NO_SECTIONS: Final[Mapping[str, Any]] = {}


def frame(
    token: SyncToken,
    devices: DeviceNews,
    account_data: Sequence[dict[str, Any]] = (),
    presence: Sequence[msgspec.Raw] = (),
    sections: Mapping[str, Any] = NO_SECTIONS,
) -> dict[str, Any]:
    """The answer as a whole. `sections`: those of rooms that are not empty."""
    counts = devices.counts
    answer: dict[str, Any] = {
        "next_batch": str(token),
        "account_data": {"events": account_data},
        "presence": {"events": presence},
        "to_device": {"events": as_list(devices.messages) if devices.messages else ()},
        "device_lists": devices.lists,
        "device_one_time_keys_count": counts.one_time,
        "device_unused_fallback_key_types": counts.unused_fallback,
        "org.matrix.msc2732.device_unused_fallback_key_types": counts.unused_fallback,
    }
    if sections:
        answer["rooms"] = sections
    return answer


def has_news(work: RoomWork, ignored: Set[str]) -> bool:
    """Whether there is anything to tell of the room to a client that has it."""
    return bool(
        work.whole_state
        or work.shown
        or work.limited
        or work.state
        or work.ephemeral
        or work.sticky
        or work.account_data
        # the counts may have changed
        or work.is_recounted
        or any(
            event.flags & COUNTED and event.event.sender not in ignored for event in work.arrived
        )
    )


def joined_section(
    request: SyncRequest,
    works: Sequence[RoomWork],
    json: Mapping[str, dict[str, Any]],
    counts: Mapping[int, RoomUnread],
) -> dict[str, dict[str, Any]]:
    """The rooms that the user is in, by id, with their counts. `json`: what there is of them
    beside."""
    section: dict[str, dict[str, Any]] = {}
    for work in works:
        room = json[work.room.room_id]
        add_counts(request, room, counts[work.room.room_nid])
        section[work.room.room_id] = room
    return section


def add_counts(request: SyncRequest, room: dict[str, Any], count: RoomUnread) -> None:
    """Tell in the JSON form of a room how much of it is unread."""
    if not count.threads:
        room["unread_notifications"] = _unread_json(count.main)
        return
    thread_keys = _thread_keys(request.filter.room.timeline)
    room["unread_notifications"] = _unread_json(count.main if thread_keys else count.total)
    by_thread = {root: _unread_json(each) for root, each in count.threads.items()}
    room.update(dict.fromkeys(thread_keys, by_thread))


def _thread_keys(filter: RoomEventFilter) -> list[str]:
    """Under which names the client wants the counts of threads, if it wants them (MSC3773)."""
    names = []
    if filter.unread_thread_notifications:
        names.append("unread_thread_notifications")
    if filter.unstable_thread_notifications:
        names.append("org.matrix.msc3773.unread_thread_notifications")
    return names


def _unread_json(count: Unread) -> dict[str, int]:
    return {"notification_count": count.notifications, "highlight_count": count.highlights}
