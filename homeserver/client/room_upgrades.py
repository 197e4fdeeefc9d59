"""Upgrade rooms. spec: client-server-api#room-upgrades"""

from typing import Annotated

import msgspec

from federation.protocol.ids import RoomID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.rooms.upgrade import RoomUpgrade


class UpgradeBody(msgspec.Struct, frozen=True):
    """The new version, and creators besides the caller if the version allows several."""

    new_version: str
    additional_creators: Annotated[tuple[str, ...], msgspec.Meta(max_length=100)] | None = None


@endpoint(
    "POST",
    "/_matrix/client/v3/rooms/{room_id}/upgrade",
    "/_matrix/client/r0/rooms/{room_id}/upgrade",
    auth=Auth.USER,
    limit=Limit.ROOM_CREATION,
)
async def upgrade_room(
    upgrades: RoomUpgrade, caller: Requester, *, room_id: RoomID, body: UpgradeBody
) -> dict[str, str]:
    """Replace a room with a new room of another version."""
    new_id = await upgrades.do_upgrade(
        caller, room_id, body.new_version, body.additional_creators or ()
    )
    return {"replacement_room": new_id}
