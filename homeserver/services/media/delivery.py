"""Answers with files and thumbnails: the content, what is said of it, and in which words browsers are told to beware."""

from collections.abc import Mapping

from federation.protocol.errors import NotFound
from federation.protocol.ids import ServerName
from homeserver.http.answers import File, MemorySource, Response
from homeserver.services.media.headers import file_headers, parse_name
from homeserver.services.media.repository import MediaRepository
from homeserver.services.media.thumbnails import Method, Thumbnails
from storage.media import Content
from storage.media_files import MediaFiles


class MediaDelivery:
    """Gives files out. `authenticated`: whether who asks has shown a token."""

    def __init__(self, repository: MediaRepository, thumbnails: Thumbnails, files: MediaFiles) -> None:
        self._repository = repository
        self._thumbnails = thumbnails
        self._files = files

    async def download(
        self, server_name: ServerName, media_id: str, file_name: str, timeout_ms: int, *, authenticated: bool
    ) -> Response:
        """A file, under its own name or the one given. Raises `NotFound`, `NotYetUploaded`, `InvalidParam`."""
        asked = parse_name(file_name)
        content = await self._repository.get_content(server_name, media_id, timeout_ms, authenticated=authenticated)
        return await self._file(content, file_headers(content.type, asked or content.name, public=not authenticated))

    async def thumbnail(
        self,
        server_name: ServerName,
        media_id: str,
        size: tuple[int, int],
        method: Method,
        timeout_ms: int,
        *,
        animated: bool,
        authenticated: bool,
    ) -> Response:
        """A small picture of an image, at least of that width and height. Raises also what `Thumbnails.get` does."""
        content = await self._repository.get_content(server_name, media_id, timeout_ms, authenticated=authenticated)
        found = await self._thumbnails.get(content, *size, method, animated=animated)
        name = f"thumbnail.{found.type.partition('/')[2]}"
        headers = file_headers(found.type, name, public=not authenticated)
        if found.data is None:
            return await self._file(content, headers)
        etag = f"{content.hash.hex()}-{found.name}"
        return Response(headers=headers, body=File(MemorySource(found.data), len(found.data), etag))

    async def _file(self, content: Content, headers: Mapping[str, str]) -> Response:
        opened = await self._files.open(content.hash)
        if opened is None:
            raise NotFound("The content of this file is missing")
        return Response(headers=headers, body=File(opened, opened.size, content.hash.hex()))
