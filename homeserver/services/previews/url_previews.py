"""Previews of linked pages: made when somebody asks for one first, kept for a while, given to all
who ask.

Where a provider of oEmbed documents is configured for a page, its document tells of it. Otherwise
what a page says of itself by Open Graph comes first, then what its oEmbed document says, then its
title and its first words. The picture becomes a file of this server, which is nobody's, and goes a
while after its preview.

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
from homeserver.api.storage_errors import telling_of_the_store
from homeserver.services.media.headers import parse_type
from homeserver.services.media.thumbnails import Thumbnails
from homeserver.services.previews.fetching import Found, SiteReader
from homeserver.services.previews.oembed import OEmbedProviders
from homeserver.services.previews.pages import PageReader, PageSays
from homeserver.services.previews.rules import PreviewRules, parse_url
from homeserver.services.scanning.gate import ScanGate
from homeserver.services.tokens.secret_tokens import SecretText
from storage.engine.transaction import WriteTransaction
from storage.media.contents import Contents
from storage.media.media import Content
from storage.media.quarantine import QuarantineStore
from storage.media.spool import Spool
from storage.media.url_previews import PreviewRow, URLPreviewStore

AT_ONCE: Final = 10
MOST_OF_ONE: Final = 5
"""Of these, for one user."""
MOST_WAITING: Final = 500
MOST_WAITING_OF_ONE: Final = 50
GOOD_MS: Final = 3600 * 1000
"""How long a preview is given out."""
FAILED_MS: Final = 5 * 60 * 1000
"""How long a page is not asked again that could not be had, or whose picture could not be kept."""
PICTURE_MS: Final = 2 * 24 * 3600 * 1000
"""How long a picture stays at least that no preview has any more: clients may show it still."""
SPOOL_BYTES: Final = 1 << 18
SCAN_MS: Final = 20_000
"""How long a preview waits for the scan of its picture."""

Properties = dict[str, str | int]


class URLPreviews:
    """Makes and finds them. Without `sites` there are none."""

    log = Logger()

    def __init__(
        self,
        server_name: str,
        clock: IReactorTime,
        store: URLPreviewStore,
        contents: Contents,
        thumbnails: Thumbnails,
        quarantine: QuarantineStore,
        gate: ScanGate,
        pages: PageReader,
        rules: PreviewRules,
        sites: SiteReader | None,
        texts: SecretText,
        providers: OEmbedProviders,
        *,
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
        self._turns = FairSemaphore[UserID](
            AT_ONCE,
            MOST_OF_ONE,
            max_waiting=MOST_WAITING,
            max_waiting_per_key=MOST_WAITING_OF_ONE,
            refusal=lambda _user_id: LimitExceeded(
                "Too many previews are being made at this moment", retry_after_ms=5000
            ),
        )

    async def get(self, url: str, user_id: UserID) -> msgspec.Raw:
        """The preview of a page, in JSON; made by turns among users. Raises InvalidParam,
        Forbidden, OtherServerFailed, LimitExceeded."""
        if self._sites is None:
            raise Forbidden("This server makes no previews of links")
        url = parse_url(url)
        self._rules.check(url)
        row = await self._store.get_preview(url, self._now_ms())
        if row is None:
            sites = self._sites
            row = await self._work.run(url, lambda: self._make(url, user_id, sites))
        if row.body is None:
            raise OtherServerFailed("The page could not be had")
        return msgspec.Raw(row.body.encode())

    async def _make(self, url: str, user_id: UserID, sites: SiteReader) -> PreviewRow:
        async with self._turns.hold(user_id):
            try:
                row = await self._preview(url, user_id, sites)
            except OutboundError as error:
                self.log.info("no preview of {url}: {error}", url=url, error=str(error))
                row = PreviewRow(url, None, None, self._now_ms() + FAILED_MS)
        await self._store.put_preview(row)
        return row

    async def _preview(self, url: str, user_id: UserID, sites: SiteReader) -> PreviewRow:
        properties: Properties = {}
        good_ms = GOOD_MS
        picture: tuple[str, Content, tuple[int, int]] | None = None
        spool = self._contents.spool(SPOOL_BYTES)
        try:
            said = await self._said_by_provider(url, sites)
            found = None if said is not None else await sites.read(url, spool)
            if found is not None and found.page is not None:
                said = await self._with_oembed(
                    await self._pages.read(found.page, found.url, found.charset), sites
                )
            try:
                if said is not None:
                    properties.update(said.properties)
                    if said.image is not None:
                        picture = await self._picture_of(url, user_id, said.image, sites)
                elif found is not None and found.is_picture:
                    picture = await self._keep_picture(url, user_id, spool, found.type)
            except (StoreFull, StoreUnavailable) as error:  # of which the log tells
                self.log.info(
                    "a preview of {url} without its picture: {error}", url=url, error=error.text
                )
                good_ms = FAILED_MS
        finally:
            spool.close()
        if said is None and found is not None:
            properties.update(_name_of(found))
        if picture is not None:
            media_id, content, size = picture
            properties["og:image"] = f"mxc://{self._server_name}/{media_id}"
            properties["og:image:type"] = content.type
            properties["og:image:width"], properties["og:image:height"] = size
            properties["matrix:image:size"] = content.size
        body = msgspec.json.encode(properties).decode()
        return PreviewRow(
            url, body, None if picture is None else picture[0], self._now_ms() + good_ms
        )

    async def _said_by_provider(self, url: str, sites: SiteReader) -> PageSays | None:
        """What the document says that a provider has of a page, if one is named for it and can be
        asked; otherwise the page is."""
        address = self._providers.find(url)
        if address is None:
            return None
        try:
            document = await sites.read_document(address)
        except OutboundError as error:
            self.log.info("no oEmbed document of {url}: {error}", url=url, error=str(error))
            return None
        said = await self._pages.read_oembed(document, address)
        return said if said.properties or said.image is not None else None

    async def _with_oembed(self, said: PageSays, sites: SiteReader) -> PageSays:
        """What a page says, and where that is not enough, what its oEmbed document says."""
        has_enough = said.image is not None and {"og:title", "og:site_name"} <= set(said.properties)
        if said.oembed is None or has_enough:
            return said
        try:
            document = await sites.read_document(said.oembed)
        except OutboundError:
            return said
        more = await self._pages.read_oembed(document, said.oembed)
        return PageSays({**more.properties, **said.properties}, said.image or more.image)

    async def _picture_of(
        self, url: str, user_id: UserID, address: str, sites: SiteReader
    ) -> tuple[str, Content, tuple[int, int]] | None:
        spool = self._contents.spool(SPOOL_BYTES)
        try:
            found = await sites.read(address, spool)
            return (
                await self._keep_picture(url, user_id, spool, found.type)
                if found.is_picture
                else None
            )
        except OutboundError as error:
            self.log.info("no picture for the preview of {url}: {error}", url=url, error=str(error))
            return None
        finally:
            spool.close()

    async def _keep_picture(
        self, url: str, user_id: UserID, spool: Spool, type: str
    ) -> tuple[str, Content, tuple[int, int]] | None:
        """Make a file of a picture; its id, what it is and its size in pixels. It is scanned and
        measured when it is the turn of who asks: a page may have pictures that take long. None
        where it is no picture after all, or none that the scanners let through in time, or held
        back. Raises StoreFull, StoreUnavailable."""
        spool.seek(0)
        new_id = self._texts.media_id()

        def write(txn: WriteTransaction, digest: bytes, size: int) -> tuple[str, Content]:
            if self._quarantine.is_held(txn, digest):
                raise _HeldBack
            content = Content(digest, size, parse_type(type), None)
            media_id = self._store.add_picture(
                txn, url, new_id, content, self._now_ms(), authenticated=self._authenticated_only
            )
            self._gate.note(txn, "previews", digest, size)
            return media_id, content

        try:
            with telling_of_the_store():
                media_id, content = await self._contents.add(spool, write)
        except _HeldBack:
            return None
        try:
            await self._gate.check(
                "previews", content, SCAN_MS, user_id
            )  # before anything decodes it
            size = await self._thumbnails.measure(content, user_id)
        except MatrixError:
            await self._remove([(media_id, content.hash)])
            return None
        return media_id, content, size

    async def do_remove_old(self, limit: int) -> int:
        """Forget previews that nobody has asked for, and pictures that no preview has, at most so
        many; a job does it."""
        before = self._now_ms() - PICTURE_MS
        removed = await self._store.remove_old(before, limit)
        pictures = await self._store.get_old_pictures(before, limit)
        if pictures and not await self._remove(pictures):
            return removed
        return max(removed, len(pictures))

    async def _remove(self, pictures: Sequence[tuple[str, bytes]]) -> bool:
        def forget(txn: WriteTransaction) -> Set[bytes]:
            return self._store.forget_pictures(txn, pictures)

        return (
            await self._contents.remove_unused({hash for _media_id, hash in pictures}, forget)
            is not None
        )

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


class _HeldBack(Exception):
    """Nobody gets such a picture: no file is made of it."""


def _name_of(found: Found) -> Properties:
    """What can be said of a file: its name."""
    name = PurePosixPath(unquote(urlsplit(found.url).path)).name
    return {"og:title": "".join(each for each in name if each.isprintable())[:200]} if name else {}
