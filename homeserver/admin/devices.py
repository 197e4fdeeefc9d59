"""Devices of accounts, for administrators: lists, making, naming and removing them. The paths and
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


class NewDevice(msgspec.Struct, frozen=True):
    device_id: str | UnsetType = UNSET


class Rename(msgspec.Struct, frozen=True):
    """Without a name it keeps the one that it has."""

    display_name: str | None = None


class RemoveMany(msgspec.Struct, frozen=True):
    """Tools that tidy up send all that a bot has left in the course of years at once."""

    devices: Annotated[list[str], msgspec.Meta(max_length=10_000)] | UnsetType = UNSET


@endpoint("GET", _DEVICES, auth=Auth.ADMIN)
async def get_devices_of_user(devices: DeviceAdministration, *, user_id: UserID) -> dict[str, Any]:
    """All devices of an account. Where it has a dehydrated one, each says whether it is that.
    Raises `InvalidParam`, `NotFound`."""
    found = await devices.get_devices(user_id)
    shown = [_shown(device) for device in found.devices]
    if found.dehydrated is not None:
        shown = [{**each, "dehydrated": each["device_id"] == found.dehydrated} for each in shown]
    return {"devices": shown, "total": len(shown)}


@endpoint("POST", _DEVICES, auth=Auth.ADMIN)
async def post_device_of_user(
    devices: DeviceAdministration, *, user_id: UserID, body: NewDevice
) -> Response:
    """Make a device that nobody is signed in on; 201 also where it is there. Raises as
    `DeviceAdministration.do_make`."""
    if body.device_id is UNSET:
        raise MissingParam("device_id is missing")
    await devices.do_make(user_id, parse_device_id(body.device_id))
    return Response(HTTPStatus.CREATED, {}, {})


@endpoint("GET", _DEVICE, auth=Auth.ADMIN)
async def get_device_of_user(
    devices: DeviceAdministration, *, user_id: UserID, device_id: DeviceID
) -> dict[str, Any]:
    """One of them. Raises `InvalidParam`, `NotFound`."""
    return _shown(await devices.get_device(user_id, device_id))


@endpoint("PUT", _DEVICE, auth=Auth.ADMIN)
async def put_device_of_user(
    devices: DeviceAdministration, *, user_id: UserID, device_id: DeviceID, body: Rename = Rename()
) -> Empty:
    """Name one. Raises as `DeviceAdministration.do_rename`."""
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
    """Remove one, and end its session; none of this id is no error. Raises `InvalidParam`,
    `NotFound` for an unknown user."""
    await devices.do_remove(user_id, [device_id], caller.user_id, context.client_ip)
    return EMPTY


@endpoint("POST", f"{_USER}/delete_devices", auth=Auth.ADMIN, max_body=256 << 10)
async def post_delete_devices_of_user(
    devices: DeviceAdministration,
    caller: Requester,
    context: RequestContext,
    *,
    user_id: UserID,
    body: RemoveMany,
) -> Empty:
    """Remove some, likewise."""
    if body.devices is UNSET:
        raise MissingParam("devices is missing: a list of ids of devices")
    ids = [parse_device_id(each) for each in body.devices]
    await devices.do_remove(user_id, ids, caller.user_id, context.client_ip)
    return EMPTY


def _shown(device: DeviceRow) -> dict[str, Any]:
    return {
        "device_id": device.device_id,
        "display_name": device.display_name,
        "user_id": device.user_id,
        "last_seen_ip": device.last_seen_ip,
        "last_seen_ts": device.last_seen_ts,
        "last_seen_user_agent": device.last_seen_user_agent,
    }
