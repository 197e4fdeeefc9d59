"""Changes of membership (join, knock, leave, forget, invite, kick, ban, unban), and the list of
joined rooms.

spec: client-server-api#room-membership
"""

from typing import Annotated, Any

import msgspec

from federation.api.endpoint import QueryNames
from federation.protocol.errors import InvalidParam, MissingParam
from federation.protocol.ids import RoomID, is_room_alias, is_room_id, parse_user_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.rooms.membership import RoomMemberships

ViaServers = Annotated[list[str] | None, QueryNames("via", "server_name")]
Reason = Annotated[str, msgspec.Meta(max_length=4096)]


class MembershipBody(msgspec.Struct, frozen=True):
    """The optional reason of a membership change."""

    reason: Reason | None = None


class JoinBody(msgspec.Struct, frozen=True):
    """The join request. `third_party_signed` proves that the user owns an invited third-party
    identifier."""

    reason: Reason | None = None
    third_party_signed: dict[str, Any] | None = None


class TargetBody(msgspec.Struct, frozen=True):
    """The user whose membership changes."""

    user_id: str
    reason: Reason | None = None


class InviteBody(msgspec.Struct, frozen=True):
    """The user to invite, or a third-party identifier with its identity server."""

    user_id: str | None = None
    reason: Reason | None = None
    medium: str | None = None
    address: str | None = None


def _paths(action: str) -> tuple[str, str]:
    return (
        f"/_matrix/client/v3/rooms/{{room_id}}/{action}",
        f"/_matrix/client/r0/rooms/{{room_id}}/{action}",
    )


@endpoint("POST", *_paths("join"), auth=Auth.GUEST, limit=Limit.JOIN)
async def join_room(
    memberships: RoomMemberships, caller: Requester, *, room_id: RoomID, body: JoinBody = JoinBody()
) -> dict[str, str]:
    """Join a room by its ID."""
    return {
        "room_id": await memberships.do_join(caller, room_id, body.reason, body.third_party_signed)
    }


@endpoint(
    "POST",
    "/_matrix/client/v3/join/{room_id_or_alias}",
    "/_matrix/client/r0/join/{room_id_or_alias}",
    auth=Auth.GUEST,
    limit=Limit.JOIN,
)
async def join_room_or_alias(
    memberships: RoomMemberships,
    caller: Requester,
    *,
    room_id_or_alias: str,
    body: JoinBody = JoinBody(),
    via: ViaServers = None,
) -> dict[str, str]:
    """Join a room by its ID or an alias."""
    room_id, servers = await memberships.resolve(caller, _check(room_id_or_alias), via)
    return {
        "room_id": await memberships.do_join(
            caller, room_id, body.reason, body.third_party_signed, servers
        )
    }


@endpoint(
    "POST",
    "/_matrix/client/v3/knock/{room_id_or_alias}",
    "/_matrix/client/unstable/xyz.amorgan.knock/knock/{room_id_or_alias}",
    auth=Auth.USER,
    limit=Limit.JOIN,
)
async def knock_room(
    memberships: RoomMemberships,
    caller: Requester,
    *,
    room_id_or_alias: str,
    body: MembershipBody = MembershipBody(),
    via: ViaServers = None,
) -> dict[str, str]:
    """Knock on a room."""
    room_id, servers = await memberships.resolve(caller, _check(room_id_or_alias), via)
    return {"room_id": await memberships.do_knock(caller, room_id, body.reason, servers)}


@endpoint("POST", *_paths("leave"), auth=Auth.GUEST, limit=Limit.MEMBERSHIP, while_suspended=True)
async def leave_room(
    memberships: RoomMemberships,
    caller: Requester,
    *,
    room_id: RoomID,
    body: MembershipBody = MembershipBody(),
) -> Empty:
    """Leave a room, or reject an invite."""
    await memberships.do_leave(caller, room_id, body.reason)
    return EMPTY


@endpoint("POST", *_paths("forget"), auth=Auth.USER, limit=Limit.FORGET, while_suspended=True)
async def forget_room(memberships: RoomMemberships, caller: Requester, *, room_id: RoomID) -> Empty:
    """Forget a room that the caller has left."""
    await memberships.do_forget(caller, room_id)
    return EMPTY


@endpoint("POST", *_paths("invite"), auth=Auth.USER)
async def invite_user(
    memberships: RoomMemberships, caller: Requester, *, room_id: RoomID, body: InviteBody
) -> Empty:
    """Invite a user."""
    if body.user_id is None:
        if body.address is None:
            raise MissingParam("user_id is missing")
        raise InvalidParam(
            "This server does not invite by e-mail address or phone number; "
            "ask the person for their user ID"
        )
    await memberships.do_invite(caller, room_id, parse_user_id(body.user_id), body.reason)
    return EMPTY


@endpoint("POST", *_paths("kick"), auth=Auth.USER, limit=Limit.MEMBERSHIP)
async def kick_user(
    memberships: RoomMemberships, caller: Requester, *, room_id: RoomID, body: TargetBody
) -> Empty:
    """Kick a user."""
    await memberships.do_kick(caller, room_id, parse_user_id(body.user_id), body.reason)
    return EMPTY


@endpoint("POST", *_paths("ban"), auth=Auth.USER, limit=Limit.MEMBERSHIP)
async def ban_user(
    memberships: RoomMemberships, caller: Requester, *, room_id: RoomID, body: TargetBody
) -> Empty:
    """Ban a user."""
    await memberships.do_ban(caller, room_id, parse_user_id(body.user_id), body.reason)
    return EMPTY


@endpoint("POST", *_paths("unban"), auth=Auth.USER, limit=Limit.MEMBERSHIP)
async def unban_user(
    memberships: RoomMemberships, caller: Requester, *, room_id: RoomID, body: TargetBody
) -> Empty:
    """Lift a ban."""
    await memberships.do_unban(caller, room_id, parse_user_id(body.user_id), body.reason)
    return EMPTY


@endpoint(
    "GET", "/_matrix/client/v3/joined_rooms", "/_matrix/client/r0/joined_rooms", auth=Auth.GUEST
)
async def get_joined_rooms(
    memberships: RoomMemberships, caller: Requester
) -> dict[str, list[RoomID]]:
    """Return the rooms that the caller has joined."""
    return {"joined_rooms": list(await memberships.get_joined_rooms(caller.user_id))}


def _check(room_id_or_alias: str) -> str:
    if not is_room_id(room_id_or_alias) and not is_room_alias(room_id_or_alias):
        raise InvalidParam(f"{room_id_or_alias[:255]!r} is neither a room ID nor a room alias")
    return room_id_or_alias
