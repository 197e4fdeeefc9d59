"""Metrics of caches: hits, misses, entries and sizes."""

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class CountedCache(Protocol):
    """A cache with hit and miss counts."""

    @property
    def hits(self) -> int:
        """Look-ups that found an entry."""
        ...

    @property
    def misses(self) -> int:
        """Look-ups that found none."""
        ...

    def __len__(self) -> int:
        """Return the number of entries."""
        ...


@runtime_checkable
class SizedCache(Protocol):
    """A cache that is bounded by the size of its entries."""

    @property
    def weight(self) -> int:
        """The approximate size in bytes."""
        ...


class UnsizedCache:
    """A cache whose size in bytes is not exported: it has none, or counts another unit."""

    def __init__(self, cache: CountedCache) -> None:
        self._cache = cache

    @property
    def hits(self) -> int:
        """Look-ups that found an entry."""
        return self._cache.hits

    @property
    def misses(self) -> int:
        """Look-ups that found none."""
        return self._cache.misses

    def __len__(self) -> int:
        return len(self._cache)


class CacheMetrics(Collector):
    """Metrics of caches."""

    def __init__(self, *, registry: CollectorRegistry, caches: Mapping[str, CountedCache]) -> None:
        self._caches = caches
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Return the metrics for Prometheus."""
        lookups = CounterMetricFamily(
            "mahalla_cache_lookups",
            "Lookups in a cache, by outcome: hit or miss",
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
            if isinstance(cache, SizedCache):
                weights.add_metric((name,), cache.weight)
        yield lookups
        yield entries
        yield weights
