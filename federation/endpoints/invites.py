"""Endpoints for invites to our users, and for third-party invites.

A third-party invite is for an e-mail address or a telephone number that no user has bound yet. If a
user of another server binds it later, that server asks us to replace the third-party invite by an
invite to this user (`exchange_third_party_invite`). If one of our users binds it, the identity
server notifies us (`onbind`).

spec: server-server-api#inviting-to-a-room, server-server-api#third-party-invites
"""

from typing import Any, Final

import msgspec

from federation.api.endpoint import ServerAuth, endpoint
from federation.api.request import Peer, RequestContext
from federation.protocol.ids import EventID, RoomID, parse_user_id
from federation.rooms.joins.invites import BoundAddress, Invitations

MAX_BODY: Final = 2 << 20
"""Longest body: the invite with complete events as stripped state."""


class InviteRequest(msgspec.Struct, frozen=True):
    """An invite with the stripped state of the room."""

    event: dict[str, Any]
    room_version: str
    invite_room_state: Any = ()


@endpoint(
    "PUT",
    "/_matrix/federation/v2/invite/{room_id}/{event_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    max_body=MAX_BODY,
)
async def invite(
    invitations: Invitations, peer: Peer, *, room_id: RoomID, event_id: EventID, body: InviteRequest
) -> dict[str, Any]:
    """Accept an invite to one of our users, and return it with our signature."""
    event = await invitations.do_receive(
        peer.server_name,
        room_id,
        event_id,
        body.room_version,
        body.event,
        body.invite_room_state or [],
    )
    return {"event": event}


@endpoint(
    "PUT",
    "/_matrix/federation/v1/invite/{room_id}/{event_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    max_body=MAX_BODY,
)
async def invite_v1(
    invitations: Invitations,
    peer: Peer,
    *,
    room_id: RoomID,
    event_id: EventID,
    body: dict[str, Any],
) -> list[Any]:
    """Accept an invite to a room of version 1 or 2, whose events have the same format."""
    unsigned = body.get("unsigned")
    state = unsigned.get("invite_room_state") if isinstance(unsigned, dict) else None
    event = await invitations.do_receive(
        peer.server_name, room_id, event_id, "1", body, state or []
    )
    return [200, {"event": event}]


@endpoint(
    "PUT",
    "/_matrix/federation/v1/exchange_third_party_invite/{room_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def exchange_third_party_invite(
    invitations: Invitations, peer: Peer, *, room_id: RoomID, body: dict[str, Any]
) -> dict[str, Any]:
    """Replace a third-party invite by an invite to the peer's user who owns the address."""
    await invitations.do_exchange(peer.server_name, room_id, body)
    return {}


@endpoint("PUT", "/_matrix/federation/v1/3pid/onbind", auth=ServerAuth.NONE, resource="federation")
async def third_party_bound(
    invitations: Invitations, context: RequestContext, *, body: BoundAddress
) -> dict[str, Any]:
    """Deliver the third-party invites of an address that now belongs to one of our users.

    Anybody may call it, as the invites carry their own proof. A caller whose invites are not
    valid is ignored for a time.
    """
    await invitations.do_accept_third_party_invites(
        parse_user_id(body.mxid), body, context.client_ip
    )
    return {}
