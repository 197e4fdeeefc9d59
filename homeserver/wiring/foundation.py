"""The objects that every part of a server needs: clock, configuration, database, metrics."""

from collections.abc import Callable

import msgspec
from prometheus_client import CollectorRegistry
from twisted.internet.interfaces import IReactorTime

from federation.peers.identity import ServerIdentity
from homeserver.config.configuration import Config
from homeserver.http.rate_limits import RateLimiter
from homeserver.wiring.cache_sizes import CacheSizes
from storage.engine.database import Database


class Foundation(msgspec.Struct, frozen=True):
    """The objects that belong to no topic."""

    config: Config
    clock: IReactorTime
    database: Database
    limiter: RateLimiter
    identity: ServerIdentity
    registry: CollectorRegistry
    """The metrics."""

    @property
    def now_ms(self) -> Callable[[], int]:
        """The time in milliseconds since 1970."""
        clock = self.clock
        return lambda: int(clock.seconds() * 1000)

    @property
    def sizes(self) -> CacheSizes:
        """The sizes of the caches."""
        return CacheSizes(self.config.memory)
