"""Set, read and delete the dehydrated device of a user. spec: MSC3814

A client reads the device's messages page by page. With GET, the last page has no `next_batch`.
Older clients use POST, and stop when a page is empty.
"""

from typing import Any

import msgspec

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.encryption.dehydrated_devices import (
    DehydratedDevices,
    DehydratedMessagePage,
    NewDehydratedDevice,
)

UNSTABLE = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
PATHS = ("/_matrix/client/v1/dehydrated_device", UNSTABLE)
EVENTS = "/{device_id}/events"


@endpoint(
    "PUT",
    *PATHS,
    auth=Auth.USER,
    limit=Limit.DEVICE_CHANGE,
    max_body=1024 * 1024,
    while_suspended=True,
)
async def put_dehydrated_device(
    devices: DehydratedDevices, caller: Requester, *, body: NewDehydratedDevice
) -> dict[str, Any]:
    """Store a dehydrated device. It replaces the previous one."""
    await devices.do_set(caller, body)
    return {"device_id": body.device_id}


@endpoint("GET", *PATHS, auth=Auth.USER)
async def get_dehydrated_device(devices: DehydratedDevices, caller: Requester) -> dict[str, Any]:
    """Return the data that a client needs to rehydrate the device."""
    device = await devices.get_device(caller.user_id)
    return {"device_id": device.device_id, "device_data": msgspec.Raw(device.device_data)}


@endpoint("DELETE", *PATHS, auth=Auth.USER, limit=Limit.DEVICE_CHANGE, while_suspended=True)
async def delete_dehydrated_device(devices: DehydratedDevices, caller: Requester) -> dict[str, Any]:
    """Delete the dehydrated device."""
    return {"device_id": await devices.do_remove(caller.user_id)}


@endpoint("GET", *(path + EVENTS for path in PATHS), auth=Auth.USER)
async def get_dehydrated_device_events(
    devices: DehydratedDevices, caller: Requester, *, device_id: str, from_: str | None = None
) -> dict[str, Any]:
    """Return one page of the to-device messages sent to the device."""
    page = await devices.get_messages(caller.user_id, device_id, from_)
    return {"events": _events(page)} | ({} if page.is_last else {"next_batch": str(page.end)})


class EventsBody(msgspec.Struct, frozen=True):
    """The page token of the older endpoint."""

    next_batch: str | None = None


@endpoint("POST", UNSTABLE + EVENTS, auth=Auth.USER, while_suspended=True)
async def post_dehydrated_device_events(
    devices: DehydratedDevices,
    caller: Requester,
    *,
    device_id: str,
    body: EventsBody = EventsBody(),
) -> dict[str, Any]:
    """Return one page of messages, in the form that older clients use."""
    page = await devices.get_messages(caller.user_id, device_id, body.next_batch)
    return {"events": _events(page), "next_batch": str(page.end)}


def _events(page: DehydratedMessagePage) -> list[msgspec.Raw]:
    return [msgspec.Raw(message.content) for message in page.messages]
