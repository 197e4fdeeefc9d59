"""Media, for administrators: list, delete, quarantine and protect files, and show how much space
they use. The paths under `/_synapse` are those of Synapse's administration API."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from federation.api.endpoint import QueryNames
from federation.protocol.errors import InvalidParam, MissingParam
from federation.protocol.ids import RoomID, ServerName, UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.media.administration import MediaAdministration
from homeserver.services.scanning.administration import scan_json
from storage.media.lists import ORDERS, MediaOrder
from storage.media.media import MediaRow
from storage.media.remote_media import RemoteMediaRow
from storage.media.scans import ScanRow
from storage.media.usage import MediaAmount, UserUsage

_V1: Final = "/_synapse/admin/v1"
_PREFIX: Final = "/_mahalla/admin/v1"
MAX_PAGE_SIZE: Final = 10_000
"""The largest number of entries in one response."""
CHANGES_PAGE_SIZE: Final = 100
From = Annotated[int, QueryNames("from")]
Direction = Literal["f", "b"]
Scans = Mapping[bytes, ScanRow]
UsageOrder = Literal["user_id", "displayname", "media_length", "media_count"]


# Uploads of a user.


@endpoint("GET", f"{_V1}/users/{{user_id}}/media", auth=Auth.ADMIN)
async def get_users_media(
    media: MediaAdministration,
    *,
    user_id: UserID,
    from_: From = 0,
    limit: int = 100,
    order_by: str | None = None,
    dir: Direction | None = None,
) -> dict[str, Any]:
    """Return a page of a user's uploads, newest first by default."""
    _check_page(from_, limit)
    page = await media.get_uploads(user_id, _order(order_by, dir), from_, limit)
    scans = await media.get_scans(page.rows)
    response: dict[str, Any] = {
        "media": [describe_upload(row, scans) for row in page.rows],
        "total": page.count,
    }
    if from_ + limit < page.count:
        response["next_token"] = from_ + len(page.rows)
    return response


@endpoint("DELETE", f"{_V1}/users/{{user_id}}/media", auth=Auth.ADMIN)
async def delete_users_media(
    media: MediaAdministration,
    caller: Requester,
    *,
    user_id: UserID,
    from_: From = 0,
    limit: int = 100,
    order_by: str | None = None,
    dir: Direction | None = None,
) -> dict[str, Any]:
    """Delete a page of a user's uploads."""
    _check_page(from_, limit)
    return _deleted(
        await media.do_delete_user_uploads(
            user_id, _order(order_by, dir), from_, limit, caller.user_id
        )
    )


# Single files, and bulk deletion.


@endpoint("GET", f"{_V1}/media/{{server_name}}/{{media_id}}", auth=Auth.ADMIN)
async def get_media_info(
    media: MediaAdministration, *, server_name: ServerName, media_id: str
) -> dict[str, Any]:
    """Return the metadata of a file."""
    row = await media.get_file(server_name, media_id)
    scans = await media.get_scans([row])
    if isinstance(row, RemoteMediaRow):
        return {"media_info": describe_copy(row, scans)}
    return {
        "media_info": {"media_origin": None, "filesystem_id": None, **describe_upload(row, scans)}
    }


@endpoint("DELETE", f"{_V1}/media/{{server_name}}/{{media_id}}", auth=Auth.ADMIN)
async def delete_media(
    media: MediaAdministration, caller: Requester, *, server_name: ServerName, media_id: str
) -> dict[str, Any]:
    """Delete a local file, or the cached copy of a remote one. Ignores references, quarantine and
    protection."""
    return _deleted(await media.do_delete(server_name, media_id, caller.user_id))


