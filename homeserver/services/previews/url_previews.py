"""URL previews: made on the first request, cached for a while, and shared by all users.

If an oEmbed provider is configured for a page, the preview comes from the provider's document. If
there is no provider, or its document cannot be fetched or is empty, the preview comes from the
page: from its Open Graph metadata, else from other metadata, its title and its first words. If the
page links to an oEmbed document, what the page lacks comes from that document.

The image of a preview is stored as a local media file that has no owner. It is deleted when no
stored preview uses it, at the earliest two days after it was stored.

spec: client-server-api#get_matrixclientv1mediapreview_url
"""

from collections.abc import Sequence, Set
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.http_client.errors import OutboundError
from federation.peers.fair_semaphore import FairSemaphore
from federation.peers.shared_work import SharedWork
from federation.protocol.errors import (
    Forbidden,
    LimitExceeded,
    MatrixError,
    OtherServerFailed,
    StoreFull,
    StoreUnavailable,
)
from federation.protocol.ids import UserID
from homeserver.api.media_store_errors import convert_store_errors
from homeserver.services.media.headers import parse_type
from homeserver.services.media.thumbnails import Thumbnails
from homeserver.services.previews.fetching import FetchedPage, PreviewFetcher
from homeserver.services.previews.oembed import OEmbedProviders
from homeserver.services.previews.pages import PageMetadata, PageParser
from homeserver.services.previews.rules import PreviewRules, parse_url
from homeserver.services.scanning.gate import ScanGate
from homeserver.services.tokens.secret_tokens import SecretGenerator
from storage.engine.transaction import WriteTransaction
from storage.media.contents import MediaContents
from storage.media.media import MediaContent
from storage.media.quarantine import QuarantineStore
from storage.media.spool import Spool
from storage.media.url_previews import PreviewRow, URLPreviewStore

CONCURRENT: Final = 10
"""Previews that are made at the same time."""
CONCURRENT_PER_USER: Final = 5
"""Previews that are made at the same time for one user."""
MAX_WAITING: Final = 500
MAX_WAITING_PER_USER: Final = 50
CACHE_MS: Final = 3600 * 1000
"""The time for which a preview is cached."""
FAILED_MS: Final = 5 * 60 * 1000
"""The time for which a failure, or a preview whose image could not be stored, is cached."""
IMAGE_MS: Final = 2 * 24 * 3600 * 1000
"""Minimum time for which an image without a preview stays: clients may still show it."""
SPOOL_BYTES: Final = 1 << 18
SCAN_MS: Final = 20_000
"""Time limit of a preview that waits for the scan of its image."""

Properties = dict[str, str | int]


