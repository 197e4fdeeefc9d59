"""Return the preview of a URL. spec: client-server-api#get_matrixclientv1mediapreview_url"""

import msgspec

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.previews.url_previews import URLPreviews

_PATHS = (
    "/_matrix/client/v1/media/preview_url",
    "/_matrix/media/v3/preview_url",
    "/_matrix/media/r0/preview_url",
    "/_matrix/media/v1/preview_url",
)


@endpoint("GET", *_PATHS, auth=Auth.USER, limit=Limit.URL_PREVIEW, long_poll=True)
async def get_url_preview(
    previews: URLPreviews, caller: Requester, *, url: str, ts: int = 0
) -> msgspec.Raw:
    """Return the current preview of a URL. `ts` is ignored."""
    return await previews.get(url, caller.user_id)
