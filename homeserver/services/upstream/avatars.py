"""Imports avatars from the URLs that providers give.

Laws:
- The URL is untrusted: the server's HTTP client fetches it over TLS, with a size limit, and only
  image types are accepted.
- An existing avatar is never replaced. A failed import is logged and has no other effect.
"""

from collections.abc import Mapping
from http import HTTPStatus
from io import BytesIO
from typing import Final, Protocol

from twisted.logger import Logger

from federation.http_client.client import WebClient
from federation.http_client.errors import OutboundError
from federation.protocol.errors import MatrixError
from federation.protocol.ids import UserID
from homeserver.services.media.repository import MediaUpload
from homeserver.services.upstream.provider_http import without_query

MAX_BYTES: Final = 4 << 20
_SECONDS: Final = 15.0
_TYPES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


class MediaUploads(Protocol):
    """Stores uploads."""

    async def do_upload(self, user_id: UserID, upload: MediaUpload) -> str:
        """Store a file; return its `mxc://` URI. Raises `MatrixError`."""
        ...


class ProfileAvatars(Protocol):
    """Reads and changes avatars."""

    async def get_names(
        self, user_ids: list[UserID]
    ) -> Mapping[UserID, tuple[str | None, str | None]]:
        """Return display name and avatar of each user."""
        ...

    async def do_set_avatar(self, user_id: UserID, address: str) -> None:
        """Raises `MatrixError`."""
        ...


class UpstreamAvatars:
    """Imports avatars of new accounts and at each sign-in."""

    log = Logger()

    def __init__(self, *, web: WebClient, uploads: MediaUploads, avatars: ProfileAvatars) -> None:
        self._web = web
        self._uploads = uploads
        self._avatars = avatars

    async def do_import(self, user_id: UserID, address: str) -> None:
        """Implement `AvatarImporter.do_import`."""
        if (await self._avatars.get_names([user_id]))[user_id][1] is not None:
            return
        try:
            response = await self._web.request(
                "GET", address, seconds=_SECONDS, max_bytes=MAX_BYTES, redirects=3, only_https=True
            )
            type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if response.status != HTTPStatus.OK or type not in _TYPES:
                raise OutboundError(f"the response is {response.status} {type[:50]}")
            uploaded = await self._uploads.do_upload(
                user_id, MediaUpload(BytesIO(response.body), len(response.body), type, "")
            )
            await self._avatars.do_set_avatar(user_id, uploaded)
        except (OutboundError, MatrixError, OSError) as error:
            self.log.info(
                "no avatar imported from {place}: {why}",
                place=without_query(address)[:200],
                why=error,
            )
