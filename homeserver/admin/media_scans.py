"""Scans of files, for administrators: what was found, and scanning again."""

from typing import Annotated, Any

import msgspec

from federation.api.endpoint import Names
from federation.protocol.errors import InvalidParam
from homeserver.api.endpoint import Auth, endpoint
from homeserver.services.scanning.administration import ScanAdministration, shown_scan
from storage.media.rescans import Rescan

_OURS = "/_mahalla/admin/v1/media"
MOST = 1000
"""Findings in one answer."""
MOST_FILES = 100
"""Files of one finding that are named."""


@endpoint("GET", f"{_OURS}/harmful", auth=Auth.ADMIN)
async def get_harmful_media(
    scans: ScanAdministration, *, from_: Annotated[int, Names("from")] = 0, limit: int = 100
) -> dict[str, Any]:
    """What was found harmful, the latest first, and the files that have it."""
    if from_ < 0 or not 0 < limit <= MOST:
        raise InvalidParam(f"from may not be negative, and limit must be from 1 to {MOST}")
    found = await scans.get_findings(from_, limit)
    answer: dict[str, Any] = {
        "harmful": [
            {
                "sha256": each.scan.hash.hex(),
                "scan": shown_scan(each.scan),
                "scanners": each.scan.version,
                "is_inside": each.scan.digest != each.scan.hash,
                "key_shown_by": each.scan.by_user_id,
                "files": [
                    {
                        "media_origin": file.address.origin,
                        "media_id": file.address.media_id,
                        "user_id": file.user_id,
                    }
                    for file in each.files[:MOST_FILES]
                ],
                "file_count": len(each.files),
            }
            for each in found
        ]
    }
    if len(found) == limit:
        answer["next_token"] = from_ + limit
    return answer


class WantedRescan(msgspec.Struct, frozen=True, kw_only=True):
    """The body of the request."""

    newer_than_ms: int | None = None
    """Only files that have come within this time; by default all."""


@endpoint("POST", f"{_OURS}/rescan", auth=Auth.ADMIN)
async def post_rescan(
    scans: ScanAdministration, *, body: WantedRescan = WantedRescan()
) -> dict[str, Any]:
    """Scan files again, in the background."""
    if body.newer_than_ms is not None and body.newer_than_ms < 0:
        raise InvalidParam("newer_than_ms may not be negative")
    return _shown(await scans.do_rescan(body.newer_than_ms), 0)


@endpoint("GET", f"{_OURS}/rescan", auth=Auth.ADMIN)
async def get_rescan(scans: ScanAdministration) -> dict[str, Any]:
    """How far the rescan is that is under way, or how the last one went."""
    rescan, left = await scans.get_rescan()
    return {} if rescan is None else _shown(rescan, left)


def _shown(rescan: Rescan, left: int) -> dict[str, Any]:
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
