"""Copies of files of other servers: fetched on the first request, and kept until nobody has read
them for the configured time.

spec: client-server-api#content-repository, server-server-api#content-repository
"""

from collections.abc import Collection
from contextlib import suppress

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.federation_policy import FederationPolicy
from federation.peers.token_buckets import Rate
from federation.protocol.errors import Forbidden, InvalidParam, MediaHarmful, NotFound
from federation.protocol.ids import ServerName
from federation.protocol.multipart import name_in
from federation.remote.media import SIGNED_PATH, FileHeaders
from homeserver.api.limits import Limit
from homeserver.api.media_store_errors import convert_store_errors
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.services.media.freeze import MediaFreeze
from homeserver.services.media.headers import MAX_NAME_BYTES, parse_type
from homeserver.services.media.remote_downloads import RemoteDownloads
from homeserver.services.media.repository import (
    ACCESS_PRECISION_MS,
    MAX_WAIT_MS,
    MEDIA_ID,
    OwnedContent,
)
from homeserver.services.media.sniffing import settle_type
from homeserver.services.scanning.gate import ScanGate
from storage.engine.transaction import WriteTransaction
from storage.media.content_uris import ContentURI
from storage.media.contents import MediaContents
from storage.media.media import MediaContent
from storage.media.quarantine import SCANNER, QuarantineStore
from storage.media.remote_media import RemoteMediaRow, RemoteMediaStore
from storage.media.spool import Spool


class RemoteCopies:
    """Serves files of other servers."""

    log = Logger()

    # More than ten: the last three are options.
    def __init__(
        self,
        *,
        store: RemoteMediaStore,
        contents: MediaContents,
        quarantine: QuarantineStore,
        gate: ScanGate,
        downloads: RemoteDownloads,
        policy: FederationPolicy,
        limiter: RateLimiter,
        clock: IReactorTime,
        rate: Rate,
        refused_servers: Collection[str],
        freeze: MediaFreeze,
    ) -> None:
        """`rate`: bytes, per requesting address. `refused_servers`: servers whose files are not
        served.

        `freeze`: which copies require an access token.
        """
        self._store = store
        self._contents = contents
        self._quarantine = quarantine
        self._gate = gate
        self._fetching = downloads
        self._policy = policy
        self._limiter = limiter
        self._clock = clock
        self._rate = rate
        self._refused = frozenset(server.lower() for server in refused_servers)
        self._freeze = freeze

    async def get_content(
        self,
        server: ServerName,
        media_id: str,
        timeout_ms: int,
        *,
        authenticated: bool,
        allow_remote: bool,
        client_ip: str,
        user_id: str,
        include_quarantined: bool = False,
    ) -> OwnedContent:
        """Return a file and its owner, when there is a copy. Raises what `RemoteDownloads.fetch`
        and `ScanGate.check` do, and InvalidParam.

        `authenticated`: whether the request has an access token; `user_id`: its user, if any.
        `allow_remote`: whether the file may be fetched. `include_quarantined`: also if it is
        quarantined.
        """
        if timeout_ms < 0:
            raise InvalidParam("timeout_ms may not be negative")
        if server.lower() in self._refused:
            raise Forbidden(f"This server does not serve files of {server}")
        self._policy.check_destination(server, SIGNED_PATH)
        if not MEDIA_ID.fullmatch(media_id):
            raise NotFound("There is no such file")
        row = await self._store.get_copy(server, media_id)
        if row is None:
            if not allow_remote:
                raise NotFound("There is no copy of this file here")
            if self._freeze.is_on and not authenticated:
                raise NotFound("Files of other servers require an access token")
            address = address_key(client_ip)
            row = await self._fetch(
                server, media_id, min(timeout_ms, MAX_WAIT_MS), address, user_id or address
            )
        row = self._check(row, authenticated=authenticated, include_quarantined=include_quarantined)
        if not include_quarantined:
            await self._gate.check("remote", row.content, timeout_ms, server)
        self._record_access(row)
        return OwnedContent(row.content, server)

    async def check_visible(
        self, server: ServerName, media_id: str, *, authenticated: bool, include_quarantined: bool
    ) -> None:
        """Check that a copy may still be served. Raises NotFound, MediaHarmful."""
        self._check(
            await self._store.get_copy(server, media_id),
            authenticated=authenticated,
            include_quarantined=include_quarantined,
        )

    def _check(
        self, row: RemoteMediaRow | None, *, authenticated: bool, include_quarantined: bool
    ) -> RemoteMediaRow:
        if row is None:
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

    async def _fetch(
        self, server: ServerName, media_id: str, timeout_ms: int, address: str, user: str
    ) -> RemoteMediaRow | None:
        self._limiter.check_without_counting(Limit.REMOTE_MEDIA, address, rate=self._rate)

        async def store_file(headers: FileHeaders, body: Spool) -> None:
            await self._store_copy(server, media_id, headers, body)

        await self._fetching.fetch(server, media_id, timeout_ms, store_file, user)
        row = await self._store.get_copy(server, media_id)
        if row is not None:
            self._limiter.count(Limit.REMOTE_MEDIA, address, cost=row.content.size, rate=self._rate)
        return row

    async def _store_copy(
        self, server: ServerName, media_id: str, headers: FileHeaders, body: Spool
    ) -> None:
        type = settle_type(parse_type(headers.type), body)

        def write(txn: WriteTransaction, hash: bytes, size: int) -> None:
            now = self._now_ms()
            content = MediaContent(hash, size, type, _name(headers.disposition))
            row = RemoteMediaRow(server, media_id, content, now, now, self._freeze.is_on)
            if not self._store.add_copy(txn, row):
                raise _AlreadyCopied
            self._gate.record_file(txn, "remote", hash, size)
            self._quarantine.quarantine_known_copy(txn, ContentURI(server, media_id), hash)

        with suppress(_AlreadyCopied), convert_store_errors():
            await self._contents.add(body, write)

    def _record_access(self, row: RemoteMediaRow) -> None:
        now = self._now_ms()
        if now - row.last_access_ts >= ACCESS_PRECISION_MS:
            Deferred.fromCoroutine(
                self._store.set_accessed(row.origin, row.media_id, now)
            ).addErrback(
                lambda failure: self.log.failure("cannot record that a file was read", failure)
            )

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


class _AlreadyCopied(Exception):
    """Another node has stored a copy meanwhile."""


def _name(disposition: str) -> str | None:
    """Return the file name that another server sent; None if it is too long."""
    name = name_in(disposition)
    return None if name is None or len(name.encode()) > MAX_NAME_BYTES else name
