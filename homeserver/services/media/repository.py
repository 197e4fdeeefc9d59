"""Files of this server's users: uploading, reserving content URIs, serving.

An upload is acknowledged only when its bytes are stored durably, in the media folder or in the
object store, and its row is committed.

spec: client-server-api#content-repository
"""

import re
from collections.abc import Callable
from typing import BinaryIO, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import (
    CannotOverwriteMedia,
    Forbidden,
    InvalidParam,
    LimitExceeded,
    MediaHarmful,
    NotFound,
    NotYetUploaded,
)
from federation.protocol.ids import ServerName, UserID
from homeserver.api.media_store_errors import convert_store_errors
from homeserver.services.media.freeze import MediaFreeze
from homeserver.services.media.headers import parse_name, parse_type
from homeserver.services.media.location_removal import LocationRemover
from homeserver.services.media.quotas import UploadQuotas
from homeserver.services.media.sniffing import settle_type
from homeserver.services.scanning.gate import ScanGate
from homeserver.services.tokens.secret_tokens import SecretGenerator
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.media.contents import MediaContents
from storage.media.media import MediaContent, MediaRow, MediaStore
from storage.media.quarantine import SCANNER, QuarantineStore
from storage.media.rescans import FileKind

ACCESS_PRECISION_MS: Final = 3600 * 1000
"""The precision of the last access: not every read may cost a write."""
MAX_WAIT_MS: Final = 60_000
RECHECK_SECONDS: Final = 1.0
"""The interval at which a pending file is looked up, as it may be uploaded through another node."""
MEDIA_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")


class MediaUpload(msgspec.Struct, frozen=True):
    """An uploaded file, and what the client says about it."""

    body: BinaryIO
    size: int
    claimed_type: str
    name: str


class OwnedContent(msgspec.Struct, frozen=True):
    """A file that may be served."""

    content: MediaContent
    owner: str
    """The user or server that owns the file; empty for the picture of a URL preview."""