@endpoint("POST", f"{_V1}/media/delete", auth=Auth.ADMIN)
async def delete_old_media(
    media: MediaAdministration,
    caller: Requester,
    *,
    before_ts: int | None = None,
    size_gt: int = 0,
    keep_profiles: bool = True,
) -> dict[str, Any]:
    """Delete local files that are larger than `size_gt` and were last read before `before_ts`."""
    if before_ts is None:
        raise MissingParam("before_ts is missing")
    if size_gt < 0:
        raise InvalidParam("size_gt must not be negative")
    return _deleted(
        await media.do_delete_old(before_ts, size_gt, caller.user_id, keep_profiles=keep_profiles)
    )


@endpoint("POST", f"{_V1}/media/{{server_name}}/delete", auth=Auth.ADMIN)
async def delete_old_media_of_server(
    media: MediaAdministration,
    caller: Requester,
    *,
    server_name: ServerName,
    before_ts: int | None = None,
    size_gt: int = 0,
    keep_profiles: bool = True,
) -> dict[str, Any]:
    """Delete old local files; the older path of `delete_old_media`."""
    media.check_own(server_name)
    return await delete_old_media(
        media, caller, before_ts=before_ts, size_gt=size_gt, keep_profiles=keep_profiles
    )


@endpoint("POST", f"{_V1}/purge_media_cache", auth=Auth.ADMIN)
async def purge_media_cache(
    media: MediaAdministration, caller: Requester, *, before_ts: int | None = None
) -> dict[str, int]:
    """Delete cached copies of remote files that were last read before `before_ts`."""
    if before_ts is None:
        raise MissingParam("before_ts is missing")
    return {"deleted": await media.do_purge_copies(before_ts, caller.user_id)}


@endpoint("GET", f"{_V1}/room/{{room_id}}/media", auth=Auth.ADMIN)
async def get_room_media(media: MediaAdministration, *, room_id: RoomID) -> dict[str, Any]:
    """Return the files that unencrypted events of a room refer to."""
    own, others = await media.get_room_files(room_id)
    return {"local": own, "remote": others}


@endpoint("DELETE", f"{_PREFIX}/rooms/{{room_id}}/media", auth=Auth.ADMIN)
async def delete_room_media(
    media: MediaAdministration, caller: Requester, *, room_id: RoomID
) -> dict[str, Any]:
    """Delete the files that unencrypted events of a room refer to, unless something else refers to
    them."""
    deleted, kept = await media.do_delete_room_files(room_id, caller.user_id)
    return {"deleted": deleted, "total": len(deleted), "shown_elsewhere": kept}


# Quarantine.


@endpoint(
    "POST",
    f"{_V1}/room/{{room_id}}/media/quarantine",
    f"{_V1}/quarantine_media/{{room_id}}",
    auth=Auth.ADMIN,
)
async def quarantine_room_media(
    media: MediaAdministration, caller: Requester, *, room_id: RoomID
) -> dict[str, int]:
    """Quarantine the files of a room."""
    return {"num_quarantined": await media.do_quarantine_room(room_id, caller.user_id)}


@endpoint("POST", f"{_V1}/user/{{user_id}}/media/quarantine", auth=Auth.ADMIN)
async def quarantine_user_media(
    media: MediaAdministration, caller: Requester, *, user_id: UserID
) -> dict[str, int]:
    """Quarantine the uploads of a user."""
    return {"num_quarantined": await media.do_quarantine_user(user_id, caller.user_id)}


@endpoint("POST", f"{_V1}/media/quarantine/{{server_name}}/{{media_id}}", auth=Auth.ADMIN)
async def quarantine_media(
    media: MediaAdministration, caller: Requester, *, server_name: ServerName, media_id: str
) -> Empty:
    """Quarantine a file and all files with the same content."""
    await media.do_quarantine(server_name, media_id, caller.user_id)
    return EMPTY


@endpoint("POST", f"{_V1}/media/unquarantine/{{server_name}}/{{media_id}}", auth=Auth.ADMIN)
async def unquarantine_media(
    media: MediaAdministration, *, server_name: ServerName, media_id: str
) -> Empty:
    """Release a file and all files with the same content from quarantine."""
    await media.do_release(server_name, media_id)
    return EMPTY


