"""Responses with files for other servers: one body with (empty) metadata in JSON, and the file or a
redirect to it.

The multipart boundary is derived from the hash of the content. A file cannot contain its own hash,
so the boundary does not occur in it. spec: server-server-api#content-repository
"""

from typing import Final, get_args

from federation.endpoints.media import MediaHandlers, ThumbnailQuery
from federation.protocol.errors import InvalidParam
from federation.protocol.ids import ServerName
from homeserver.http.responses import FileBody, FileSource, Response
from homeserver.services.media.delivery import MediaDelivery
from homeserver.services.media.thumbnails import Method

_BOUNDARY: Final = "elsewhere"
"""The boundary of a redirect."""


class _WrappedSource:
    """A file source with a prefix and a suffix."""

    def __init__(self, *, before: bytes, source: FileSource, size: int, after: bytes) -> None:
        self.size = len(before) + size + len(after)
        self._before = before
        self._source = source
        self._end = len(before) + size
        self._after = after

    async def read(self, offset: int, size: int) -> bytes:
        if offset < len(self._before):
            return self._before[offset : offset + size]
        if offset < self._end:
            return await self._source.read(
                offset - len(self._before), min(size, self._end - offset)
            )
        return self._after[offset - self._end :][:size]

    def close(self) -> None:
        self._source.close()


def media_responses(delivery: MediaDelivery) -> MediaHandlers:
    """Return the responses for other servers, based on those for clients."""

    async def get_file(media_id: str, timeout_ms: int, server: ServerName) -> Response:
        return _wrap(await delivery.download_own(media_id, timeout_ms, server))

    async def get_thumbnail(
        media_id: str, query: ThumbnailQuery, timeout_ms: int, server: ServerName
    ) -> Response:
        if query.method not in get_args(Method):
            raise InvalidParam("method must be crop or scale")
        method: Method = "crop" if query.method == "crop" else "scale"
        return _wrap(
            await delivery.thumbnail_own(
                media_id,
                (query.width, query.height),
                method,
                timeout_ms,
                server,
                animated=query.animated,
            )
        )

    return MediaHandlers(get_file, get_thumbnail)


def _wrap(response: Response) -> Response:
    file = response.body
    if not isinstance(file, FileBody):
        return _wrap_redirect(response.headers["Location"])
    boundary = file.etag.replace("_", "-")
    headers_sent = "".join(
        f"{name}: {response.headers[name]}\r\n" for name in ("Content-Type", "Content-Disposition")
    )
    before = (
        f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n"
        f"--{boundary}\r\n{headers_sent}\r\n"
    ).encode()
    source = _WrappedSource(
        before=before, source=file.source, size=file.size, after=f"\r\n--{boundary}--\r\n".encode()
    )
    headers = {"Content-Type": f"multipart/mixed; boundary={boundary}"}
    return Response(headers=headers, body=FileBody(source, source.size, file.etag))


def _wrap_redirect(address: str) -> Response:
    """Return a redirect to the file in place of the file."""
    first = f"--{_BOUNDARY}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n"
    body = f"{first}--{_BOUNDARY}\r\nLocation: {address}\r\n\r\n\r\n--{_BOUNDARY}--\r\n"
    headers = {"Content-Type": f"multipart/mixed; boundary={_BOUNDARY}"}
    return Response(headers=headers, body=body.encode())
