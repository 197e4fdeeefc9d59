"""Backups of room keys. spec: client-server-api#server-side-key-backups"""

from typing import Any

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty, Response
from homeserver.services.encryption.key_backups import (
    AllKeys,
    BackupDefinition,
    KeyBackups,
    RoomKeys,
    SessionKey,
)

MAX_BODY = 16 * 1024 * 1024
"""Of an upload of keys, in bytes: clients send some hundreds at once."""


def _paths(rest: str) -> tuple[str, str, str]:
    return (
        f"/_matrix/client/v3/room_keys/{rest}",
        f"/_matrix/client/r0/room_keys/{rest}",
        f"/_matrix/client/unstable/room_keys/{rest}",
    )


@endpoint("GET", *_paths("version"), auth=Auth.USER)
async def get_room_keys_version_current(backups: KeyBackups, caller: Requester) -> dict[str, Any]:
    """The newest version of the backup."""
    return await backups.get_version(caller.user_id, None)


@endpoint("POST", *_paths("version"), auth=Auth.USER, while_suspended=True)
async def post_room_keys_version(
    backups: KeyBackups, caller: Requester, *, body: BackupDefinition
) -> dict[str, str]:
    """Begin a new version."""
    return {"version": await backups.do_create(caller.user_id, body)}


@endpoint("GET", *_paths("version/{version}"), auth=Auth.USER)
async def get_room_keys_version(
    backups: KeyBackups, caller: Requester, *, version: str
) -> dict[str, Any]:
    """One version."""
    return await backups.get_version(caller.user_id, version)


@endpoint("PUT", *_paths("version/{version}"), auth=Auth.USER, while_suspended=True)
async def put_room_keys_version(
    backups: KeyBackups, caller: Requester, *, version: str, body: BackupDefinition
) -> Empty:
    """Change the data of a version."""
    await backups.do_change(caller.user_id, version, body)
    return EMPTY


@endpoint("DELETE", *_paths("version/{version}"), auth=Auth.USER, while_suspended=True)
async def delete_room_keys_version(
    backups: KeyBackups, caller: Requester, *, version: str
) -> Empty:
    """Delete a version with its keys."""
    await backups.do_delete(caller.user_id, version)
    return EMPTY


@endpoint("GET", *_paths("keys"), auth=Auth.USER)
async def get_room_keys(backups: KeyBackups, caller: Requester, *, version: str) -> Response:
    """All keys."""
    return await backups.get_all_keys(caller.user_id, version)


@endpoint("PUT", *_paths("keys"), auth=Auth.USER, while_suspended=True, max_body=MAX_BODY)
async def put_room_keys(
    backups: KeyBackups, caller: Requester, *, body: AllKeys, version: str
) -> dict[str, Any]:
    """Add keys of many rooms."""
    rooms = {room_id: room.sessions for room_id, room in body.rooms.items()}
    return await backups.do_put_keys(caller, version, rooms)


@endpoint("DELETE", *_paths("keys"), auth=Auth.USER, while_suspended=True)
async def delete_room_keys(
    backups: KeyBackups, caller: Requester, *, version: str
) -> dict[str, Any]:
    """Delete all keys."""
    return await backups.do_delete_keys(caller.user_id, version)


@endpoint("GET", *_paths("keys/{room_id}"), auth=Auth.USER)
async def get_room_keys_by_room_id(
    backups: KeyBackups, caller: Requester, *, room_id: str, version: str
) -> Response:
    """Keys of a room."""
    return await backups.get_room_keys(caller.user_id, version, room_id)


@endpoint("PUT", *_paths("keys/{room_id}"), auth=Auth.USER, while_suspended=True, max_body=MAX_BODY)
async def put_room_keys_by_room_id(
    backups: KeyBackups, caller: Requester, *, room_id: str, body: RoomKeys, version: str
) -> dict[str, Any]:
    """Add keys of a room."""
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
    """The key of a session."""
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
    """Add the key of a session."""
    return await backups.do_put_keys(caller, version, {room_id: {session_id: body}})


@endpoint("DELETE", *_paths("keys/{room_id}/{session_id}"), auth=Auth.USER, while_suspended=True)
async def delete_room_keys_by_session_id(
    backups: KeyBackups, caller: Requester, *, room_id: str, session_id: str, version: str
) -> dict[str, Any]:
    """Delete the key of a session."""
    return await backups.do_delete_keys(caller.user_id, version, room_id, session_id)
