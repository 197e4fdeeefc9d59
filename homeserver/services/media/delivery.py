"""Answers with files and thumbnails: the content, what is said of it, and in which words browsers
are told to beware."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import NotFound, Unrecognized
from federation.protocol.ids import ServerName
from homeserver.api.storage_errors import telling_of_the_store
from homeserver.http.rate_limits import address_key
from homeserver.http.responses import File, Response
from homeserver.services.media.headers import file_headers, parse_name
from homeserver.services.media.remote_copies import RemoteCopies
from homeserver.services.media.repository import MediaRepository, OwnedContent
from homeserver.services.media.thumbnails import Method, Thumbnails
from storage.media.contents import Contents
from storage.media.media import Content

MOMENT_SECONDS: Final = 0.05
"""Who had to wait longer for a file, for its upload, its fetching, its scan or its thumbnail, gets
it only if it may still be given out. For a shorter time one look is enough."""


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
    user_id: str = ""
    """Whose token it is; empty: nobody's."""
    server: str = ""
    """The server that asks; empty: none."""

    @property
    def asker(self) -> str:
        """Who shall not take the room of others."""
        return self.user_id or self.server or address_key(self.client_ip)


class MediaDelivery:
    """Gives files out."""

    def __init__(
        self,
        server_name: ServerName,
        clock: IReactorTime,
        repository: MediaRepository,
        copies: RemoteCopies,
        thumbnails: Thumbnails,
        contents: Contents,
        *,
        serves_everybody: bool,
    ) -> None:
        """`serves_everybody`: whether files that are not for those with a token alone are given to
        others."""
        self._server_name = server_name
        self._clock = clock
        self._repository = repository
        self._copies = copies
        self._thumbnails = thumbnails
        self._contents = contents
        self._serves_everybody = serves_everybody

    async def download(
        self, server_name: ServerName, media_id: str, file_name: str, asked: Asked
    ) -> Response:
        """A file, under its own name or the one given. Raises what `get_content` does."""
        wanted = parse_name(file_name)

        async def answer(file: OwnedContent) -> Response:
            content = file.content
            headers = file_headers(
                content.type, wanted or content.name, public=not asked.authenticated
            )
            return await self._content(content, headers, asked)

        return await self._deliver(server_name, media_id, asked, answer)

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
        """A small picture of an image, at least of that width and height. Raises also what
        `Thumbnails.get` does."""

        async def answer(file: OwnedContent) -> Response:
            return await self._thumbnail(file, size, method, asked, animated=animated)

        return await self._deliver(server_name, media_id, asked, answer)

    async def download_own(self, media_id: str, timeout_ms: int, server: ServerName) -> Response:
        """A file of this server's users, or where it is, for another server."""
        return await self.download(
            self._server_name, media_id, "", _asked_by_server(timeout_ms, server)
        )

    async def thumbnail_own(
        self,
        media_id: str,
        size: tuple[int, int],
        method: Method,
        timeout_ms: int,
        server: ServerName,
        *,
        animated: bool,
    ) -> Response:
        """A small picture of such a file."""
        asked = _asked_by_server(timeout_ms, server)
        return await self.thumbnail(
            self._server_name, media_id, size, method, asked, animated=animated
        )

    async def get_content(
        self, server_name: ServerName, media_id: str, asked: Asked
    ) -> OwnedContent:
        """What a file is, and whose, once it may be given out. Raises what the two `get_content`
        do, and Unrecognized."""
        if not asked.authenticated and not self._serves_everybody:
            raise Unrecognized("This server gives out files by the authenticated endpoints alone")
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
            user_id=asked.user_id,
            held_too=asked.held_too,
        )

    async def _deliver(
        self,
        server_name: ServerName,
        media_id: str,
        asked: Asked,
        answer: Callable[[OwnedContent], Awaitable[Response]],
    ) -> Response:
        """The answer with a file, unless the file is held back or goes while somebody waits for
        it."""
        began = self._clock.seconds()
        made = await answer(await self.get_content(server_name, media_id, asked))
        if self._clock.seconds() - began >= MOMENT_SECONDS:
            try:
                await self._check_visible(server_name, media_id, asked)
            except BaseException:
                if isinstance(made.body, File):
                    made.body.source.close()
                raise
        return made

    async def _check_visible(self, server_name: ServerName, media_id: str, asked: Asked) -> None:
        place = self._repository if server_name == self._server_name else self._copies
        await place.check_visible(
            server_name, media_id, authenticated=asked.authenticated, held_too=asked.held_too
        )

    async def _thumbnail(
        self,
        file: OwnedContent,
        size: tuple[int, int],
        method: Method,
        asked: Asked,
        *,
        animated: bool,
    ) -> Response:
        content = file.content
        found = await self._thumbnails.get(
            content, *size, method, file.whose, asked.asker, animated=animated
        )
        name = f"thumbnail.{found.type.partition('/')[2]}"
        headers = file_headers(found.type, name, public=not asked.authenticated)
        if found.file is None:
            return await self._content(content, headers, asked)
        return Response(headers=headers, body=found.file)

    async def _content(
        self, content: Content, headers: Mapping[str, str], asked: Asked
    ) -> Response:
        """A content, or where it is."""
        redirected = await self._redirect(content, headers) if asked.allow_redirect else None
        return redirected or await self._file(content, headers)

    async def _redirect(self, content: Content, headers: Mapping[str, str]) -> Response | None:
        """To where the file is, if it is anywhere else; never kept by a cache, since that is for
        minutes only."""
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


def _asked_by_server(timeout_ms: int, server: ServerName) -> Asked:
    return Asked("", authenticated=True, timeout_ms=timeout_ms, allow_redirect=True, server=server)