class MediaRepository:
    """Stores and serves local files."""

    log = Logger()

    # More than ten: the last four are options.
    def __init__(
        self,
        *,
        server_name: ServerName,
        clock: IReactorTime,
        database: Database,
        store: MediaStore,
        contents: MediaContents,
        quarantine: QuarantineStore,
        gate: ScanGate,
        quotas: UploadQuotas,
        secret_text: SecretGenerator,
        location_remover: LocationRemover | None,
        on_stored: Callable[[MediaContent, UserID], None] | None,
        max_upload_size: int,
        max_pending: int,
        reservation_ms: int,
        freeze: MediaFreeze,
    ) -> None:
        """`location_remover`: removes locations from photos; None: they stay. `on_stored` is called
        with each new file that is not known to be harmful. `freeze`: which files require an access
        token."""
        self.max_upload_size = max_upload_size
        self._server_name = server_name
        self._clock = clock
        self._database = database
        self._store = store
        self._contents = contents
        self._quarantine = quarantine
        self._gate = gate
        self._quotas = quotas
        self._texts = secret_text
        self._locations = location_remover
        self._on_stored = on_stored
        self._max_pending = max_pending
        self._reservation_ms = reservation_ms
        self._freeze = freeze
        self._waiting: dict[str, list[Deferred[None]]] = {}

    # Uploading.

    async def do_upload(self, user_id: UserID, upload: MediaUpload) -> str:
        """Store a file; return its content URI. Raises `InvalidParam`, what
        `UploadQuotas.check_upload` does, and `MediaHarmful`."""
        name = parse_name(upload.name)
        media_id = self._texts.media_id()

        def write(txn: WriteTransaction, content: MediaContent) -> None:
            now = self._now_ms()
            self._store.add_media(
                txn, MediaRow(media_id, user_id, content, now, None, now, self._freeze.is_on)
            )

        content = await self._store_file(user_id, upload, name, write)
        await self._finish(content, user_id)
        return self._address(media_id)

    async def do_reserve(self, user_id: UserID) -> tuple[str, int]:
        """Reserve a content URI; return it with its expiry (milliseconds since 1970). Raises
        `LimitExceeded`."""
        media_id = self._texts.media_id()
        now = self._now_ms()
        expires = now + self._reservation_ms

        def write(txn: WriteTransaction) -> None:
            if self._store.count_reserved(txn, user_id, now) >= self._max_pending:
                raise LimitExceeded(
                    f"You have {self._max_pending} reserved files that are not uploaded yet;"
                    " upload them first",
                    retry_after_ms=60_000,
                )
            self._store.add_media(
                txn, MediaRow(media_id, user_id, None, now, expires, now, self._freeze.is_on)
            )

        await self._database.write("create_media", write)
        return self._address(media_id), expires

    async def do_upload_reserved(
        self, user_id: UserID, server_name: ServerName, media_id: str, upload: MediaUpload
    ) -> None:
        """Upload to a reserved content URI. Raises `NotFound`, `Forbidden`, `CannotOverwriteMedia`,
        and what `do_upload` does."""
        name = parse_name(upload.name)
        row = await self._row(server_name, media_id)
        if row is None or _is_expired(row, self._now_ms()):
            raise NotFound("This content URI was not reserved, or the reservation has expired")
        if row.user_id != user_id:
            raise Forbidden("Another user has reserved this content URI")
        if row.content is not None:
            raise CannotOverwriteMedia

        def write(txn: WriteTransaction, content: MediaContent) -> None:
            now, authenticated = self._now_ms(), self._freeze.is_on
            if not self._store.set_content(
                txn, media_id, content, now, authenticated=authenticated
            ):
                raise CannotOverwriteMedia

        stored = await self._store_file(user_id, upload, name, write)
        for waiter in self._waiting.pop(media_id, ()):
            waiter.callback(None)
        await self._finish(stored, user_id)

    async def _finish(self, content: MediaContent, user_id: UserID) -> None:
        await self._gate.scan_stored("local", content, user_id)
        if self._on_stored is not None:
            self._on_stored(content, user_id)

    async def _store_file(
        self,
        user_id: UserID,
        upload: MediaUpload,
        name: str | None,
        write: Callable[[WriteTransaction, MediaContent], None],
    ) -> MediaContent:
        self._gate.check_size("local", upload.size)
        claimed_type = parse_type(upload.claimed_type)
        await self._quotas.check_upload(user_id, claimed_type, upload.size, self._now_ms())
        with convert_store_errors():
            if self._locations is not None:
                await self._locations.remove(upload.body, user_id)
            type = settle_type(claimed_type, upload.body)

            def store_row(txn: WriteTransaction, digest: bytes, size: int) -> MediaContent:
                self._quotas.check_in(txn, user_id, size, self._now_ms())
                content = MediaContent(digest, size, type, name)
                write(txn, content)
                self._gate.record_file(txn, "local", digest, size)
                self._quarantine.quarantine_known(txn, digest)
                return content

            return await self._contents.add(upload.body, store_row)

    # Serving.

    async def get_content(
        self,
        server_name: ServerName,
        media_id: str,
        timeout_ms: int,
        *,
        authenticated: bool,
        include_quarantined: bool = False,
    ) -> OwnedContent:
        """Return a file and its owner, after waiting for its upload and for its scan, each at most
        this time. Raises `NotFound`, `NotYetUploaded`, `InvalidParam`, and what `ScanGate.check`
        does.

        `authenticated`: whether the request has an access token. `include_quarantined`: also if it
        is quarantined.
        """
        if timeout_ms < 0:
            raise InvalidParam("timeout_ms may not be negative")
        row = await self._visible_row(
            server_name,
            media_id,
            authenticated=authenticated,
            include_quarantined=include_quarantined,
        )
        end = self._clock.seconds() + min(timeout_ms, MAX_WAIT_MS) / 1000
        while row.content is None and (left := end - self._clock.seconds()) > 0:
            await self._wait(media_id, min(left, RECHECK_SECONDS))
            row = await self._visible_row(
                server_name,
                media_id,
                authenticated=authenticated,
                include_quarantined=include_quarantined,
            )
        if row.content is None:
            raise NotYetUploaded
        if not include_quarantined:
            kind: FileKind = "local" if row.user_id else "previews"
            await self._gate.check(
                kind, row.content, timeout_ms, row.user_id, is_protected=row.protected
            )
        self._record_access(row)
        return OwnedContent(row.content, row.user_id)

    async def check_visible(
        self,
        server_name: ServerName,
        media_id: str,
        *,
        authenticated: bool,
        include_quarantined: bool,
    ) -> None:
        """Check that a file may still be served. Raises `NotFound`, `MediaHarmful`."""
        await self._visible_row(
            server_name,
            media_id,
            authenticated=authenticated,
            include_quarantined=include_quarantined,
        )

    async def _visible_row(
        self,
        server_name: ServerName,
        media_id: str,
        *,
        authenticated: bool,
        include_quarantined: bool,
    ) -> MediaRow:
        row = await self._row(server_name, media_id)
        if row is None or _is_expired(row, self._now_ms()):
            raise NotFound("There is no such file")
        if not authenticated and self._freeze.requires_token(
            arrived_in_freeze=row.authenticated, created_ts=row.created_ts
        ):
            raise NotFound("There is no such file that needs no access token")
        if row.quarantined and not include_quarantined:
            raise (
                MediaHarmful if row.quarantined_by == SCANNER else NotFound("There is no such file")
            )
        return row

    async def _row(self, server_name: ServerName, media_id: str) -> MediaRow | None:
        if server_name != self._server_name:
            raise NotFound("This is not a file of this server")
        if not MEDIA_ID.fullmatch(media_id):
            raise NotFound("There is no such file")
        return (await self._store.get_media([media_id])).get(media_id)

    async def _wait(self, media_id: str, seconds: float) -> None:
        """Wait until the file is uploaded through this node, at most this time."""
        arrived: Deferred[None] = Deferred()
        waiters = self._waiting.setdefault(media_id, [])
        waiters.append(arrived)
        timer = self._clock.callLater(seconds, arrived.callback, None)
        try:
            await arrived
        finally:
            if timer.active():
                timer.cancel()
            if arrived in waiters:
                waiters.remove(arrived)
            if not waiters and self._waiting.get(media_id) is waiters:
                del self._waiting[media_id]

    def _record_access(self, row: MediaRow) -> None:
        now = self._now_ms()
        if now - row.last_access_ts >= ACCESS_PRECISION_MS:
            Deferred.fromCoroutine(self._store.set_accessed(row.media_id, now)).addErrback(
                lambda failure: self.log.failure("cannot record that a file was read", failure)
            )

    async def do_remove_expired(self, limit: int) -> int:
        """Delete at most `limit` expired reservations; return their number. For a job."""
        return await self._store.remove_expired(self._now_ms(), limit)

    def _address(self, media_id: str) -> str:
        return f"mxc://{self._server_name}/{media_id}"

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


def _is_expired(row: MediaRow, now_ms: int) -> bool:
    return row.content is None and row.expires_ts is not None and row.expires_ts <= now_ms
