"""Endpoints that send files of this server to other servers, as a streamed multipart response.

`MediaHandlers` holds the functions of the media service. They are passed in at start-up, because
`federation` does not import `homeserver`.

spec: server-server-api#content-repository
"""

from collections.abc import Awaitable, Callable

import msgspec

from federation.api.endpoint import ServerAuth, endpoint
from federation.api.request import Peer
from federation.api.responses import Response
from federation.protocol.ids import ServerName

DEFAULT_WAIT_MS = 20_000


class ThumbnailQuery(msgspec.Struct, frozen=True):
    """The size and method of a thumbnail."""

    width: int
    height: int
    method: str
    animated: bool


class MediaHandlers(msgspec.Struct, frozen=True):
    """The functions that serve files. Both raise NotFound, NotYetUploaded, InvalidParam."""

    get_file: Callable[[str, int, ServerName], Awaitable[Response]]
    """Called with the media ID, the time to wait for an upload in milliseconds, and the peer."""
    get_thumbnail: Callable[[str, ThumbnailQuery, int, ServerName], Awaitable[Response]]


@endpoint(
    "GET",
    "/_matrix/federation/v1/media/download/{media_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    long_poll=True,
)
async def get_file(
    answers: MediaHandlers, peer: Peer, *, media_id: str, timeout_ms: int = DEFAULT_WAIT_MS
) -> Response:
    """Return a file."""
    return await answers.get_file(media_id, timeout_ms, peer.server_name)


@endpoint(
    "GET",
    "/_matrix/federation/v1/media/thumbnail/{media_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    long_poll=True,
)
async def get_thumbnail(
    answers: MediaHandlers,
    peer: Peer,
    *,
    media_id: str,
    width: int,
    height: int,
    method: str = "scale",
    animated: bool = False,
    timeout_ms: int = DEFAULT_WAIT_MS,
) -> Response:
    """Return a thumbnail of an image."""
    query = ThumbnailQuery(width, height, method, animated)
    return await answers.get_thumbnail(media_id, query, timeout_ms, peer.server_name)
