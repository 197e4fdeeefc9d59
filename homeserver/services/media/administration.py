"""Media administration: list, quarantine, protect and delete files."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import InvalidParam, MissingParam, NotFound
from federation.protocol.ids import RoomID, ServerName, UserID
from homeserver.services.media.removal import MediaRemoval
from homeserver.services.media.repository import MEDIA_ID
from storage.accounts.accounts import AccountStore
from storage.media.content_uris import ContentURI
from storage.media.lists import MediaFilter, MediaListStore, MediaOrder, UploadPage
from storage.media.media import MediaRow, MediaStore
from storage.media.quarantine import QuarantineChange, QuarantineStore
from storage.media.remote_media import RemoteMediaRow, RemoteMediaStore
from storage.media.removal import Deletion, RemovalReason
from storage.media.scans import MediaScanStore, ScanRow
from storage.media.usage import MediaUsageStore, RoomUsage, ServerUsage, UserUsage

MIN_TIME_MS: Final = 30_000_000_000
"""An earlier time (1970) is taken for one in seconds instead of milliseconds, and refused."""
MATRIX_START_MS: Final = 1_388_534_400_000
"""The year 2014: no file is older than Matrix."""
BATCH: Final = 1000


class BulkResult(msgspec.Struct, frozen=True):
    """The result of an operation on many files."""

    uris: Sequence[str]
    count: int
    """The number of changed files, including those with the same bytes."""
    last: ContentURI | None
    """The content URI after which to continue; None at the end."""


class MediaAdministration:
    """Operates on files of all users and servers."""

    def __init__(
        self,
        *,
        identity: ServerIdentity,
        accounts: AccountStore,
        store: MediaStore,
        copies: RemoteMediaStore,
        lists: MediaListStore,
        usage: MediaUsageStore,
        quarantine: QuarantineStore,
        scans: MediaScanStore,
        removal: MediaRemoval,
        clock: IReactorTime,
    ) -> None:
        self._identity = identity
        self._accounts = accounts
        self._store = store
        self._copies = copies
        self._lists = lists
        self._usage = usage
        self._quarantine = quarantine
        self._scans = scans
        self._removal = removal
        self._clock = clock

    # Listing.

    async def get_uploads(
        self, user_id: UserID, order: MediaOrder, start: int, limit: int
    ) -> UploadPage:
        """Return the uploads of a local user. Raises InvalidParam, NotFound."""
        await self._check_user(user_id)
        return await self._lists.get_uploads(user_id, order, start, limit)

    async def get_file(self, server: ServerName, media_id: str) -> MediaRow | RemoteMediaRow:
        """Return the row of a file. Raises NotFound."""
        if server == self._identity.server_name:
            row: MediaRow | RemoteMediaRow | None = (await self._store.get_media([media_id])).get(
                media_id
            )
        else:
            row = await self._copies.get_copy(server, media_id)
        if row is None:
            raise NotFound("There is no such file here")
        return row

    async def find_files(
        self, filter_: MediaFilter, after: ContentURI, limit: int, *, own: bool
    ) -> Sequence[MediaRow | RemoteMediaRow]:
        """Return files of this server's users, or copies of other servers' files, ordered by
        content URI, after the given one."""
        if own:
            return await self._lists.find_uploads(filter_, after, limit)
        return await self._lists.find_copies(filter_, after, limit)

    async def get_scans(self, rows: Iterable[MediaRow | RemoteMediaRow]) -> Mapping[bytes, ScanRow]:
        """Return the scans of files, by their hashes."""
        return await self._scans.get_scans(
            row.content.hash for row in rows if row.content is not None
        )

    async def get_room_files(self, room_id: RoomID) -> tuple[Sequence[str], Sequence[str]]:
        """Return the content URIs of the files in a room: this server's, and others'."""
        found = await self._lists.get_in_room(room_id)
        own = self._identity.server_name
        return (
            [_format_uri(address) for address in found if address.origin == own],
            [_format_uri(address) for address in found if address.origin != own],
        )

    async def get_user_usage(self, from_ms: int, until_ms: int | None) -> Sequence[UserUsage]:
        """Return how much each user has uploaded in a period."""
        return await self._usage.get_of_users(from_ms, until_ms)

    async def get_server_usage(self, rooms: int, servers: int) -> ServerUsage:
        """Return how much there is in total, in the largest rooms, and of the largest other
        servers."""
        return await self._usage.get_of_server(rooms, servers)

    async def get_room_usage(self, room_id: RoomID) -> RoomUsage:
        """Return how much there is in a room. Raises NotFound."""
        found = await self._usage.get_of_room(room_id)
        if found is None:
            raise NotFound("This server does not know this room")
        return found

    async def get_deletions(self, before_number: int | None, limit: int) -> Sequence[Deletion]:
        """Return deletions, the latest first."""
        return await self._removal.get_deletions(before_number, limit)

    # Quarantine.

    async def do_quarantine(self, server: ServerName, media_id: str, by: UserID) -> int:
        """Quarantine a file and all with the same bytes; return their number. A file of another
        server may be fetched later. Raises NotFound."""
        if server == self._identity.server_name:
            if (await self.get_file(server, media_id)).content is None:
                raise NotFound("This content URI is reserved, but nothing is uploaded yet")
        elif not MEDIA_ID.fullmatch(media_id):
            raise NotFound("There is no such file")
        return await self._quarantine.quarantine([ContentURI(server, media_id)], by)

    async def do_quarantine_user(self, user_id: UserID, by: UserID) -> int:
        """Quarantine the uploads of a user; return their number."""
        return await self._quarantine.quarantine_user(user_id, by)

    async def do_quarantine_room(self, room_id: RoomID, by: UserID) -> int:
        """Quarantine the files of a room; return their number."""
        return await self._quarantine.quarantine_room(room_id, by)

    async def do_release(self, server: ServerName, media_id: str) -> int:
        """Release a file and all with the same bytes; return their number. Raises NotFound."""
        count = await self._quarantine.release(ContentURI(server, media_id))
        if count is None:
            raise NotFound("There is no such file here, and none is quarantined")
        return count

    async def do_protect(self, media_id: str, *, protected: bool) -> None:
        """Protect a file of this server from quarantine and automatic deletion, or end that. Raises
        NotFound."""
        if not await self._quarantine.set_protected({media_id}, protected=protected):
            raise NotFound("There is no such file here")

    async def get_changes(self, after: int, limit: int) -> Sequence[QuarantineChange]:
        """Return changes of quarantine after a position. Raises InvalidParam for a position in the
        future."""
        changes, latest = await self._quarantine.get_changes(after, limit)
        if after > latest:
            raise InvalidParam("from is not a valid token")
        return changes

    # Deleting.

    async def do_delete(self, server: ServerName, media_id: str, by: UserID) -> Sequence[str]:
        """Delete a file of this server, or a copy of another server's file, even if it is
        quarantined or protected; return its ID. Raises NotFound."""
        address = ContentURI(server, media_id)
        deleted = await self._removal.do_delete(
            [address], RemovalReason.ADMINISTRATOR, by, include_quarantined=True
        )
        if not deleted:
            raise NotFound("There is no such file here")
        return [each.media_id for each in deleted]

    async def do_delete_user_uploads(
        self, user_id: UserID, order: MediaOrder, start: int, limit: int, by: UserID
    ) -> Sequence[str]:
        """Delete a page of a user's uploads; return the IDs. Raises InvalidParam, NotFound."""
        page = await self.get_uploads(user_id, order, start, limit)
        return await self._do_delete(
            [row.media_id for row in page.rows], by, include_quarantined=True
        )

    async def do_delete_room_files(self, room_id: RoomID, by: UserID) -> tuple[Sequence[str], int]:
        """Delete the files of a room, including copies of other servers' files, even if quarantined
        or protected. Return the content URIs, and the number of files that stay because they are
        used elsewhere too."""
        shown = await self._lists.get_in_room(room_id)
        only_in_room = await self._lists.get_in_room(room_id, only_in_room=True)
        deleted = await self._removal.do_delete(
            only_in_room, RemovalReason.ADMINISTRATOR, by, include_quarantined=True
        )
        return [_format_uri(address) for address in deleted], len(shown) - len(only_in_room)

    async def do_delete_old(
        self, before_ms: int, larger_than: int, by: UserID, *, keep_profiles: bool
    ) -> Sequence[str]:
        """Delete files of this server that were not accessed since `before_ms`; return the IDs.
        Quarantined and protected files stay.

        `keep_profiles`: avatars of users, members and rooms stay too. Raises InvalidParam.
        """
        _check_time(before_ms)
        deleted: list[str] = []
        after = ""
        while True:
            found = await self._lists.get_old_uploads(
                before_ms, larger_than, after, BATCH, keep_profiles=keep_profiles
            )
            if not found:
                return deleted
            after = found[-1]
            deleted += await self._do_delete(
                found, by, include_quarantined=False, unread_since=before_ms
            )

    async def do_purge_copies(self, before_ms: int, by: UserID) -> int:
        """Delete copies of other servers' files that were not accessed since `before_ms`; return
        their number. Raises InvalidParam."""
        _check_time(before_ms)
        count = 0
        after = ContentURI("", "")
        while found := await self._lists.get_old_copies(before_ms, after, BATCH):
            after = found[-1]
            count += len(
                await self._removal.do_delete(
                    found, RemovalReason.ADMINISTRATOR, by, unread_since=before_ms
                )
            )
        return count

    # Bulk operations on a page of the files that match a filter, after a content URI. All raise
    # MissingParam for a filter that matches everything.

    async def do_delete_matching(
        self, filter_: MediaFilter, after: ContentURI, limit: int, by: UserID, *, own: bool
    ) -> BulkResult:
        """Delete the files. Quarantined and protected ones stay, unless the filter asks for them.
        Raises LimitExceeded."""
        include_quarantined = bool(filter_.quarantined or filter_.protected)
        filter_ = replace(
            filter_, quarantined=bool(filter_.quarantined), protected=bool(filter_.protected)
        )
        page, last = await self._select(filter_, after, limit, own)
        deleted = await self._removal.do_delete(
            page, RemovalReason.ADMINISTRATOR, by, include_quarantined=include_quarantined
        )
        return BulkResult(_format_uris(deleted), len(deleted), last)

    async def do_quarantine_matching(
        self, filter_: MediaFilter, after: ContentURI, limit: int, by: UserID, *, own: bool
    ) -> BulkResult:
        """Quarantine those that are not quarantined or protected, and all with the same bytes."""
        page, last = await self._select(
            replace(filter_, quarantined=False, protected=False), after, limit, own
        )
        return BulkResult(_format_uris(page), await self._quarantine.quarantine(page, by), last)

    async def do_release_matching(
        self, filter_: MediaFilter, after: ContentURI, limit: int, *, own: bool
    ) -> BulkResult:
        """Release those that are quarantined, and all with the same bytes."""
        page, last = await self._select(replace(filter_, quarantined=True), after, limit, own)
        return BulkResult(_format_uris(page), await self._quarantine.release_all(page), last)

    async def do_protect_matching(
        self, filter_: MediaFilter, after: ContentURI, limit: int, *, protected: bool
    ) -> BulkResult:
        """Protect files of this server from quarantine and automatic deletion, or end that."""
        page, last = await self._select(
            replace(filter_, protected=not protected), after, limit, own=True
        )
        ids = {address.media_id for address in page}
        return BulkResult(
            _format_uris(page), await self._quarantine.set_protected(ids, protected=protected), last
        )

    async def _select(
        self, filter_: MediaFilter, after: ContentURI, limit: int, own: bool
    ) -> tuple[Sequence[ContentURI], ContentURI | None]:
        """Return content URIs, and the last if there may be more. Raises MissingParam."""
        self._check_selective(filter_)
        found = [self.uri_of(row) for row in await self.find_files(filter_, after, limit, own=own)]
        return found, found[-1] if len(found) == limit else None

    def _check_selective(self, filter_: MediaFilter) -> None:
        """Refuse a filter that by mistake would match nearly everything."""
        now = int(self._clock.seconds() * 1000)
        is_selective = (
            any(each is not None for each in (filter_.user_id, filter_.room_id, filter_.origin))
            or any(
                time is not None and MATRIX_START_MS <= time <= now
                for time in (filter_.from_ms, filter_.until_ms)
            )
            or (filter_.larger_than is not None and filter_.larger_than > 0)
        )
        if not is_selective:
            raise MissingParam(
                "Select files by user_id, room_id, server_name, from_ts or until_ts"
                " (from 2014 until now) or size_gt (above 0)"
            )

    def uri_of(self, row: MediaRow | RemoteMediaRow) -> ContentURI:
        """Return the content URI of a file."""
        origin = row.origin if isinstance(row, RemoteMediaRow) else self._identity.server_name
        return ContentURI(origin, row.media_id)

    def check_own(self, server: ServerName) -> None:
        """Raises InvalidParam for a file of another server."""
        if server != self._identity.server_name:
            raise InvalidParam("Only files of this server can be deleted in this way")

    async def _do_delete(
        self,
        media_ids: Sequence[str],
        by: UserID,
        *,
        include_quarantined: bool,
        unread_since: int | None = None,
    ) -> Sequence[str]:
        addresses = [ContentURI(self._identity.server_name, media_id) for media_id in media_ids]
        deleted = await self._removal.do_delete(
            addresses,
            RemovalReason.ADMINISTRATOR,
            by,
            include_quarantined=include_quarantined,
            unread_since=unread_since,
        )
        return [address.media_id for address in deleted]

    async def _check_user(self, user_id: UserID) -> None:
        if not self._identity.is_local(user_id):
            raise InvalidParam("Only users of this server have files here")
        if not await self._accounts.get_accounts([user_id]):
            raise NotFound("There is no such user")


def _check_time(before_ms: int) -> None:
    if before_ms < MIN_TIME_MS:
        raise InvalidParam("before_ts must be in milliseconds since 1970")


def _format_uris(addresses: Iterable[ContentURI]) -> Sequence[str]:
    return [_format_uri(address) for address in addresses]


def _format_uri(address: ContentURI) -> str:
    return f"mxc://{address.origin}/{address.media_id}"
