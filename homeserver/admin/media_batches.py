"""Bulk actions on media, for administrators: delete, quarantine or protect many files at once.

A request selects files by owner, room, time, size and other criteria. `GET` lists the selected
files. Each action applies to at most `limit` of them, and its response has a `next_token` if more
may follow. Deleting skips quarantined files unless the selection has `quarantined: true`, and
protected files unless it has `protected: true`. Quarantining skips protected files.
"""

from typing import Any, Final, Literal

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import parse_room_id, parse_server_name, parse_user_id
from homeserver.admin.media import describe_copy, describe_upload
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.media.administration import BulkResult, MediaAdministration
from homeserver.services.media.repository import MEDIA_ID
from storage.media.content_uris import ContentURI
from storage.media.lists import MediaFilter
from storage.media.remote_media import RemoteMediaRow

_PREFIX: Final = "/_mahalla/admin/v1/media"
MAX_PAGE_SIZE: Final = 10_000
"""The largest number of files in one list."""
MAX_BATCH: Final = 1000
"""The largest number of files that one request acts on."""
MAX_NUMBER: Final = 2**53 - 1
"""An upper bound of all times and sizes."""


class MediaSelection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A selection of files. Times are milliseconds since 1970, sizes bytes. An unknown field is
    refused, because ignoring a misspelt filter would select too many files."""

    of: Literal["local", "remote"] = "local"
    """Local files, or cached copies of remote files."""
    user_id: str | None = None
    room_id: str | None = None
    only_in_room: bool = False
    """Only files that nothing outside the room refers to."""
    server_name: str | None = None
    from_ts: int | None = None
    until_ts: int | None = None
    size_gt: int | None = None
    quarantined: bool | None = None
    protected: bool | None = None
    after: str = ""
    """The `next_token` of the previous page."""
    limit: int = 100


@endpoint("GET", _PREFIX, auth=Auth.ADMIN)
async def get_selected_media(
    media: MediaAdministration,
    *,
    of: Literal["local", "remote"] = "local",
    user_id: str | None = None,
    room_id: str | None = None,
    only_in_room: bool = False,
    server_name: str | None = None,
    from_ts: int | None = None,
    until_ts: int | None = None,
    size_gt: int | None = None,
    quarantined: bool | None = None,
    protected: bool | None = None,
    after: str = "",
    limit: int = 100,
) -> dict[str, Any]:
    """Return the selected files in the order of their content URIs."""
    selection = MediaSelection(
        of=of,
        user_id=user_id,
        room_id=room_id,
        only_in_room=only_in_room,
        server_name=server_name,
        from_ts=from_ts,
        until_ts=until_ts,
        size_gt=size_gt,
        quarantined=quarantined,
        protected=protected,
        after=after,
        limit=limit,
    )
    found = await media.find_files(
        _filter(selection), _after(selection, MAX_PAGE_SIZE), limit, own=of == "local"
    )
    scans = await media.get_scans(found)
    response: dict[str, Any] = {
        "media": [
            describe_copy(row, scans)
            if isinstance(row, RemoteMediaRow)
            else describe_upload(row, scans)
            for row in found
        ]
    }
    if len(found) == limit:
        response["next_token"] = _token(media.uri_of(found[-1]))
    return response


@endpoint("POST", f"{_PREFIX}/delete", auth=Auth.ADMIN)
async def delete_selected_media(
    media: MediaAdministration, caller: Requester, *, body: MediaSelection
) -> dict[str, Any]:
    """Delete the selected files. Quarantined files stay, unless the selection asks for only
    quarantined files. The same holds for protected files."""
    wanted, after = _parse_selection(body)
    result = await media.do_delete_matching(
        wanted, after, body.limit, caller.user_id, own=body.of == "local"
    )
    return _describe_result(result)


@endpoint("POST", f"{_PREFIX}/quarantine", auth=Auth.ADMIN)
async def quarantine_selected_media(
    media: MediaAdministration, caller: Requester, *, body: MediaSelection
) -> dict[str, Any]:
    """Quarantine the selected files and all files with the same content, except protected ones."""
    wanted, after = _parse_selection(body)
    result = await media.do_quarantine_matching(
        wanted, after, body.limit, caller.user_id, own=body.of == "local"
    )
    return _describe_result(result)


@endpoint("POST", f"{_PREFIX}/unquarantine", auth=Auth.ADMIN)
async def unquarantine_selected_media(
    media: MediaAdministration, *, body: MediaSelection
) -> dict[str, Any]:
    """Release the selected files and all files with the same content from quarantine."""
    wanted, after = _parse_selection(body)
    return _describe_result(
        await media.do_release_matching(wanted, after, body.limit, own=body.of == "local")
    )


@endpoint("POST", f"{_PREFIX}/protect", auth=Auth.ADMIN)
async def protect_selected_media(
    media: MediaAdministration, *, body: MediaSelection
) -> dict[str, Any]:
    """Protect the selected local files against quarantine and automatic deletion."""
    return await _protect(media, body, protected=True)


@endpoint("POST", f"{_PREFIX}/unprotect", auth=Auth.ADMIN)
async def unprotect_selected_media(
    media: MediaAdministration, *, body: MediaSelection
) -> dict[str, Any]:
    """Remove the protection of the selected local files."""
    return await _protect(media, body, protected=False)


async def _protect(
    media: MediaAdministration, selection: MediaSelection, *, protected: bool
) -> dict[str, Any]:
    wanted, after = _parse_selection(selection)
    if selection.of == "remote":
        raise InvalidParam(
            "Copies of remote files cannot be protected: they are fetched again when needed"
        )
    return _describe_result(
        await media.do_protect_matching(wanted, after, selection.limit, protected=protected)
    )


def _parse_selection(selection: MediaSelection) -> tuple[MediaFilter, ContentURI]:
    """Return the file filter, and the address after which the page begins. Raises InvalidParam."""
    return _filter(selection), _after(selection, MAX_BATCH)


def _filter(selection: MediaSelection) -> MediaFilter:
    for name in ("from_ts", "until_ts", "size_gt"):
        number = getattr(selection, name)
        if number is not None and not -1 <= number <= MAX_NUMBER:
            raise InvalidParam(f"{name} must be between -1 and {MAX_NUMBER}")
    if selection.of == "remote" and (selection.user_id is not None or selection.protected):
        raise InvalidParam("user_id and protected do not apply to copies of remote files")
    if selection.of == "local" and selection.server_name is not None:
        raise InvalidParam("server_name requires of=remote")
    if selection.only_in_room and selection.room_id is None:
        raise InvalidParam("only_in_room requires room_id")
    return MediaFilter(
        from_ms=selection.from_ts,
        until_ms=selection.until_ts,
        larger_than=selection.size_gt,
        quarantined=selection.quarantined,
        protected=selection.protected,
        user_id=None if selection.user_id is None else parse_user_id(selection.user_id),
        origin=None if selection.server_name is None else parse_server_name(selection.server_name),
        room_id=None if selection.room_id is None else parse_room_id(selection.room_id),
        only_in_room=selection.only_in_room,
    )


def _after(selection: MediaSelection, max_limit: int) -> ContentURI:
    if not 0 < selection.limit <= max_limit:
        raise InvalidParam(f"limit must be between 1 and {max_limit}")
    if not selection.after:
        return ContentURI("", "")
    origin, _, media_id = selection.after.partition("/")
    if not MEDIA_ID.fullmatch(media_id):
        raise InvalidParam("after must be the next_token of an earlier response")
    return ContentURI(parse_server_name(origin), media_id)


def _token(address: ContentURI) -> str:
    return f"{address.origin}/{address.media_id}"


def _describe_result(result: BulkResult) -> dict[str, Any]:
    response: dict[str, Any] = {"media": result.uris, "total": result.count}
    if result.last is not None:
        response["next_token"] = _token(result.last)
    return response
