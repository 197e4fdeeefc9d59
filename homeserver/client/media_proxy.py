"""The API of matrix-content-scanner (`/_matrix/media_proxy`). Through it, clients ask whether
a file is harmful, and download files that are not. The files may be encrypted.

Requests without an access token get only the files that `homeserver/client/media.py` serves without
one.

source: docs/api.md of matrix-content-scanner
"""

import msgspec

from federation.api.request import RequestContext
from federation.protocol.ids import ServerName
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import Response
from homeserver.services.media.scan_proxy import ContentScannerAPI
from homeserver.services.media.thumbnails import Method

_PROXY = "/_matrix/media_proxy/unstable"
_ID = "/{server_name}/{media_id}"


class PublicKeyBody(msgspec.Struct, frozen=True):
    public_key: str


class ScanResult(msgspec.Struct, frozen=True):
    clean: bool
    info: str


@endpoint("GET", f"{_PROXY}/public_key", auth=Auth.NONE)
async def get_public_key(proxy: ContentScannerAPI) -> PublicKeyBody:
    """Return the public key to which clients may encrypt the keys of encrypted files."""
    return PublicKeyBody(proxy.get_public_key())


@endpoint("GET", f"{_PROXY}/download{_ID}", auth=Auth.OPTIONAL, long_poll=True)
async def get_scanned_download(
    proxy: ContentScannerAPI,
    caller: Requester | None,
    context: RequestContext,
    *,
    server_name: ServerName,
    media_id: str,
) -> Response:
    """Return a file, if its scan is clean."""
    return await proxy.download(server_name, media_id, caller, context)


@endpoint("GET", f"{_PROXY}/thumbnail{_ID}", auth=Auth.OPTIONAL, long_poll=True)
async def get_scanned_thumbnail(
    proxy: ContentScannerAPI,
    caller: Requester | None,
    context: RequestContext,
    *,
    server_name: ServerName,
    media_id: str,
    width: int,
    height: int,
    method: Method = "scale",
    animated: bool = False,
) -> Response:
    """Return a thumbnail of an image, if its scan is clean."""
    return await proxy.thumbnail(
        server_name, media_id, (width, height), method, caller, context, animated=animated
    )


@endpoint("GET", f"{_PROXY}/scan{_ID}", auth=Auth.OPTIONAL, long_poll=True)
async def get_scan(
    proxy: ContentScannerAPI,
    caller: Requester | None,
    context: RequestContext,
    *,
    server_name: ServerName,
    media_id: str,
) -> ScanResult:
    """Return whether a file is clean."""
    return ScanResult(*await proxy.scan(server_name, media_id, caller, context))


@endpoint(
    "POST", f"{_PROXY}/download_encrypted", auth=Auth.OPTIONAL, long_poll=True, while_suspended=True
)
async def post_download_encrypted(
    proxy: ContentScannerAPI, caller: Requester | None, context: RequestContext, *, body: bytes
) -> Response:
    """Return an encrypted file, if its decrypted content is clean. The body holds its key."""
    return await proxy.download_encrypted(body, caller, context)


@endpoint(
    "POST", f"{_PROXY}/scan_encrypted", auth=Auth.OPTIONAL, long_poll=True, while_suspended=True
)
async def post_scan_encrypted(
    proxy: ContentScannerAPI, caller: Requester | None, context: RequestContext, *, body: bytes
) -> ScanResult:
    """Return whether the decrypted content of a file is clean. The body holds its key."""
    return ScanResult(*await proxy.scan_encrypted(body, caller, context))
