"""Upload and download files, and make thumbnails. spec: client-server-api#content-repository

The download paths under `/_matrix/media` need no access token. While `enable_authenticated_media`
is on, these paths serve only files that arrived earlier, while it was off
(`homeserver/services/media/freeze.py`). Files are streamed, never read into memory as a whole.
"""

from collections.abc import Mapping
from typing import Annotated, BinaryIO

import msgspec

from federation.api.endpoint import QueryNames
from federation.api.request import RequestContext
from federation.protocol.errors import Forbidden
from federation.protocol.ids import ServerName
from homeserver.api.endpoint import Auth, BodyLimit, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty, Response
from homeserver.services.media.delivery import MediaDelivery, MediaRequest
from homeserver.services.media.repository import MediaRepository, MediaUpload
from homeserver.services.media.thumbnails import Method

_ID = "/{server_name}/{media_id}"
_NAMED = _ID + "/{file_name}"
_OLD = ("/_matrix/media/v3", "/_matrix/media/r0", "/_matrix/media/v1")
_NEW = "/_matrix/client/v1/media"
_OLD_DOWNLOADS = tuple(f"{old}/download{rest}" for old in _OLD for rest in (_ID, _NAMED))
_OLD_THUMBNAILS = tuple(f"{old}/thumbnail{_ID}" for old in _OLD)
_UPLOADS = tuple(f"{old}/upload" for old in _OLD)
_FILLS = tuple(f"{old}/upload{_ID}" for old in _OLD)
_CONFIGS = (f"{_NEW}/config", *(f"{old}/config" for old in _OLD))
DEFAULT_TIMEOUT_MS = 20_000
AllowRedirect = Annotated[bool, QueryNames("allow_redirect", "com.beeper.msc3860.allow_redirect")]


class UploadedMedia(msgspec.Struct, frozen=True):
    content_uri: str


class ReservedMedia(msgspec.Struct, frozen=True):
    content_uri: str
    unused_expires_at: int


@endpoint("POST", *_UPLOADS, auth=Auth.USER, limit=Limit.MEDIA_CREATE, max_body=BodyLimit.UPLOAD)
async def post_upload(
    media: MediaRepository,
    caller: Requester,
    context: RequestContext,
    *,
    body: BinaryIO,
    filename: str = "",
) -> UploadedMedia:
    """Upload a file."""
    return UploadedMedia(
        await media.do_upload(
            caller.user_id, MediaUpload(body, context.body_size, context.content_type, filename)
        )
    )


@endpoint(
    "POST",
    "/_matrix/media/v1/create",
    "/_matrix/media/unstable/fi.mau.msc2246/create",
    auth=Auth.USER,
    limit=Limit.MEDIA_CREATE,
)
async def post_create(media: MediaRepository, caller: Requester) -> ReservedMedia:
    """Reserve a content URI for a later upload."""
    return ReservedMedia(*await media.do_reserve(caller.user_id))


@endpoint("PUT", *_FILLS, auth=Auth.USER, limit=Limit.MEDIA_CREATE, max_body=BodyLimit.UPLOAD)
async def put_upload(
    media: MediaRepository,
    caller: Requester,
    context: RequestContext,
    *,
    server_name: ServerName,
    media_id: str,
    body: BinaryIO,
    filename: str = "",
) -> Empty:
    """Upload a file to a reserved content URI."""
    upload = MediaUpload(body, context.body_size, context.content_type, filename)
    await media.do_upload_reserved(caller.user_id, server_name, media_id, upload)
    return EMPTY


@endpoint("GET", *_CONFIGS, auth=Auth.GUEST)
async def get_config(media: MediaRepository, caller: Requester) -> Mapping[str, int]:
    """Return the upload size limit."""
    return {"m.upload.size": media.max_upload_size}


@endpoint(
    "GET", f"{_NEW}/download{_ID}", f"{_NEW}/download{_NAMED}", auth=Auth.GUEST, long_poll=True
)
async def get_download(
    delivery: MediaDelivery,
    caller: Requester,
    context: RequestContext,
    *,
    server_name: ServerName,
    media_id: str,
    file_name: str = "",
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
    admin_unsafely_bypass_quarantine: bool = False,
) -> Response:
    """Return a file or redirect to it, with its own file name or the given one. Administrators may
    bypass the quarantine."""
    if admin_unsafely_bypass_quarantine and not caller.is_admin:
        raise Forbidden("Only administrators may download quarantined files")
    request = MediaRequest(
        context.client_ip,
        True,
        timeout_ms,
        include_quarantined=admin_unsafely_bypass_quarantine,
        allow_redirect=True,
        user_id=caller.user_id,
    )
    return await delivery.download(server_name, media_id, file_name, request)


@endpoint("GET", *_OLD_DOWNLOADS, auth=Auth.NONE, long_poll=True)
async def get_public_download(
    delivery: MediaDelivery,
    context: RequestContext,
    *,
    server_name: ServerName,
    media_id: str,
    file_name: str = "",
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
    allow_remote: bool = True,
    allow_redirect: AllowRedirect = False,
) -> Response:
    """Return a file without authentication, unless it requires a token (`MediaFreeze`)."""
    request = MediaRequest(
        context.client_ip,
        False,
        timeout_ms,
        allow_remote=allow_remote,
        allow_redirect=allow_redirect,
    )
    return await delivery.download(server_name, media_id, file_name, request)


@endpoint("GET", f"{_NEW}/thumbnail{_ID}", auth=Auth.GUEST, long_poll=True)
async def get_thumbnail(
    delivery: MediaDelivery,
    caller: Requester,
    context: RequestContext,
    *,
    server_name: ServerName,
    media_id: str,
    width: int,
    height: int,
    method: Method = "scale",
    animated: bool = False,
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
) -> Response:
    """Return a thumbnail of an image. May redirect to the image itself."""
    request = MediaRequest(
        context.client_ip, True, timeout_ms, allow_redirect=True, user_id=caller.user_id
    )
    return await delivery.thumbnail(
        server_name, media_id, (width, height), method, request, animated=animated
    )


@endpoint("GET", *_OLD_THUMBNAILS, auth=Auth.NONE, long_poll=True)
async def get_public_thumbnail(
    delivery: MediaDelivery,
    context: RequestContext,
    *,
    server_name: ServerName,
    media_id: str,
    width: int,
    height: int,
    method: Method = "scale",
    animated: bool = False,
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
    allow_remote: bool = True,
    allow_redirect: AllowRedirect = False,
) -> Response:
    """Return a thumbnail without authentication, unless its file requires a token
    (`MediaFreeze`)."""
    request = MediaRequest(
        context.client_ip,
        False,
        timeout_ms,
        allow_remote=allow_remote,
        allow_redirect=allow_redirect,
    )
    return await delivery.thumbnail(
        server_name, media_id, (width, height), method, request, animated=animated
    )
