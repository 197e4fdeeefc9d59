"""What somebody has uploaded, for themselves: to see it, and to take it back."""

from typing import Final

from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.ids import ServerName, UserID
from homeserver.services.media.removal import MediaRemoval
from storage.media import MediaStore
from storage.media_addresses import MediaAddress
from storage.media_lists import MediaListStore, Order, Page
from storage.media_removal import Reason

MOST: Final = 1000
"""Files in one answer."""


class OwnUploads:
    """A user's own files."""

    def __init__(
        self, server_name: ServerName, store: MediaStore, lists: MediaListStore, removal: MediaRemoval
    ) -> None:
        self._server_name = server_name
        self._store = store
        self._lists = lists
        self._removal = removal

    async def get_page(self, user_id: UserID, start: int, limit: int) -> Page:
        """Some of them, newest first; how many there are, and how large together."""
        return await self._lists.get_uploads(user_id, Order("created_ts", descending=True), start, limit)

    async def do_delete(self, user_id: UserID, media_id: str) -> str:
        """Delete one; its id. Raises NotFound; Forbidden for what an administrator holds; LimitExceeded."""
        row = (await self._store.get_media([media_id])).get(media_id)
        if row is None or row.user_id != user_id or row.content is None:
            raise NotFound("You have uploaded no such file")
        address = MediaAddress(self._server_name, media_id)
        if not await self._removal.do_delete([address], Reason.UPLOADER, user_id):
            raise Forbidden("This file is held by an administrator")
        return media_id
