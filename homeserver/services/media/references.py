"""Tracks references to media, so that files to which nothing refers any more can be deleted.

A job reads the stored events in small steps and records their references. Clients declare the
attachments of encrypted messages.

Laws:
- Tracking does not delay sending: events are read after they are stored. Messages without files
  cause no write, except that the job stores its progress from time to time. The job does not read
  encrypted messages.
- A local user's file may count as unreferenced only after a reference by its uploader was seen.
  Before that, an encrypted message may refer to it. (Its uploader, administrators, and the jobs
  that delete old or unused files may still delete it.)
"""

from collections.abc import Callable, Collection
from typing import Final

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import EventID, UserID
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.media.content_uris import ContentURI, find_content_uris
from storage.media.media import MediaStore
from storage.media.reference_follower import (
    EVENTS_PER_WRITE,
    put_events,
    select_progress,
    set_progress,
)
from storage.media.references import add_attachments, do_rechecks, select_batch
from storage.media.removal import MAX_UNREAD_EVENTS

POLL_SECONDS: Final = 5.0
RECHECK_MS: Final = 60_000
"""The interval at which the job reads without an announcement: backfilled events are not
announced."""
PROGRESS_INTERVAL: Final = MAX_UNREAD_EVENTS // 2
"""The number of events without files after which progress is stored."""
MAX_ATTACHED: Final = 20
"""The maximum number of files that a client may attach to an event (MSC3911)."""


class MediaReferences:
    """Runs the job, and records the attachments of encrypted messages."""

    def __init__(
        self, *, database: Database, media: MediaStore, server_name: str, now_ms: Callable[[], int]
    ) -> None:
        self._database = database
        self._media = media
        self._server_name = server_name
        self._now_ms = now_ms
        self._done_position = -1
        """The stream position at which nothing was left to do."""
        self._checked_ms = 0
        self._scanned = 0
        """No event up to this one refers to a file that is not recorded."""

    async def do_track(self, limit: int) -> int:
        """Process up to `limit` new or changed events; return their number. Needs no query while
        nothing is written."""
        position, now = self._database.streams.current(), self._now_ms()
        if position == self._done_position and now < self._checked_ms + RECHECK_MS:
            return 0
        self._checked_ms = now
        done = 0
        while done < limit:
            count = await self._step(min(EVENTS_PER_WRITE, limit - done))
            if count == 0:
                self._done_position = position
                break
            done += count
        return done

    async def _step(self, limit: int) -> int:
        progress = await self._database.read_quickly(
            "get_media_reference_progress", select_progress
        )
        after = max(progress.upto, self._scanned)
        batch = await self._database.read("get_new_media_references", select_batch, after, limit)
        if batch.references:
            await self._database.write("put_media_references", put_events, after, batch.upto)
        elif batch.upto - progress.upto >= PROGRESS_INTERVAL:
            await self._database.write("set_media_reference_progress", set_progress, batch.upto)
        self._scanned = batch.upto
        if batch.count:
            return batch.count
        return await self._database.write("recheck_media_references", self._recheck, limit)

    def _recheck(self, txn: WriteTransaction, limit: int) -> int:
        return do_rechecks(txn, self._server_name, self._scanned, self._now_ms(), limit)

    async def check_attachments(
        self, user_id: UserID, texts: Collection[str]
    ) -> frozenset[ContentURI]:
        """Return the content URIs of the files that a client attaches to an event. Raises
        InvalidParam.

        They must be the user's own: redacting the event may delete an attached file.
        """
        if not texts:
            return frozenset()
        if len(texts) > MAX_ATTACHED:
            raise InvalidParam(f"At most {MAX_ATTACHED} files can be attached to an event")
        found: set[ContentURI] = set()
        for text in texts:
            addresses = find_content_uris(text.encode())
            if [f"mxc://{each.origin}/{each.media_id}" for each in addresses] != [text]:
                raise InvalidParam(f"attach_media must be an mxc:// address, not {text!r:.100}")
            found |= addresses
        rows = await self._media.get_media(
            each.media_id for each in found if each.origin == self._server_name
        )
        if len({row.media_id for row in rows.values() if row.user_id == user_id}) < len(found):
            raise InvalidParam("attach_media must name files that you have uploaded")
        return frozenset(found)

    async def do_attach(self, event_id: EventID, addresses: Collection[ContentURI]) -> None:
        """Attach files to an event: when the event loses its content, they lose their reference."""
        await self._database.write("attach_media", add_attachments, event_id, addresses)
