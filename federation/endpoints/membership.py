"""Endpoints for joins, leaves and knocks of other servers' users (make_join, send_join, …).

spec: server-server-api#joining-rooms, server-server-api#leaving-rooms-rejecting-invites,
server-server-api#knocking-rooms
"""

from typing import Annotated, Any, Final

import msgspec

from federation.api.endpoint import QueryNames, ServerAuth, endpoint
from federation.api.request import Peer
from federation.api.responses import Response
from federation.protocol.ids import EventID, RoomID, UserID
from federation.rooms.joins.make_send import MembershipHandshakes

MAX_BODY: Final = 128 * 1024
"""Longest body: a PDU of 64 KiB in canonical form may be longer as it is sent."""

Versions = Annotated[list[str] | None, QueryNames("ver")]


@endpoint(
    "GET",
    "/_matrix/federation/v1/make_join/{room_id}/{user_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def make_join(
    handshakes: MembershipHandshakes,
    peer: Peer,
    *,
    room_id: RoomID,
    user_id: UserID,
    versions: Versions = None,
) -> dict[str, Any]:
    """Return a template for a join. A server that names no version supports version 1."""
    return await handshakes.make_join(peer.server_name, room_id, user_id, versions or ["1"])


@endpoint(
    "PUT",
    "/_matrix/federation/v2/send_join/{room_id}/{event_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    max_body=MAX_BODY,
)
async def send_join(
    handshakes: MembershipHandshakes,
    peer: Peer,
    *,
    room_id: RoomID,
    event_id: EventID,
    body: dict[str, Any],
    omit_members: Annotated[
        bool, QueryNames("omit_members", "org.matrix.msc3706.partial_state")
    ] = False,
) -> Response:
    """Complete the join of a user."""
    return await handshakes.do_join(
        peer.server_name, room_id, event_id, body, omit_members=omit_members, is_v1=False
    )


@endpoint(
    "PUT",
    "/_matrix/federation/v1/send_join/{room_id}/{event_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    max_body=MAX_BODY,
)
async def send_join_v1(
    handshakes: MembershipHandshakes,
    peer: Peer,
    *,
    room_id: RoomID,
    event_id: EventID,
    body: dict[str, Any],
) -> Response:
    """Complete the join of a user, as in version 1."""
    return await handshakes.do_join(
        peer.server_name, room_id, event_id, body, omit_members=False, is_v1=True
    )


@endpoint(
    "GET",
    "/_matrix/federation/v1/make_leave/{room_id}/{user_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def make_leave(
    handshakes: MembershipHandshakes, peer: Peer, *, room_id: RoomID, user_id: UserID
) -> dict[str, Any]:
    """Return a template for a leave."""
    return await handshakes.make_leave(peer.server_name, room_id, user_id)


@endpoint(
    "PUT",
    "/_matrix/federation/v2/send_leave/{room_id}/{event_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    max_body=MAX_BODY,
)
async def send_leave(
    handshakes: MembershipHandshakes,
    peer: Peer,
    *,
    room_id: RoomID,
    event_id: EventID,
    body: dict[str, Any],
) -> dict[str, Any]:
    """Complete the leave of a user."""
    await handshakes.do_leave(peer.server_name, room_id, event_id, body)
    return {}


@endpoint(
    "PUT",
    "/_matrix/federation/v1/send_leave/{room_id}/{event_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    max_body=MAX_BODY,
)
async def send_leave_v1(
    handshakes: MembershipHandshakes,
    peer: Peer,
    *,
    room_id: RoomID,
    event_id: EventID,
    body: dict[str, Any],
) -> list[Any]:
    """Complete the leave of a user, as in version 1."""
    await handshakes.do_leave(peer.server_name, room_id, event_id, body)
    return [200, {}]


@endpoint(
    "GET",
    "/_matrix/federation/v1/make_knock/{room_id}/{user_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def make_knock(
    handshakes: MembershipHandshakes,
    peer: Peer,
    *,
    room_id: RoomID,
    user_id: UserID,
    versions: Versions = None,
) -> dict[str, Any]:
    """Return a template for a knock."""
    return await handshakes.make_knock(peer.server_name, room_id, user_id, versions or ["1"])


@endpoint(
    "PUT",
    "/_matrix/federation/v1/send_knock/{room_id}/{event_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    max_body=MAX_BODY,
)
async def send_knock(
    handshakes: MembershipHandshakes,
    peer: Peer,
    *,
    room_id: RoomID,
    event_id: EventID,
    body: dict[str, Any],
) -> dict[str, list[msgspec.Raw]]:
    """Complete the knock of a user, and return the stripped state of the room."""
    return {
        "knock_room_state": await handshakes.do_knock(peer.server_name, room_id, event_id, body)
    }