@endpoint("GET", f"{_V1}/media/quarantine_changes", auth=Auth.ADMIN)
async def get_quarantine_changes(media: MediaAdministration, *, from_: From = 0) -> dict[str, Any]:
    """Return quarantine changes in order."""
    if from_ < 0:
        raise InvalidParam("from must not be negative")
    changes = await media.get_changes(from_, CHANGES_PAGE_SIZE)
    return {
        "next_batch": changes[-1].number if changes else from_,
        "changes": [
            {
                "origin": each.address.origin,
                "media_id": each.address.media_id,
                "quarantined": each.quarantined,
            }
            for each in changes
        ],
    }


@endpoint("POST", f"{_V1}/media/protect/{{media_id}}", auth=Auth.ADMIN)
async def protect_media(media: MediaAdministration, *, media_id: str) -> Empty:
    """Protect a local file against quarantine and automatic deletion."""
    await media.do_protect(media_id, protected=True)
    return EMPTY


@endpoint("POST", f"{_V1}/media/unprotect/{{media_id}}", auth=Auth.ADMIN)
async def unprotect_media(media: MediaAdministration, *, media_id: str) -> Empty:
    """Remove the protection of a local file."""
    await media.do_protect(media_id, protected=False)
    return EMPTY


# Usage and deletions.


@endpoint("GET", f"{_V1}/statistics/users/media", auth=Auth.ADMIN)
async def get_media_statistics(
    media: MediaAdministration,
    *,
    from_: From = 0,
    limit: int = 100,
    order_by: UsageOrder = "user_id",
    dir: Direction = "f",
    from_ts: int = 0,
    until_ts: int | None = None,
    search_term: str | None = None,
) -> dict[str, Any]:
    """Return how much each user has uploaded."""
    _check_page(from_, limit)
    if from_ts < 0 or (until_ts is not None and until_ts <= from_ts):
        raise InvalidParam("until_ts must be after from_ts, and neither must be negative")
    if search_term == "":
        raise InvalidParam("search_term must not be empty")
    found = [
        usage
        for usage in await media.get_user_usage(from_ts, until_ts)
        if search_term is None
        or search_term.lower() in f"{usage.user_id}\n{usage.display_name or ''}".lower()
    ]
    found.sort(key=_USAGE_ORDERS[order_by], reverse=dir == "b")
    response: dict[str, Any] = {
        "users": [
            {
                "user_id": usage.user_id,
                "displayname": usage.display_name,
                "media_count": usage.amount.count,
                "media_length": usage.amount.size,
            }
            for usage in found[from_ : from_ + limit]
        ],
        "total": len(found),
    }
    if from_ + limit < len(found):
        response["next_token"] = from_ + limit
    return response


@endpoint("GET", f"{_PREFIX}/media/usage", auth=Auth.ADMIN)
async def get_media_usage(
    media: MediaAdministration, *, rooms: int = 10, servers: int = 10
) -> dict[str, Any]:
    """Return the total usage, the share in the object store, and the rooms and remote servers with
    the most media."""
    _check_page(0, rooms)
    _check_page(0, servers)
    usage = await media.get_server_usage(rooms, servers)
    return {
        "local": _amount(usage.own),
        "remote": _amount(usage.copies),
        "stored": _amount(usage.contents),
        "in_object_store": _amount(usage.objects),
        "quarantined": usage.quarantined,
        "rooms": [{"room_id": room_id, **_amount(amount)} for room_id, amount in usage.rooms],
        "servers": [
            {"server_name": server_name, **_amount(amount)} for server_name, amount in usage.servers
        ],
    }


@endpoint("GET", f"{_PREFIX}/media/usage/rooms/{{room_id}}", auth=Auth.ADMIN)
async def get_media_usage_of_room(media: MediaAdministration, *, room_id: RoomID) -> dict[str, Any]:
    """Return how much media unencrypted events of a room refer to: local files and copies of remote
    files."""
    usage = await media.get_room_usage(room_id)
    return {"local": _amount(usage.own), "remote": _amount(usage.copies)}


