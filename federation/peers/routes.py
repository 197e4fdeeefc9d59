"""Resolves server names to routes, through well-known files and SRV records, with caches.

Laws:
- A well-known file is cached for the time that its HTTP headers state, between five minutes and 48
  hours. If all connections to a server fail, its cached file expires after a minute at the latest.
- A server without a valid file is asked again after a pause that doubles from a minute to an hour.
  If a server does not answer, or answers with 429 or a server error, its previous file stays valid
  for six hours after its expiry. Otherwise a short outage of a web server would make us connect to
  a wrong address.
- Concurrent callers share one lookup. The caches are bounded.

spec: server-server-api#resolving-server-names
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError
from federation.http_client.resolver import NameNotFound, NameResolver, SrvRecords
from federation.http_client.time_limit import within
from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.shared_work import SharedWork
from federation.protocol.discovery import (
    Route,
    read_well_known,
    route_by_host,
    route_by_name,
    route_by_services,
    service_names,
    well_known_seconds,
)
from federation.protocol.ids import ServerName, host_of
from storage.cache import LRU

WELL_KNOWN_BYTES = 50 << 10
WELL_KNOWN_SECONDS = 10.0
"""Time for the complete request, with redirects."""
MAX_REDIRECTS = 5
RETRIES = BackoffSchedule(60_000, 3_600_000)
"""Pauses between requests for the file of a server without a valid one."""
GRACE_SECONDS = 6 * 3600.0
"""Time after its expiry in which a file stays valid while its server is unavailable."""
SRV_SECONDS = 8.0
MIN_SRV_TTL, MAX_SRV_TTL = 60.0, 3600.0
MAX_CACHED = 10_000
"""Cached files, and cached SRV answers. The oldest are evicted."""


class WellKnownClient(Protocol):
    """The HTTP client that fetches well-known files: an `HttpClient`."""

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        *,
        seconds: float,
        max_bytes: int,
        redirects: int,
        only_https: bool,
    ) -> WebResponse:
        """Send a request. Raises OutboundError."""
        ...


class _File(msgspec.Struct, frozen=True):
    delegated: ServerName | None
    until: float
    """Time of the next request for the file."""
    pause: float = 0.0
    """Length of the last pause after a failure."""
    usable_until: float = 0.0


class Routes:
    """Finds routes to servers."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        web: WellKnownClient,
        names: NameResolver,
        draw: Callable[[], float],
    ) -> None:
        """`draw` returns random numbers in [0, 1)."""
        self._clock = clock
        self._web = web
        self._names = names
        self._draw = draw
        self._files: LRU[str, _File] = LRU(max_entries=MAX_CACHED)
        self._services: LRU[str, tuple[SrvRecords, float]] = LRU(max_entries=MAX_CACHED)
        self._fetches: SharedWork[str, ServerName | None] = SharedWork()
        self._lookups: SharedWork[str, SrvRecords] = SharedWork()

    async def find(self, name: ServerName) -> Route:
        """Return the route to a server. Never fails: the last resort is port 8448 of the name."""
        route = route_by_name(name)
        if route is not None:
            return route
        target = await self._get_delegated(name) or name
        route = route_by_name(target)
        if route is not None:
            return route
        host = host_of(target)
        for service in service_names(host):
            records = (await self._get_services(service)).records
            if records:
                return route_by_services(host, records, [self._draw() for _ in records])
        return route_by_host(host)

    def invalidate(self, name: ServerName) -> None:
        """Invalidate SRV answers of a server whose route failed, and let its file expire soon."""
        file = self._files.get(name)
        delegated = file.delegated if file is not None else None
        if file is not None and delegated is not None:
            soon = self._clock.seconds() + RETRIES.first_ms / 1000
            if soon < file.until:
                self._files.put(name, _File(delegated, soon, usable_until=file.usable_until))
        for service in service_names(host_of(delegated or name)):
            self._services.pop(service)

    async def _get_delegated(self, host: str) -> ServerName | None:
        file = self._files.get(host)
        if file is not None and file.until > self._clock.seconds():
            return file.delegated
        return await self._fetches.run(host, lambda: self._fetch(host))

    async def _fetch(self, host: str) -> ServerName | None:
        before = self._files.pop(host)
        answered, delegated, seconds = False, None, 0.0
        try:
            answer = await self._web.request(
                "GET",
                f"https://{host}/.well-known/matrix/server",
                [("Accept", "application/json")],
                seconds=WELL_KNOWN_SECONDS,
                max_bytes=WELL_KNOWN_BYTES,
                redirects=MAX_REDIRECTS,
                only_https=True,
            )
        except OutboundError as error:
            self._log.debug("no well-known file of {host}: {error}", host=host, error=error)
        else:
            answered = answer.status < 500 and answer.status != 429
            if answer.status == 200:
                delegated = read_well_known(answer.body)
                seconds = well_known_seconds(answer.headers, self._clock.seconds())
        now = self._clock.seconds()
        if delegated is not None:
            file = _File(delegated, now + seconds, usable_until=now + seconds + GRACE_SECONDS)
        else:
            pause = RETRIES.after(0 if before is None else before.pause * 1000) / 1000
            if (
                not answered
                and before is not None
                and before.delegated is not None
                and before.usable_until > now
            ):
                file = _File(before.delegated, now + pause, pause, before.usable_until)
            else:
                file = _File(None, now + pause, pause)
        self._files.put(host, file)
        return file.delegated

    async def _get_services(self, name: str) -> SrvRecords:
        known = self._services.get(name)
        if known is not None and known[1] > self._clock.seconds():
            return known[0]
        return await self._lookups.run(name, lambda: self._look_up(name))

    async def _look_up(self, name: str) -> SrvRecords:
        self._services.pop(name)
        try:
            services = await within(self._clock, SRV_SECONDS, self._names.lookup_services(name))
        except (NameNotFound, OutboundError) as error:
            self._log.debug("no SRV records of {name}: {error}", name=name, error=error)
            services = SrvRecords((), MIN_SRV_TTL)
        seconds = min(max(services.seconds, MIN_SRV_TTL), MAX_SRV_TTL)
        self._services.put(name, (services, self._clock.seconds() + seconds))
        return services
