"""The endpoint that returns the hierarchy of a space to other servers.

spec: server-server-api#spaces
"""

from typing import Any

from federation.api.endpoint import ServerAuth, endpoint
from federation.api.request import Peer
from federation.protocol.errors import Forbidden
from federation.protocol.ids import RoomID
from federation.rooms.server_acl_checks import ServerACLChecks
from federation.rooms.serving.spaces import Spaces


@endpoint(
    "GET",
    "/_matrix/federation/v1/hierarchy/{room_id}",
    "/_matrix/federation/unstable/org.matrix.msc2946/hierarchy/{room_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def get_hierarchy(
    spaces: Spaces,
    access: ServerACLChecks,
    peer: Peer,
    *,
    room_id: RoomID,
    suggested_only: bool = False,
) -> dict[str, Any]:
    """Return a room with its children."""
    if not await access.is_allowed_in(room_id, peer.server_name):
        raise Forbidden(f"The server ACL of this room denies {peer.server_name}")
    return await spaces.answer_server(peer.server_name, room_id, suggested_only=suggested_only)