@endpoint("GET", f"{_PREFIX}/media/deleted", auth=Auth.ADMIN)
async def get_deleted_media(
    media: MediaAdministration,
    *,
    from_: Annotated[int | None, QueryNames("from")] = None,
    limit: int = 100,
) -> dict[str, Any]:
    """Return the deleted files, latest first, with the time and the reason."""
    _check_page(0, limit)
    found = await media.get_deletions(from_, limit)
    response: dict[str, Any] = {
        "deleted": [
            {
                "deleted_ts": each.deleted_ts,
                "media_origin": each.origin,
                "media_id": each.media_id,
                "user_id": each.user_id,
                "sha256": each.hash.hex(),
                "media_type": each.type,
                "media_length": each.size,
                "created_ts": each.created_ts,
                "reason": each.reason,
                "by": each.by_user_id,
            }
            for each in found
        ]
    }
    if len(found) == limit:
        response["next_token"] = found[-1].number
    return response


def _check_page(start: int, limit: int) -> None:
    if start < 0 or not 0 < limit <= MAX_PAGE_SIZE:
        raise InvalidParam(
            f"from must not be negative, and limit must be between 1 and {MAX_PAGE_SIZE}"
        )


def _order(by: str | None, direction: Direction | None) -> MediaOrder:
    if by is None and direction is None:
        return MediaOrder("created_ts", descending=True)
    if by is not None and by not in ORDERS:
        raise InvalidParam(f"order_by must be one of {', '.join(sorted(ORDERS))}")
    return MediaOrder(by or "created_ts", descending=direction == "b")


def _deleted(media_ids: Any) -> dict[str, Any]:
    return {"deleted_media": media_ids, "total": len(media_ids)}


def _amount(amount: MediaAmount) -> Mapping[str, int]:
    return {"media_count": amount.count, "media_length": amount.size}


def describe_upload(row: MediaRow, scans: Scans) -> dict[str, Any]:
    """Describe a local file for administrators."""
    content = row.content
    return {
        "media_id": row.media_id,
        "user_id": row.user_id,
        "media_type": "" if content is None else content.type,
        "media_length": 0 if content is None else content.size,
        "upload_name": None if content is None else content.name,
        "created_ts": row.created_ts,
        "last_access_ts": row.last_access_ts,
        "quarantined_by": row.quarantined_by,
        "safe_from_quarantine": row.protected,
        "url_cache": None,
        "authenticated": row.authenticated,
        "sha256": None if content is None else content.hash.hex(),
        "scan": None if content is None else scan_json(scans.get(content.hash)),
    }


def describe_copy(row: RemoteMediaRow, scans: Scans) -> dict[str, Any]:
    """Describe the cached copy of a remote file for administrators."""
    return {
        "media_origin": row.origin,
        "media_id": row.media_id,
        "user_id": None,
        "media_type": row.content.type,
        "media_length": row.content.size,
        "upload_name": row.content.name,
        "created_ts": row.created_ts,
        "filesystem_id": None,
        "url_cache": None,
        "last_access_ts": row.last_access_ts,
        "quarantined_by": row.quarantined_by,
        "authenticated": row.authenticated,
        "safe_from_quarantine": None,
        "sha256": row.content.hash.hex(),
        "scan": scan_json(scans.get(row.content.hash)),
    }


def _by_name(usage: UserUsage) -> Any:
    return (usage.display_name or "").lower(), usage.user_id


_USAGE_ORDERS: Final[Mapping[str, Any]] = {
    "user_id": lambda usage: usage.user_id,
    "displayname": _by_name,
    "media_length": lambda usage: (usage.amount.size, usage.user_id),
    "media_count": lambda usage: (usage.amount.count, usage.user_id),
}
