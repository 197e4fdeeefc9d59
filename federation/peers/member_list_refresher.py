"""Refreshes the signed list of the federation's members from a URL or a file.

Laws:
- A list that cannot be read or verified changes nothing. The last valid list stays in force until
  it expires.
- A list with a lower serial number than the latest accepted one is refused, even if it is correctly
  signed, because it could readmit removed members.
- When the list has expired, all other servers are refused (`FederationPolicy` enforces that). So
  the log warns before the expiry and after it.
- The list is read again every `refresh_seconds`. If the list in force expires in less than that
  time, or if no list is in force, it is read again every minute.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import msgspec
from twisted.logger import Logger

from federation.http_client.errors import OutboundError
from federation.peers.federation_policy import FederationPolicy
from federation.peers.signed_list import (
    MemberListTrust,
    check_time,
    read_possibly_expired_list,
    read_signed_list,
)
from federation.protocol.member_list import BadMemberList, MemberList
from storage.federation.signed_documents import SignedDocument, SignedDocumentStore

PURPOSE: Final = "federation_member_list"

Fetch = Callable[[str], Awaitable[bytes]]
"""Fetches a URL. Raises OutboundError."""


class MemberListObserver(Protocol):
    """Counts the results of the refreshes."""

    def list_refreshed(self, expires: int | None, *, is_accepted: bool) -> None:
        """Record a refresh. `expires`: the expiry of the list in force in seconds, or None."""


class MemberListSource(msgspec.Struct, frozen=True):
    """The location of the list, one of `url` and `path`, and the keys that may sign it."""

    url: str | None
    path: Path | None
    trust: MemberListTrust
    refresh_seconds: float
    """Time between two refreshes."""


class MemberListRefresher:
    """Refreshes the list. Use this class only on the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        *,
        source: MemberListSource | None,
        store: SignedDocumentStore,
        policy: FederationPolicy,
        fetch: Fetch,
        observer: MemberListObserver,
        now: Callable[[], float],
    ) -> None:
        """`source`: None if the federation has no list. `now`: a clock in seconds."""
        self._source = source
        self._store = store
        self._policy = policy
        self._fetch = fetch
        self._observer = observer
        self._now = now
        self._latest: MemberList | None = None
        self._document = b""
        self._refreshed = now()
        self._warned: str | None = None
        """The last warning about the expiry of the list."""

    async def start(self) -> None:
        """Use the stored list, and look for a newer one."""
        if self._source is None:
            return
        stored = await self._store.get_document(PURPOSE)
        if stored is not None:
            self._take(self._source, stored.document)
        await self.refresh()

    async def change(self, source: MemberListSource | None) -> None:
        """Use another source, or none. The list in force must be valid for the new trust too."""
        self._source = source
        document, self._latest, self._document = self._document, None, b""
        if source is None:
            self._policy.use_list(None)
            return
        if not (document and self._take(source, document)):
            self._policy.use_list(None)
        await self.refresh()

    async def do_refresh(self, _limit: int) -> int:
        """Refresh the list if it is due, and warn of its expiry. Runs as a job each minute."""
        source = self._source
        if source is None:
            return 0
        if (
            self._seconds_left() <= source.refresh_seconds
            or self._now() >= self._refreshed + source.refresh_seconds
        ):
            await self.refresh()
        self._warn_of_end(source)
        return 0

    async def refresh(self) -> bool:
        """Look for a newer list. Return whether the list found is accepted."""
        source = self._source
        if source is None:
            return True
        self._refreshed = self._now()
        try:
            document = await self._read(source)
            if document != self._document:
                self._check_serial(read_signed_list(document, source.trust, self._now()))
            else:
                self._check_time()
        except (BadMemberList, OutboundError, OSError) as error:
            self._log.error(
                "the list of the federation's members at {location} was refused: {error}",
                location=source.url or source.path,
                error=error,
            )
            self._notify_observer(is_accepted=False)
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
        self._notify_observer(is_accepted=True)
        return True

    async def _read(self, source: MemberListSource) -> bytes:
        if source.url is not None:
            return await self._fetch(source.url)
        assert source.path is not None  # the configuration was checked
        return source.path.read_bytes()

    def _take(self, source: MemberListSource, document: bytes) -> bool:
        """Put a list in force until it expires. Return False if it is refused.

        An expired list still counts as the latest, so that no older one replaces it.
        """
        try:
            members = read_possibly_expired_list(document, source.trust, self._now())
        except BadMemberList as error:
            self._log.warn(
                "the stored list of the federation's members is not used: {error}",
                error=error,
            )
            return False
        self._latest, self._document = members, document
        self._policy.use_list(members)
        return True

    def _seconds_left(self) -> float:
        """Return the time until the latest list expires, or 0 if there is none."""
        return 0.0 if self._latest is None else self._latest.expires - self._now()

    def _warn_of_end(self, source: MemberListSource) -> None:
        """Warn once near the expiry, and once after it."""
        members, left = self._latest, self._seconds_left()
        if members is None or left > source.refresh_seconds:
            self._warned = None
            return
        warning = "has expired: all federation is refused" if left <= 0 else "expires soon"
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

    def _notify_observer(self, *, is_accepted: bool) -> None:
        members = self._policy.members
        self._observer.list_refreshed(
            None if members is None else members.expires, is_accepted=is_accepted
        )
