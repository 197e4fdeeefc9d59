"""Answers with files and thumbnails: the content, what is said of it, and in which words browsers are told to beware."""

from collections.abc import Mapping

import msgspec

from federation.protocol.errors import NotFound
from federation.protocol.ids import ServerName
from homeserver.http.answers import File, MemorySource, Response
from homeserver.services.media.headers import file_headers, parse_name
from homeserver.services.media.remote_copies import RemoteCopies
from homeserver.services.media.repository import MediaRepository
from homeserver.services.media.store_errors import telling_of_the_store
from homeserver.services.media.thumbnails import Method, Thumbnails
from storage.media import Content
from storage.media_contents import Contents


class Asked(msgspec.Struct, frozen=True):
    """Who asks for a file, and how."""

    client_ip: str
    authenticated: bool
    """Whether who asks has shown a token."""
    timeout_ms: int
    """How long to wait for a file that is not there yet."""
    allow_remote: bool = True
    """Whether another server may be asked for it."""
    held_too: bool = False
    """Whether it is given out although it is held back: to administrators."""
    allow_redirect: bool = False
    """Whether the answer may be where the file is."""


class MediaDelivery:
    """Gives files out."""

    def __init__(
        self,
        server_name: ServerName,
        repository: MediaRepository,
        copies: RemoteCopies,
        thumbnails: Thumbnails,
        contents: Contents,
    ) -> None:
        self._server_name = server_name
        self._repository = repository
        self._copies = copies
        self._thumbnails = thumbnails
        self._contents = contents

    async def download(self, server_name: ServerName, media_id: str, file_name: str, asked: Asked) -> Response:
        """A file, under its own name or the one given. Raises what the two `get_content` do."""
        wanted = parse_name(file_name)
        content = await self._content(server_name, media_id, asked)
        headers = file_headers(content.type, wanted or content.name, public=not asked.authenticated)
        return (asked.allow_redirect and await self._redirect(content, headers)) or await self._file(content, headers)

    async def thumbnail(
        self,
        server_name: ServerName,
        media_id: str,
        size: tuple[int, int],
        method: Method,
        asked: Asked,
        *,
        animated: bool,
    ) -> Response:
        """A small picture of an image, at least of that width and height. Raises also what `Thumbnails.get` does."""
        content = await self._content(server_name, media_id, asked)
        return await self._thumbnail(content, size, method, animated=animated, public=not asked.authenticated)

    async def download_own(self, media_id: str, timeout_ms: int) -> Response:
        """A file of this server's users, or where it is, for another server."""
        content = await self._own(media_id, timeout_ms)
        headers = file_headers(content.type, content.name, public=False)
        return await self._redirect(content, headers) or await self._file(content, headers)

    async def thumbnail_own(
        self, media_id: str, size: tuple[int, int], method: Method, timeout_ms: int, *, animated: bool
    ) -> Response:
        """A small picture of such a file."""
        return await self._thumbnail(
            await self._own(media_id, timeout_ms), size, method, animated=animated, public=False
        )

    async def _own(self, media_id: str, timeout_ms: int) -> Content:
        return await self._repository.get_content(self._server_name, media_id, timeout_ms, authenticated=True)

    async def _content(self, server_name: ServerName, media_id: str, asked: Asked) -> Content:
        if server_name == self._server_name:
            return await self._repository.get_content(
                server_name,
                media_id,
                asked.timeout_ms,
                authenticated=asked.authenticated,
                held_too=asked.held_too,
            )
        return await self._copies.get_content(
            server_name,
            media_id,
            asked.timeout_ms,
            authenticated=asked.authenticated,
            allow_remote=asked.allow_remote,
            client_ip=asked.client_ip,
            held_too=asked.held_too,
        )

    async def _thumbnail(
        self, content: Content, size: tuple[int, int], method: Method, *, animated: bool, public: bool
    ) -> Response:
        found = await self._thumbnails.get(content, *size, method, animated=animated)
        name = f"thumbnail.{found.type.partition('/')[2]}"
        headers = file_headers(found.type, name, public=public)
        if found.data is None:
            return await self._file(content, headers)
        etag = f"{content.hash.hex()}-{found.name}"
        return Response(headers=headers, body=File(MemorySource(found.data), len(found.data), etag))

    async def _redirect(self, content: Content, headers: Mapping[str, str]) -> Response | None:
        """To where the file is, if it is anywhere else; never kept by a cache, since that is for minutes only."""
        with telling_of_the_store():
            address = await self._contents.get_address(
                content.hash, headers["Content-Type"], headers["Content-Disposition"]
            )
        if address is None:
            return None
        kept = {name: value for name, value in headers.items() if not name.startswith("Content-")}
        return Response(307, {**kept, "Cache-Control": "no-store", "Location": address}, {})

    async def _file(self, content: Content, headers: Mapping[str, str]) -> Response:
        with telling_of_the_store():
            opened = await self._contents.open(content.hash)
        if opened is None:
            raise NotFound("The content of this file is missing")
        return Response(headers=headers, body=File(opened, opened.size, content.hash.hex()))
