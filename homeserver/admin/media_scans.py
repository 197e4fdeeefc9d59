"""Malware scans of media, for administrators: list harmful files, and scan files again."""

from typing import Annotated, Any

import msgspec

from federation.api.endpoint import QueryNames
from federation.protocol.errors import InvalidParam
from homeserver.api.endpoint import Auth, endpoint
from homeserver.services.scanning.administration import ScanAdministration, scan_json
from storage.media.rescans import Rescan

_PREFIX = "/_mahalla/admin/v1/media"
MAX_PAGE_SIZE = 1000
"""The largest number of findings in one response."""
MAX_FILES = 100
"""The largest number of files listed for one finding."""


@endpoint("GET", f"{_PREFIX}/harmful", auth=Auth.ADMIN)
async def get_harmful_media(
    scans: ScanAdministration, *, from_: Annotated[int, QueryNames("from")] = 0, limit: int = 100
) -> dict[str, Any]:
    """Return what scanners found harmful, latest first, and the files with that content."""
    if from_ < 0 or not 0 < limit <= MAX_PAGE_SIZE:
        raise InvalidParam(
            f"from must not be negative, and limit must be between 1 and {MAX_PAGE_SIZE}"
        )
    found = await scans.get_findings(from_, limit)
    response: dict[str, Any] = {
        "harmful": [
            {
                "sha256": each.scan.hash.hex(),
                "scan": scan_json(each.scan),
                "scanners": each.scan.version,
                "is_inside": each.scan.digest != each.scan.hash,
                "key_shown_by": each.scan.by_user_id,
                "files": [
                    {
                        "media_origin": file.address.origin,
                        "media_id": file.address.media_id,
                        "user_id": file.user_id,
                    }
                    for file in each.files[:MAX_FILES]
                ],
                "file_count": len(each.files),
            }
            for each in found
        ]
    }
    if len(found) == limit:
        response["next_token"] = from_ + limit
    return response


class RescanRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The rescan request."""

    newer_than_ms: int | None = None
    """Only files that arrived within this time; by default all files."""


@endpoint("POST", f"{_PREFIX}/rescan", auth=Auth.ADMIN)
async def post_rescan(
    scans: ScanAdministration, *, body: RescanRequest = RescanRequest()
) -> dict[str, Any]:
    """Start a rescan in the background."""
    if body.newer_than_ms is not None and body.newer_than_ms < 0:
        raise InvalidParam("newer_than_ms must not be negative")
    return _describe(await scans.do_rescan(body.newer_than_ms), 0)


@endpoint("GET", f"{_PREFIX}/rescan", auth=Auth.ADMIN)
async def get_rescan(scans: ScanAdministration) -> dict[str, Any]:
    """Return the progress of the running rescan, or the result of the last one."""
    rescan, left = await scans.get_rescan()
    return {} if rescan is None else _describe(rescan, left)


def _describe(rescan: Rescan, left: int) -> dict[str, Any]:
    return {
        "reason": rescan.reason,
        "began_ts": rescan.began_ts,
        "since_ts": rescan.since_ts,
        "is_counted": rescan.is_marked,
        "total": rescan.total,
        "left": left,
        "harmful": rescan.found,
        "ended_ts": rescan.ended_ts,
    }
