"""Files of this server, as other servers fetch them: two parts, of which the second is the file,
sent as it is read.

The answers come from the layer that knows the files: `MediaAnswers` is filled where the server is
put together.

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
    """What sort of thumbnail."""

    width: int
    height: int
    method: str
    animated: bool


class MediaAnswers(msgspec.Struct, frozen=True):
    """Who answers. Both raise NotFound, NotYetUploaded, InvalidParam."""

    get_file: Callable[[str, int, ServerName], Awaitable[Response]]
    """From the id, how many milliseconds to wait for an upload, and which server asks."""
    get_thumbnail: Callable[[str, ThumbnailQuery, int, ServerName], Awaitable[Response]]


@endpoint(
    "GET",
    "/_matrix/federation/v1/media/download/{media_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    long_poll=True,
)
async def get_file(
    answers: MediaAnswers, peer: Peer, *, media_id: str, timeout_ms: int = DEFAULT_WAIT_MS
) -> Response:
    """A file."""
    return await answers.get_file(media_id, timeout_ms, peer.server_name)


@endpoint(
    "GET",
    "/_matrix/federation/v1/media/thumbnail/{media_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
    long_poll=True,
)
async def get_thumbnail_of_file(
    answers: MediaAnswers,
    peer: Peer,
    *,
    media_id: str,
    width: int,
    height: int,
    method: str = "scale",
    animated: bool = False,
    timeout_ms: int = DEFAULT_WAIT_MS,
) -> Response:
    """A small picture of an image."""
    query = ThumbnailQuery(width, height, method, animated)
    return await answers.get_thumbnail(media_id, query, timeout_ms, peer.server_name)
