"""List, rename and delete the devices of a user. spec: client-server-api#device-management"""

from http import HTTPStatus
from typing import Annotated

import msgspec

from federation.api.request import RequestContext
from federation.protocol.ids import DeviceID, parse_device_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty, Response
from homeserver.services.devices.devices import Devices
from storage.devices.devices import DeviceRow


class RenameDeviceBody(msgspec.Struct, frozen=True):
    display_name: str | None = None


class DeleteDeviceBody(msgspec.Struct, frozen=True):
    auth: dict[str, object] | None = None


class DeleteDevicesBody(msgspec.Struct, frozen=True, kw_only=True):
    devices: Annotated[list[str], msgspec.Meta(max_length=1000)]
    auth: dict[str, object] | None = None


@endpoint("GET", "/_matrix/client/v3/devices", "/_matrix/client/r0/devices", auth=Auth.GUEST)
async def get_devices(devices: Devices, caller: Requester) -> dict[str, object]:
    """Return all devices of the caller."""
    return {"devices": [_device(device) for device in await devices.get_devices(caller.user_id)]}


@endpoint(
    "GET",
    "/_matrix/client/v3/devices/{device_id}",
    "/_matrix/client/r0/devices/{device_id}",
    auth=Auth.GUEST,
)
async def get_device(
    devices: Devices, caller: Requester, *, device_id: DeviceID
) -> dict[str, object]:
    """Return one device of the caller."""
    return _device(await devices.get_device(caller.user_id, device_id))


@endpoint(
    "PUT",
    "/_matrix/client/v3/devices/{device_id}",
    "/_matrix/client/r0/devices/{device_id}",
    auth=Auth.GUEST,
    limit=Limit.DEVICE_CHANGE,
    while_suspended=True,
)
async def put_device(
    devices: Devices, caller: Requester, *, device_id: DeviceID, body: RenameDeviceBody
) -> Response | Empty:
    """Rename a device. An application service may also create one."""
    if await devices.do_create(caller, parse_device_id(device_id), body.display_name):
        return Response(HTTPStatus.CREATED, {}, {})
    await devices.do_rename(caller.user_id, device_id, body.display_name)
    return EMPTY


@endpoint(
    "DELETE",
    "/_matrix/client/v3/devices/{device_id}",
    "/_matrix/client/r0/devices/{device_id}",
    auth=Auth.USER,
    while_suspended=True,
)
async def delete_device(
    devices: Devices,
    caller: Requester,
    context: RequestContext,
    *,
    device_id: DeviceID,
    body: DeleteDeviceBody = DeleteDeviceBody(),
) -> Empty:
    """Delete a device, after user-interactive authentication."""
    await devices.do_remove(caller, [device_id], body.auth, context.client_ip)
    return EMPTY


@endpoint(
    "POST",
    "/_matrix/client/v3/delete_devices",
    "/_matrix/client/r0/delete_devices",
    auth=Auth.USER,
    while_suspended=True,
)
async def post_delete_devices(
    devices: Devices, caller: Requester, context: RequestContext, *, body: DeleteDevicesBody
) -> Empty:
    """Delete several devices, after user-interactive authentication."""
    await devices.do_remove(
        caller, [parse_device_id(each) for each in body.devices], body.auth, context.client_ip
    )
    return EMPTY


def _device(device: DeviceRow) -> dict[str, object]:
    fields = {
        "device_id": device.device_id,
        "display_name": device.display_name,
        "last_seen_ip": device.last_seen_ip,
        "last_seen_ts": device.last_seen_ts,
    }
    return {name: value for name, value in fields.items() if value is not None}