class URLPreviews:
    """Makes and caches previews. Without `sites`, previews are disabled."""

    log = Logger()

    # More than ten: it runs all steps from the page to the stored preview.
    def __init__(
        self,
        *,
        server_name: str,
        clock: IReactorTime,
        store: URLPreviewStore,
        contents: MediaContents,
        thumbnails: Thumbnails,
        quarantine: QuarantineStore,
        gate: ScanGate,
        pages: PageParser,
        rules: PreviewRules,
        sites: PreviewFetcher | None,
        texts: SecretGenerator,
        providers: OEmbedProviders,
        authenticated_only: bool,
    ) -> None:
        self._server_name = server_name
        self._clock = clock
        self._store = store
        self._contents = contents
        self._thumbnails = thumbnails
        self._quarantine = quarantine
        self._gate = gate
        self._pages = pages
        self._rules = rules
        self._sites = sites
        self._texts = texts
        self._providers = providers
        self._authenticated_only = authenticated_only
        self._work: SharedWork[str, PreviewRow] = SharedWork()
        self._slots = FairSemaphore[UserID](
            permits=CONCURRENT,
            permits_per_key=CONCURRENT_PER_USER,
            max_waiting=MAX_WAITING,
            max_waiting_per_key=MAX_WAITING_PER_USER,
            refusal=lambda _user_id: LimitExceeded(
                "The server is making too many previews now", retry_after_ms=5000
            ),
        )

    async def get(self, url: str, user_id: UserID) -> msgspec.Raw:
        """Return the preview of a page as JSON. Users take turns when many previews are made.
        Raises InvalidParam, Forbidden, OtherServerFailed, LimitExceeded."""
        if self._sites is None:
            raise Forbidden("URL previews are disabled on this server")
        url = parse_url(url)
        self._rules.check(url)
        row = await self._store.get_preview(url, self._now_ms())
        if row is None:
            sites = self._sites
            row = await self._work.run(url, lambda: self._make(url, user_id, sites))
        if row.body is None:
            raise OtherServerFailed("The page could not be fetched")
        return msgspec.Raw(row.body.encode())

    async def _make(self, url: str, user_id: UserID, sites: PreviewFetcher) -> PreviewRow:
        async with self._slots.hold(user_id):
            try:
                row = await self._preview(url, user_id, sites)
            except OutboundError as error:
                self.log.info("no preview for {url}: {error}", url=url, error=str(error))
                row = PreviewRow(url, None, None, self._now_ms() + FAILED_MS)
        await self._store.put_preview(row)
        return row

    async def _preview(self, url: str, user_id: UserID, sites: PreviewFetcher) -> PreviewRow:
        properties: Properties = {}
        cache_ms = CACHE_MS
        image: tuple[str, MediaContent, tuple[int, int]] | None = None
        spool = self._contents.spool(SPOOL_BYTES)
        try:
            metadata = await self._ask_provider(url, sites)
            found = None if metadata is not None else await sites.fetch(url, spool)
            if found is not None and found.page is not None:
                metadata = await self._with_oembed(
                    await self._pages.parse(found.page, found.url, found.charset), sites
                )
            try:
                if metadata is not None:
                    properties.update(metadata.properties)
                    if metadata.image is not None:
                        image = await self._fetch_image(url, user_id, metadata.image, sites)
                elif found is not None and found.is_image:
                    image = await self._store_image(url, user_id, spool, found.type)
            except (StoreFull, StoreUnavailable) as error:  # logged where it was raised
                self.log.info(
                    "a preview for {url} without its image: {error}", url=url, error=error.text
                )
                cache_ms = FAILED_MS
        finally:
            spool.close()
        if metadata is None and found is not None:
            properties.update(_name_of(found))
        if image is not None:
            media_id, content, size = image
            properties["og:image"] = f"mxc://{self._server_name}/{media_id}"
            properties["og:image:type"] = content.type
            properties["og:image:width"], properties["og:image:height"] = size
            properties["matrix:image:size"] = content.size
        body = msgspec.json.encode(properties).decode()
        return PreviewRow(url, body, None if image is None else image[0], self._now_ms() + cache_ms)

    async def _ask_provider(self, url: str, sites: PreviewFetcher) -> PageMetadata | None:
        """Return the metadata of a page from its configured oEmbed provider. None if there is none
        or it cannot be reached: then the page itself is read."""
        address = self._providers.find(url)
        if address is None:
            return None
        try:
            document = await sites.fetch_document(address)
        except OutboundError as error:
            self.log.info("no oEmbed document for {url}: {error}", url=url, error=str(error))
            return None
        metadata = await self._pages.parse_oembed(document, address)
        return metadata if metadata.properties or metadata.image is not None else None

    async def _with_oembed(self, metadata: PageMetadata, sites: PreviewFetcher) -> PageMetadata:
        """Complete the metadata of a page from its oEmbed document if it lacks something."""
        is_complete = metadata.image is not None and {"og:title", "og:site_name"} <= set(
            metadata.properties
        )
        if metadata.oembed is None or is_complete:
            return metadata
        try:
            document = await sites.fetch_document(metadata.oembed)
        except OutboundError:
            return metadata
        more = await self._pages.parse_oembed(document, metadata.oembed)
        return PageMetadata(
            {**more.properties, **metadata.properties}, metadata.image or more.image
        )

    async def _fetch_image(
        self, url: str, user_id: UserID, address: str, sites: PreviewFetcher
    ) -> tuple[str, MediaContent, tuple[int, int]] | None:
        spool = self._contents.spool(SPOOL_BYTES)
        try:
            found = await sites.fetch(address, spool)
            return (
                await self._store_image(url, user_id, spool, found.type) if found.is_image else None
            )
        except OutboundError as error:
            self.log.info("no image for the preview of {url}: {error}", url=url, error=str(error))
            return None
        finally:
            spool.close()

    async def _store_image(
        self, url: str, user_id: UserID, spool: Spool, type: str
    ) -> tuple[str, MediaContent, tuple[int, int]] | None:
        """Store an image as media. Return its media ID, its content and its size in pixels. The
        scan and the measurement count as work of the user, since some images take long. Return None
        if it is not a valid image, is quarantined, or the scanners do not pass it in time. Raises
        StoreFull, StoreUnavailable."""
        spool.seek(0)
        new_id = self._texts.media_id()

        def write(txn: WriteTransaction, digest: bytes, size: int) -> tuple[str, MediaContent]:
            if self._quarantine.is_quarantined(txn, digest):
                raise _Quarantined
            content = MediaContent(digest, size, parse_type(type), None)
            media_id = self._store.add_picture(
                txn, url, new_id, content, self._now_ms(), authenticated=self._authenticated_only
            )
            self._gate.record_file(txn, "previews", digest, size)
            return media_id, content

        try:
            with convert_store_errors():
                media_id, content = await self._contents.add(spool, write)
        except _Quarantined:
            return None
        try:
            # scan it before anything decodes it
            await self._gate.check("previews", content, SCAN_MS, user_id)
            size = await self._thumbnails.measure(content, user_id)
        except MatrixError:
            await self._remove([(media_id, content.hash)])
            return None
        return media_id, content, size

    async def do_remove_old(self, limit: int) -> int:
        """Remove up to `limit` old previews, and images without a preview. Return the number of
        removed ones."""
        before = self._now_ms() - IMAGE_MS
        removed = await self._store.remove_old(before, limit)
        images = await self._store.get_old_pictures(before, limit)
        if images and not await self._remove(images):
            return removed
        return max(removed, len(images))

    async def _remove(self, images: Sequence[tuple[str, bytes]]) -> bool:
        def remove(txn: WriteTransaction) -> Set[bytes]:
            return self._store.remove_pictures(txn, images)

        return (
            await self._contents.remove_unused({hash for _media_id, hash in images}, remove)
            is not None
        )

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


class _Quarantined(Exception):
    """The image is quarantined and must not be stored."""


def _name_of(found: FetchedPage) -> Properties:
    """Return the preview of a file: its name as the title."""
    name = PurePosixPath(unquote(urlsplit(found.url).path)).name
    return {"og:title": "".join(each for each in name if each.isprintable())[:200]} if name else {}
