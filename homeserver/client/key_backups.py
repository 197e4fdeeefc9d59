"""Create, read and delete backups of room keys. spec: client-server-api#server-side-key-backups"""

from typing import Any

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty, Response
from homeserver.services.encryption.key_backups import (
    AllRoomKeys,
    BackupDefinition,
    KeyBackups,
    RoomKeys,
    SessionKey,
)

MAX_BODY = 16 * 1024 * 1024
"""The largest upload of keys, in bytes. Clients send several hundred keys at once."""


def _paths(suffix: str) -> tuple[str, str, str]:
    return (
        f"/_matrix/client/v3/room_keys/{suffix}",
        f"/_matrix/client/r0/room_keys/{suffix}",
        f"/_matrix/client/unstable/room_keys/{suffix}",
    )


@endpoint("GET", *_paths("version"), auth=Auth.USER)
async def get_room_keys_version_current(backups: KeyBackups, caller: Requester) -> dict[str, Any]:
    """Return the newest backup version."""
    return await backups.get_version(caller.user_id, None)


@endpoint("POST", *_paths("version"), auth=Auth.USER, while_suspended=True)
async def post_room_keys_version(
    backups: KeyBackups, caller: Requester, *, body: BackupDefinition
) -> dict[str, str]:
    """Create a backup version."""
    return {"version": await backups.do_create(caller.user_id, body)}


@endpoint("GET", *_paths("version/{version}"), auth=Auth.USER)
async def get_room_keys_version(
    backups: KeyBackups, caller: Requester, *, version: str
) -> dict[str, Any]:
    """Return one backup version."""
    return await backups.get_version(caller.user_id, version)


@endpoint("PUT", *_paths("version/{version}"), auth=Auth.USER, while_suspended=True)
async def put_room_keys_version(
    backups: KeyBackups, caller: Requester, *, version: str, body: BackupDefinition
) -> Empty:
    """Change the auth data of a backup version."""
    await backups.do_change(caller.user_id, version, body)
    return EMPTY


@endpoint("DELETE", *_paths("version/{version}"), auth=Auth.USER, while_suspended=True)
async def delete_room_keys_version(
    backups: KeyBackups, caller: Requester, *, version: str
) -> Empty:
    """Delete a backup version and its keys."""
    await backups.do_delete(caller.user_id, version)
    return EMPTY


@endpoint("GET", *_paths("keys"), auth=Auth.USER)
async def get_room_keys(backups: KeyBackups, caller: Requester, *, version: str) -> Response:
    """Return all keys of a backup version."""
    return await backups.get_all_keys(caller.user_id, version)


@endpoint("PUT", *_paths("keys"), auth=Auth.USER, while_suspended=True, max_body=MAX_BODY)
async def put_room_keys(
    backups: KeyBackups, caller: Requester, *, body: AllRoomKeys, version: str
) -> dict[str, Any]:
    """Store keys of several rooms."""
    rooms = {room_id: room.sessions for room_id, room in body.rooms.items()}
    return await backups.do_put_keys(caller, version, rooms)


@endpoint("DELETE", *_paths("keys"), auth=Auth.USER, while_suspended=True)
async def delete_room_keys(
    backups: KeyBackups, caller: Requester, *, version: str
) -> dict[str, Any]:
    """Delete all keys of a backup version."""
    return await backups.do_delete_keys(caller.user_id, version)


@endpoint("GET", *_paths("keys/{room_id}"), auth=Auth.USER)
async def get_room_keys_by_room_id(
    backups: KeyBackups, caller: Requester, *, room_id: str, version: str
) -> Response:
    """Return the keys of a room."""
    return await backups.get_room_keys(caller.user_id, version, room_id)


@endpoint("PUT", *_paths("keys/{room_id}"), auth=Auth.USER, while_suspended=True, max_body=MAX_BODY)
async def put_room_keys_by_room_id(
    backups: KeyBackups, caller: Requester, *, room_id: str, body: RoomKeys, version: str
) -> dict[str, Any]:
    """Store keys of a room."""
    return await backups.do_put_keys(caller, version, {room_id: body.sessions})


@endpoint("DELETE", *_paths("keys/{room_id}"), auth=Auth.USER, while_suspended=True)
async def delete_room_keys_by_room_id(
    backups: KeyBackups, caller: Requester, *, room_id: str, version: str
) -> dict[str, Any]:
    """Delete the keys of a room."""
    return await backups.do_delete_keys(caller.user_id, version, room_id)


@endpoint("GET", *_paths("keys/{room_id}/{session_id}"), auth=Auth.USER)
async def get_room_keys_by_session_id(
    backups: KeyBackups, caller: Requester, *, room_id: str, session_id: str, version: str
) -> dict[str, Any]:
    """Return the key of a session."""
    return await backups.get_key(caller.user_id, version, room_id, session_id)


@endpoint(
    "PUT",
    *_paths("keys/{room_id}/{session_id}"),
    auth=Auth.USER,
    while_suspended=True,
    max_body=256 * 1024,
)
async def put_room_keys_by_session_id(
    backups: KeyBackups,
    caller: Requester,
    *,
    room_id: str,
    session_id: str,
    body: SessionKey,
    version: str,
) -> dict[str, Any]:
    """Store the key of a session."""
    return await backups.do_put_keys(caller, version, {room_id: {session_id: body}})


@endpoint("DELETE", *_paths("keys/{room_id}/{session_id}"), auth=Auth.USER, while_suspended=True)
async def delete_room_keys_by_session_id(
    backups: KeyBackups, caller: Requester, *, room_id: str, session_id: str, version: str
) -> dict[str, Any]:
    """Delete the key of a session."""
    return await backups.do_delete_keys(caller.user_id, version, room_id, session_id)
