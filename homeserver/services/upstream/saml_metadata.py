"""What a SAML identity provider tells of itself, fetched from its address: at the first need, and
then at intervals.

Laws:
- It is fetched by the server's own client, over https alone: who holds the address's certificate
  says whom we believe.
- What was good last is kept in the database: a provider that is down, or that says something
  unusable, changes nothing, over a restart too. What says of itself that it is too old is used no
  more.
- However many want to sign in while the provider is not known, it is asked once, and after a
  failure not at once again.

spec: saml-metadata-2.0-os
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.shared_work import SharedWork
from homeserver.services.login.passwords import Threads
from homeserver.services.upstream.http_documents import Documents, place_of
from homeserver.services.upstream.identity import Reason, Refused
from storage.federation.signed_documents import SignedDocument, SignedDocumentStore

SAML_WORK: Final = "SAML"
"""For whom threads work on SAML messages: no address is called so."""
PAUSE_SECONDS: Final = 30.0
"""After which a provider is asked again that gave nothing of use; people are told at once
meanwhile."""


class TakesMetadata(Protocol):
    """The library, as far as metadata go. `use` takes long: it is for threads."""

    @property
    def is_ready(self) -> bool:
        """Whether it knows the provider."""
        ...

    def use(self, documents: Sequence[bytes]) -> None:
        """Go by these from now on, besides those of files. Raises `ValueError` for what cannot be
        used; then all stays."""
        ...

    def forget(self) -> None:
        """Know the provider no more."""
        ...


class SAMLMetadata:
    """Fetches and keeps them. Without `urls` there is nothing to do."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        threads: Threads,
        documents: Documents,
        store: SignedDocumentStore,
        library: TakesMetadata,
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
        """Return once the provider is known. Raises `Refused`."""
        if self._library.is_ready:
            return
        if self._clock.seconds() < self._paused_until:
            raise Refused(Reason.PROVIDER_FAILED, "there were no SAML metadata a moment ago")
        await self._work.run("make_ready", self._make_ready)

    async def _make_ready(self) -> None:
        kept = await self._get_kept()
        if len(kept) == len(self._urls) and await self._is_used(kept):
            return
        await self.do_refresh()

    async def do_refresh(self) -> None:
        """Fetch them anew. Raises `Refused` where the provider is not known afterwards."""
        await self._work.run("refresh", self._refresh)

    async def _refresh(self) -> None:
        kept = await self._get_kept()
        fetched: dict[str, bytes] = {}
        for url in self._urls:
            try:
                fetched[url] = await self._documents.get_bytes(
                    url, [("Accept", "application/samlmetadata+xml")]
                )
            except Refused as refused:
                self.log.warn("SAML metadata were not fetched: {why}", why=str(refused))
        now = int(self._clock.seconds() * 1000)
        if fetched and await self._is_used({**kept, **fetched}):
            for url, document in fetched.items():
                if kept.get(url) != document:
                    await self._store.set_document(_purpose(url), SignedDocument(document, now))
            return
        if not await self._is_used(kept):
            self._library.forget()
            self._paused_until = self._clock.seconds() + PAUSE_SECONDS
            raise Refused(Reason.PROVIDER_FAILED, "there are no SAML metadata that can be used")

    async def do_refresh_at_intervals(self, limit: int) -> int:
        """A step of a job: nothing is left to do after it."""
        try:
            await self.do_refresh()
        except Refused as refused:
            self.log.error("nobody can sign in by SAML: {why}", why=str(refused))
        return 0

    async def _get_kept(self) -> dict[str, bytes]:
        found = {url: await self._store.get_document(_purpose(url)) for url in self._urls}
        return {url: kept.document for url, kept in found.items() if kept is not None}

    async def _is_used(self, documents: Mapping[str, bytes]) -> bool:
        if not documents:
            return False
        given = [documents[url] for url in self._urls if url in documents]
        try:
            await self._threads.run(lambda: self._library.use(given), SAML_WORK)
        except ValueError as error:
            places = ", ".join(map(place_of, documents))
            self.log.error(
                "SAML metadata of {places} cannot be used: {why}", places=places, why=str(error)
            )
            return False
        return True


def _purpose(url: str) -> str:
    return f"saml:{url}"
