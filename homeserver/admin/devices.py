"""Devices of accounts, for administrators: list, create, rename and delete them. The paths and
names are Synapse's."""

from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from federation.api.request import RequestContext
from federation.protocol.errors import MissingParam
from federation.protocol.ids import DeviceID, UserID, parse_device_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty, Response
from homeserver.services.administration.devices import DeviceAdministration
from storage.devices.devices import DeviceRow

_USER = "/_synapse/admin/v2/users/{user_id}"
_DEVICES = f"{_USER}/devices"
_DEVICE = f"{_DEVICES}/{{device_id}}"


class NewDeviceBody(msgspec.Struct, frozen=True):
    device_id: str | UnsetType = UNSET


class AdminRenameDeviceBody(msgspec.Struct, frozen=True):
    """The new name. Without a name the device keeps its current one."""

    display_name: str | None = None


class AdminDeleteDevicesBody(msgspec.Struct, frozen=True):
    """The devices to delete. The bound is high: clean-up tools send all devices that a bot has
    created over years."""

    devices: Annotated[list[str], msgspec.Meta(max_length=10_000)] | UnsetType = UNSET


@endpoint("GET", _DEVICES, auth=Auth.ADMIN)
async def get_devices_of_user(devices: DeviceAdministration, *, user_id: UserID) -> dict[str, Any]:
    """Return all devices of an account. If it has a dehydrated device, each entry says whether it
    is that one. Raises `InvalidParam`, `NotFound`."""
    found = await devices.get_devices(user_id)
    shown = [_describe(device) for device in found.devices]
    if found.dehydrated is not None:
        shown = [{**each, "dehydrated": each["device_id"] == found.dehydrated} for each in shown]
    return {"devices": shown, "total": len(shown)}


@endpoint("POST", _DEVICES, auth=Auth.ADMIN)
async def post_device_of_user(
    devices: DeviceAdministration, *, user_id: UserID, body: NewDeviceBody
) -> Response:
    """Create a device without a session. Answers 201 even if it exists already. Raises as
    `DeviceAdministration.do_create`."""
    if body.device_id is UNSET:
        raise MissingParam("device_id is missing")
    await devices.do_create(user_id, parse_device_id(body.device_id))
    return Response(HTTPStatus.CREATED, {}, {})


@endpoint("GET", _DEVICE, auth=Auth.ADMIN)
async def get_device_of_user(
    devices: DeviceAdministration, *, user_id: UserID, device_id: DeviceID
) -> dict[str, Any]:
    """Return one device. Raises `InvalidParam`, `NotFound`."""
    return _describe(await devices.get_device(user_id, device_id))


@endpoint("PUT", _DEVICE, auth=Auth.ADMIN)
async def put_device_of_user(
    devices: DeviceAdministration,
    *,
    user_id: UserID,
    device_id: DeviceID,
    body: AdminRenameDeviceBody = AdminRenameDeviceBody(),
) -> Empty:
    """Rename a device. Raises what `DeviceAdministration.do_rename` raises."""
    await devices.do_rename(user_id, device_id, body.display_name)
    return EMPTY


@endpoint("DELETE", _DEVICE, auth=Auth.ADMIN)
async def delete_device_of_user(
    devices: DeviceAdministration,
    caller: Requester,
    context: RequestContext,
    *,
    user_id: UserID,
    device_id: DeviceID,
) -> Empty:
    """Delete a device and end its session. It is not an error if the device is unknown. Raises
    `InvalidParam`, `NotFound` for an unknown user."""
    await devices.do_remove(user_id, [device_id], caller.user_id, context.client_ip)
    return EMPTY


@endpoint("POST", f"{_USER}/delete_devices", auth=Auth.ADMIN, max_body=256 << 10)
async def post_delete_devices_of_user(
    devices: DeviceAdministration,
    caller: Requester,
    context: RequestContext,
    *,
    user_id: UserID,
    body: AdminDeleteDevicesBody,
) -> Empty:
    """Delete several devices and end their sessions. Raises what `delete_device_of_user` raises."""
    if body.devices is UNSET:
        raise MissingParam("devices is missing: a list of device IDs")
    ids = [parse_device_id(each) for each in body.devices]
    await devices.do_remove(user_id, ids, caller.user_id, context.client_ip)
    return EMPTY


def _describe(device: DeviceRow) -> dict[str, Any]:
    return {
        "device_id": device.device_id,
        "display_name": device.display_name,
        "user_id": device.user_id,
        "last_seen_ip": device.last_seen_ip,
        "last_seen_ts": device.last_seen_ts,
        "last_seen_user_agent": device.last_seen_user_agent,
    }
