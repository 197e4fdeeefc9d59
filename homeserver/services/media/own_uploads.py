"""A user's own uploads: list them with the results of their malware scans, and delete them."""

from collections.abc import Mapping
from typing import Final

from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.ids import ServerName, UserID
from homeserver.services.media.removal import MediaRemoval
from storage.media.content_uris import ContentURI
from storage.media.lists import MediaListStore, MediaOrder, UploadPage
from storage.media.media import MediaStore
from storage.media.removal import RemovalReason
from storage.media.scans import MediaScanStore, ScanRow

MAX_PAGE: Final = 1000
"""The maximum number of files of one response."""


class OwnUploads:
    """Lists and deletes a user's own uploads."""

    def __init__(
        self,
        *,
        server_name: ServerName,
        store: MediaStore,
        lists: MediaListStore,
        scans: MediaScanStore,
        removal: MediaRemoval,
    ) -> None:
        self._server_name = server_name
        self._store = store
        self._lists = lists
        self._scans = scans
        self._removal = removal

    async def get_page(self, user_id: UserID, start: int, limit: int) -> UploadPage:
        """Return a page of a user's uploads, newest first, with their number and total size."""
        return await self._lists.get_uploads(
            user_id, MediaOrder("created_ts", descending=True), start, limit
        )

    async def get_scans(self, page: UploadPage) -> Mapping[bytes, ScanRow]:
        """Return the scans of these files, by their hashes."""
        return await self._scans.get_scans(
            row.content.hash for row in page.rows if row.content is not None
        )

    async def do_delete(self, user_id: UserID, media_id: str) -> str:
        """Delete a file; return its ID. Raises NotFound; Forbidden if an administrator has
        quarantined or protected it; LimitExceeded."""
        row = (await self._store.get_media([media_id])).get(media_id)
        if row is None or row.user_id != user_id or row.content is None:
            raise NotFound("You have uploaded no such file")
        address = ContentURI(self._server_name, media_id)
        if not await self._removal.do_delete([address], RemovalReason.UPLOADER, user_id):
            raise Forbidden("An administrator has quarantined or protected this file")
        return media_id
