"""List and delete the caller's own uploads. The specification has no such endpoints.

The server cannot see the files of an encrypted message, so redacting the message does not
delete its files. The sender can delete them here.
"""

from typing import Annotated, Any

import msgspec

from federation.api.endpoint import QueryNames
from federation.protocol.errors import InvalidParam
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.media.own_uploads import MAX_PAGE, OwnUploads
from homeserver.services.scanning.administration import scan_json

_PATH = "/_mahalla/client/v1/media"


@endpoint("GET", _PATH, auth=Auth.USER)
async def get_own_media(
    uploads: OwnUploads,
    caller: Requester,
    *,
    from_: Annotated[int, QueryNames("from")] = 0,
    limit: int = 100,
) -> dict[str, Any]:
    """Return the caller's uploads, newest first, with sizes and scan results."""
    if from_ < 0 or not 0 < limit <= MAX_PAGE:
        raise InvalidParam(f"from must not be negative, and limit must be between 1 and {MAX_PAGE}")
    page = await uploads.get_page(caller.user_id, from_, limit)
    scans = await uploads.get_scans(page)
    response: dict[str, Any] = {
        "media": [
            {
                "media_id": row.media_id,
                "type": content.type,
                "size": content.size,
                "name": content.name,
                "created_ts": row.created_ts,
                "scan": scan_json(scans.get(content.hash)),
            }
            for row in page.rows
            if (content := row.content) is not None
        ],
        "total": page.count,
        "total_size": page.size,
    }
    if from_ + len(page.rows) < page.count:
        response["next_token"] = from_ + len(page.rows)
    return response


class DeletedMedia(msgspec.Struct, frozen=True):
    deleted: list[str]


@endpoint("DELETE", f"{_PATH}/{{media_id}}", auth=Auth.USER, before_consent=True)
async def delete_own_media(
    uploads: OwnUploads, caller: Requester, *, media_id: str
) -> DeletedMedia:
    """Delete one of the caller's uploads, even if events refer to it. Raises NotFound,
    Forbidden."""
    return DeletedMedia([await uploads.do_delete(caller.user_id, media_id)])
