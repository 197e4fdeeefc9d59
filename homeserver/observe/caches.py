"""Metrics of caches: hits, misses and sizes."""

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Counted(Protocol):
    """A cache that counts."""

    @property
    def hits(self) -> int:
        """Entries that were in the cache."""
        ...

    @property
    def misses(self) -> int:
        """Entries that had to be read."""
        ...

    def __len__(self) -> int:
        """Entries in the cache now."""
        ...


@runtime_checkable
class Weighed(Protocol):
    """A cache that is bounded by the size of what it holds."""

    @property
    def weight(self) -> int:
        """About how many bytes that is."""
        ...


class Entries:
    """A cache without its weight: for one that has no weight, or weighs by another unit."""

    def __init__(self, cache: Counted) -> None:
        self._cache = cache

    @property
    def hits(self) -> int:
        """Entries that were in the cache."""
        return self._cache.hits

    @property
    def misses(self) -> int:
        """Entries that had to be read."""
        return self._cache.misses

    def __len__(self) -> int:
        return len(self._cache)


class CacheMetrics(Collector):
    """Exports the counters of caches."""

    def __init__(self, registry: CollectorRegistry, caches: Mapping[str, Counted]) -> None:
        self._caches = caches
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        lookups = CounterMetricFamily(
            "mahalla_cache_lookups",
            "Lookups in a cache, by result: hit or miss",
            labels=("cache", "outcome"),
        )
        entries = GaugeMetricFamily(
            "mahalla_cache_entries", "Entries of a cache", labels=("cache",)
        )
        weights = GaugeMetricFamily(
            "mahalla_cache_bytes",
            "Approximate memory of a cache that is bounded by memory",
            labels=("cache",),
        )
        for name, cache in self._caches.items():
            lookups.add_metric((name, "hit"), cache.hits)
            lookups.add_metric((name, "miss"), cache.misses)
            entries.add_metric((name,), len(cache))
            if isinstance(cache, Weighed):
                weights.add_metric((name,), cache.weight)
        yield lookups
        yield entries
        yield weights
