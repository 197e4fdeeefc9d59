"""Fetches the metadata of a SAML identity provider, when first needed and then at intervals.

Laws:
- The server's HTTP client fetches them over https only. Their signature is not checked, so only
  the host's TLS certificate proves that they come from the provider.
- The last good metadata are stored in the database. If a provider is down or returns unusable
  metadata, they stay in use, also after a restart, until their own expiry.
- Concurrent sign-ins share one fetch. If no usable metadata are left after a failure, there is a
  pause before the next fetch.

spec: saml-metadata-2.0-os
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.shared_work import SharedWork
from homeserver.services.login.passwords import Threads
from homeserver.services.upstream.identity import RefusalReason, SignInRefused
from homeserver.services.upstream.provider_http import ProviderHTTP, without_query
from storage.federation.signed_documents import SignedDocument, SignedDocumentStore

SAML_WORK: Final = "SAML"
"""The key of SAML work in the shared threads; other keys are client addresses."""
PAUSE_SECONDS: Final = 30.0
"""Pause after a failed fetch. Until it ends, sign-ins fail immediately."""


class SAMLMetadataLibrary(Protocol):
    """The metadata part of the SAML library. `use` is slow; call it in a thread."""

    @property
    def is_ready(self) -> bool:
        """Whether it has metadata of the provider."""
        ...

    def use(self, documents: Sequence[bytes]) -> None:
        """Replace the fetched metadata; those from files stay. Raises `ValueError` if they are
        unusable, and then changes nothing."""
        ...

    def clear(self) -> None:
        """Drop the provider's metadata."""
        ...


class SAMLMetadata:
    """Fetches and stores metadata. Does nothing without `urls`."""

    log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        threads: Threads,
        documents: ProviderHTTP,
        store: SignedDocumentStore,
        library: SAMLMetadataLibrary,
        urls: Sequence[str],
    ) -> None:
        self._clock = clock
        self._threads = threads
        self._documents = documents
        self._store = store
        self._library = library
        self._urls = tuple(urls)
        self._work = SharedWork[str, None]()
        self._paused_until = 0.0

    async def make_ready(self) -> None:
        """Load the metadata if necessary. Raises `SignInRefused`."""
        if self._library.is_ready:
            return
        if self._clock.seconds() < self._paused_until:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, "fetching the SAML metadata failed just now"
            )
        await self._work.run("make_ready", self._make_ready)

    async def _make_ready(self) -> None:
        stored = await self._get_stored()
        if len(stored) == len(self._urls) and await self._use(stored):
            return
        await self.do_refresh()

    async def do_refresh(self) -> None:
        """Fetch the metadata again. Raises `SignInRefused` if none are usable afterwards."""
        await self._work.run("refresh", self._refresh)

    async def _refresh(self) -> None:
        stored = await self._get_stored()
        fetched: dict[str, bytes] = {}
        for url in self._urls:
            try:
                fetched[url] = await self._documents.get_bytes(
                    url, [("Accept", "application/samlmetadata+xml")]
                )
            except SignInRefused as refused:
                self.log.warn("SAML metadata were not fetched: {why}", why=str(refused))
        now = int(self._clock.seconds() * 1000)
        if fetched and await self._use({**stored, **fetched}):
            for url, document in fetched.items():
                if stored.get(url) != document:
                    await self._store.set_document(_purpose(url), SignedDocument(document, now))
            return
        if not await self._use(stored):
            self._library.clear()
            self._paused_until = self._clock.seconds() + PAUSE_SECONDS
            raise SignInRefused(RefusalReason.PROVIDER_FAILED, "there are no usable SAML metadata")

    async def do_refresh_at_intervals(self, limit: int) -> int:
        """Refresh as a step of a job; return 0, no work is left."""
        try:
            await self.do_refresh()
        except SignInRefused as refused:
            self.log.error("sign-in with SAML is not available: {why}", why=str(refused))
        return 0

    async def _get_stored(self) -> dict[str, bytes]:
        found = {url: await self._store.get_document(_purpose(url)) for url in self._urls}
        return {url: row.document for url, row in found.items() if row is not None}

    async def _use(self, documents: Mapping[str, bytes]) -> bool:
        """Give documents to the library; return whether it accepts them."""
        if not documents:
            return False
        metadata = [documents[url] for url in self._urls if url in documents]
        try:
            await self._threads.run(lambda: self._library.use(metadata), SAML_WORK)
        except ValueError as error:
            urls = ", ".join(map(without_query, documents))
            self.log.error("SAML metadata of {urls} are unusable: {why}", urls=urls, why=str(error))
            return False
        return True


def _purpose(url: str) -> str:
    return f"saml:{url}"
