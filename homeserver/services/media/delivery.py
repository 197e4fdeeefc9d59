"""Responses with files and thumbnails: content, headers and redirects."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import NotFound, Unrecognized
from federation.protocol.ids import ServerName
from homeserver.api.media_store_errors import convert_store_errors
from homeserver.http.rate_limits import address_key
from homeserver.http.responses import FileBody, Response
from homeserver.services.media.headers import file_headers, parse_name
from homeserver.services.media.remote_copies import RemoteCopies
from homeserver.services.media.repository import MediaRepository, OwnedContent
from homeserver.services.media.thumbnails import Method, Thumbnails
from storage.media.contents import MediaContents
from storage.media.media import MediaContent

RECHECK_SECONDS: Final = 0.05
"""After a longer wait for an upload, download, scan or thumbnail, access is checked again. For a
shorter one the first check is enough."""


class MediaRequest(msgspec.Struct, frozen=True):
    """A request for a file."""

    client_ip: str
    authenticated: bool
    """Whether the request has a valid access token."""
    timeout_ms: int
    """The time to wait for a file that is not here yet."""
    allow_remote: bool = True
    """Whether the file may be fetched from another server."""
    include_quarantined: bool = False
    """Whether the file is served although it is quarantined: for administrators."""
    allow_redirect: bool = False
    """Whether the response may be a redirect to the object store."""
    user_id: str = ""
    """The user of the access token; empty: none."""
    server: str = ""
    """The server that requests the file; empty: none."""

    @property
    def requester(self) -> str:
        """The key by which resources are shared fairly among requesters."""
        return self.user_id or self.server or address_key(self.client_ip)


class MediaDelivery:
    """Serves files."""

    def __init__(
        self,
        *,
        server_name: ServerName,
        clock: IReactorTime,
        repository: MediaRepository,
        copies: RemoteCopies,
        thumbnails: Thumbnails,
        contents: MediaContents,
        serves_unauthenticated: bool,
    ) -> None:
        """`serves_unauthenticated`: whether the endpoints without authentication serve the files
        that do not require it."""
        self._server_name = server_name
        self._clock = clock
        self._repository = repository
        self._copies = copies
        self._thumbnails = thumbnails
        self._contents = contents
        self._serves_unauthenticated = serves_unauthenticated

    async def download(
        self, server_name: ServerName, media_id: str, file_name: str, asked: MediaRequest
    ) -> Response:
        """Return a file, with its own name or the one given. Raises what `get_content` does."""
        wanted = parse_name(file_name)

        async def make_response(file: OwnedContent) -> Response:
            content = file.content
            headers = file_headers(
                content.type, wanted or content.name, public=not asked.authenticated
            )
            return await self._content(content, headers, asked)

        return await self._deliver(server_name, media_id, asked, make_response)

    async def thumbnail(
        self,
        server_name: ServerName,
        media_id: str,
        size: tuple[int, int],
        method: Method,
        asked: MediaRequest,
        *,
        animated: bool,
    ) -> Response:
        """Return a thumbnail of at least this width and height. Also raises what `Thumbnails.get`
        does."""

        async def make_response(file: OwnedContent) -> Response:
            return await self._thumbnail(file, size, method, asked, animated=animated)

        return await self._deliver(server_name, media_id, asked, make_response)

    async def download_own(self, media_id: str, timeout_ms: int, server: ServerName) -> Response:
        """Return a file of this server's users, or a redirect, for another server."""
        return await self.download(
            self._server_name, media_id, "", _server_request(timeout_ms, server)
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
        """Return a thumbnail of such a file."""
        asked = _server_request(timeout_ms, server)
        return await self.thumbnail(
            self._server_name, media_id, size, method, asked, animated=animated
        )

    async def get_content(
        self, server_name: ServerName, media_id: str, asked: MediaRequest
    ) -> OwnedContent:
        """Return a file and its owner, when it may be served. Raises what the two `get_content` do,
        and Unrecognized."""
        if not asked.authenticated and not self._serves_unauthenticated:
            raise Unrecognized("This server serves files by the authenticated endpoints only")
        if server_name == self._server_name:
            return await self._repository.get_content(
                server_name,
                media_id,
                asked.timeout_ms,
                authenticated=asked.authenticated,
                include_quarantined=asked.include_quarantined,
            )
        return await self._copies.get_content(
            server_name,
            media_id,
            asked.timeout_ms,
            authenticated=asked.authenticated,
            allow_remote=asked.allow_remote,
            client_ip=asked.client_ip,
            user_id=asked.user_id,
            include_quarantined=asked.include_quarantined,
        )

    async def _deliver(
        self,
        server_name: ServerName,
        media_id: str,
        asked: MediaRequest,
        make_response: Callable[[OwnedContent], Awaitable[Response]],
    ) -> Response:
        """Return the response, unless the file was quarantined or deleted while it was waited
        for."""
        began = self._clock.seconds()
        response = await make_response(await self.get_content(server_name, media_id, asked))
        if self._clock.seconds() - began >= RECHECK_SECONDS:
            try:
                await self._check_visible(server_name, media_id, asked)
            except BaseException:
                if isinstance(response.body, FileBody):
                    response.body.source.close()
                raise
        return response

    async def _check_visible(
        self, server_name: ServerName, media_id: str, asked: MediaRequest
    ) -> None:
        source = self._repository if server_name == self._server_name else self._copies
        await source.check_visible(
            server_name,
            media_id,
            authenticated=asked.authenticated,
            include_quarantined=asked.include_quarantined,
        )

    async def _thumbnail(
        self,
        file: OwnedContent,
        size: tuple[int, int],
        method: Method,
        asked: MediaRequest,
        *,
        animated: bool,
    ) -> Response:
        content = file.content
        found = await self._thumbnails.get(
            content, *size, method, file.owner, asked.requester, animated=animated
        )
        name = f"thumbnail.{found.type.partition('/')[2]}"
        headers = file_headers(found.type, name, public=not asked.authenticated)
        if found.file is None:
            return await self._content(content, headers, asked)
        return Response(headers=headers, body=found.file)

    async def _content(
        self, content: MediaContent, headers: Mapping[str, str], asked: MediaRequest
    ) -> Response:
        """Return a content or a redirect to it."""
        redirected = await self._redirect(content, headers) if asked.allow_redirect else None
        return redirected or await self._file(content, headers)

    async def _redirect(self, content: MediaContent, headers: Mapping[str, str]) -> Response | None:
        """Return a redirect to the object store if the content is there. It must not be cached,
        since the URL expires within minutes."""
        with convert_store_errors():
            address = await self._contents.get_url(
                content.hash, headers["Content-Type"], headers["Content-Disposition"]
            )
        if address is None:
            return None
        other_headers = {
            name: value for name, value in headers.items() if not name.startswith("Content-")
        }
        return Response(
            307, {**other_headers, "Cache-Control": "no-store", "Location": address}, {}
        )

    async def _file(self, content: MediaContent, headers: Mapping[str, str]) -> Response:
        with convert_store_errors():
            opened = await self._contents.open(content.hash)
        if opened is None:
            raise NotFound("The content of this file is missing")
        return Response(headers=headers, body=FileBody(opened, opened.size, content.hash.hex()))


def _server_request(timeout_ms: int, server: ServerName) -> MediaRequest:
    return MediaRequest(
        "", authenticated=True, timeout_ms=timeout_ms, allow_redirect=True, server=server
    )
