"""Keeps the list of the federation's members fresh: from an address or a file, checked, the last
good one kept.

Laws:
- A list that cannot be had, or is wrong, changes nothing: the last good one counts until it
  expires.
- A list with a lower serial than the one in force is refused, whoever signed it: it would bring
  back who was put out.
- Nobody is talked with on the strength of a list that has expired (`Policy` sees to that). So its
  end is announced in the log, and towards it, and without a list in force, a newer one is looked
  for at every step of the job, not now and then.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import msgspec
from twisted.logger import Logger

from federation.http_client.errors import OutboundError
from federation.peers.policy import Policy
from federation.peers.signed_list import (
    ListTrust,
    check_time,
    read_list_of_any_time,
    read_signed_list,
)
from federation.protocol.member_list import BadMemberList, MemberList
from storage.federation.signed_documents import SignedDocument, SignedDocumentStore

PURPOSE: Final = "federation_member_list"

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets what is at an address. Raises OutboundError."""


class ListObserver(Protocol):
    """Who counts what comes of refreshing."""

    def list_refreshed(self, expires: int | None, *, is_good: bool) -> None:
        """It was looked for a new list; when the one in force expires, in seconds (None: there is
        none)."""


class ListSource(msgspec.Struct, frozen=True):
    """Where the list is, and whom to believe about it: one of `url` and `path`."""

    url: str | None
    path: Path | None
    trust: ListTrust
    refresh_seconds: float
    """After how long it is looked for a newer one."""


class MemberLists:
    """Keeps the list fresh. For the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        source: ListSource | None,
        store: SignedDocumentStore,
        policy: Policy,
        fetch: Fetch,
        observer: ListObserver,
        now: Callable[[], float],
    ) -> None:
        """`source`: None where the federation has no list; `now` in seconds."""
        self._source = source
        self._store = store
        self._policy = policy
        self._fetch = fetch
        self._observer = observer
        self._now = now
        self._latest: MemberList | None = None
        self._document = b""
        self._looked = now()
        self._warned: str | None = None
        """What was said last of the end of a list that is near it."""

    async def start(self) -> None:
        """Use the list that was kept, and look for a newer one."""
        if self._source is None:
            return
        kept = await self._store.get_document(PURPOSE)
        if kept is not None:
            self._take(self._source, kept.document)
        await self.refresh()

    async def change(self, source: ListSource | None) -> None:
        """Another source, or none, from now on; what is in force has to be good by its trust
        too."""
        self._source = source
        document, self._latest, self._document = self._document, None, b""
        if source is None:
            self._policy.use_list(None)
            return
        if not (document and self._take(source, document)):
            self._policy.use_list(None)
        await self.refresh()

    async def do_refresh(self, _limit: int) -> int:
        """A step of a job, each minute: look for a newer list if it is time to, and warn of the end
        of that in force."""
        source = self._source
        if source is None:
            return 0
        if (
            self._seconds_left() <= source.refresh_seconds
            or self._now() >= self._looked + source.refresh_seconds
        ):
            await self.refresh()
        self._warn_of_end(source)
        return 0

    async def refresh(self) -> bool:
        """Look for a newer list; whether what was found is good."""
        source = self._source
        if source is None:
            return True
        self._looked = self._now()
        try:
            document = await self._read(source)
            if document != self._document:
                self._check_serial(read_signed_list(document, source.trust, self._now()))
            else:
                self._check_time()
        except (BadMemberList, OutboundError, OSError) as error:
            self._log.error(
                "the list of the federation's members at {where} was not taken: {error}",
                where=source.url or source.path,
                error=error,
            )
            self._tell(is_good=False)
            return False
        if document != self._document and self._take(source, document):
            await self._store.set_document(
                PURPOSE, SignedDocument(document, int(self._now() * 1000))
            )
            assert self._latest is not None
            self._log.info(
                "the federation's list {name} with serial {serial} is in force: {members} members",
                name=self._latest.name,
                serial=self._latest.serial,
                members=len(self._latest.members),
            )
        self._tell(is_good=True)
        return True

    async def _read(self, source: ListSource) -> bytes:
        if source.url is not None:
            return await self._fetch(source.url)
        assert source.path is not None  # the configuration was checked
        return source.path.read_bytes()

    def _take(self, source: ListSource, document: bytes) -> bool:
        """Put a list in force until it expires; False where it is not good. One that has expired is
        still the latest, so that no older one takes its place."""
        try:
            members = read_list_of_any_time(document, source.trust, self._now())
        except BadMemberList as error:
            self._log.warn(
                "the list that was kept of the federation's members is not used: {error}",
                error=error,
            )
            return False
        self._latest, self._document = members, document
        self._policy.use_list(members)
        return True

    def _seconds_left(self) -> float:
        """Until the latest list expires; none is as one that has expired."""
        return 0.0 if self._latest is None else self._latest.expires - self._now()

    def _warn_of_end(self, source: ListSource) -> None:
        """Once when the end is near, and once when it has come."""
        members, left = self._latest, self._seconds_left()
        if members is None or left > source.refresh_seconds:
            self._warned = None
            return
        warning = "has expired: no other server is talked with" if left <= 0 else "expires soon"
        if warning == self._warned:
            return
        self._warned = warning
        self._log.warn(
            "the federation's list {name} with serial {serial} {warning} (end: {end})",
            name=members.name,
            serial=members.serial,
            warning=warning,
            end=datetime.fromtimestamp(members.expires, UTC).isoformat(),
        )

    def _check_time(self) -> None:
        if self._latest is not None:
            check_time(self._latest, self._now())

    def _check_serial(self, members: MemberList) -> None:
        if self._latest is not None and members.serial < self._latest.serial:
            raise BadMemberList(
                f"its serial is {members.serial}, and {self._latest.serial} was in force already"
            )

    def _tell(self, *, is_good: bool) -> None:
        members = self._policy.members
        self._observer.list_refreshed(None if members is None else members.expires, is_good=is_good)
