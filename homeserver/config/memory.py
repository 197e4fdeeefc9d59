"""Options for the sizes of caches."""

from dataclasses import dataclass

from homeserver.config.option import Size, option, section


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """Caches of data from the database."""

    global_factor: float = option(
        0.5,
        "Scales all caches. Doubling it about doubles their memory.",
        minimum=0.01,
        maximum=100,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """Caches."""

    event_cache_size: Size = option(
        Size(100 << 10),
        "How many events are cached, before `caches.global_factor` is applied. An event takes "
        "about 2 KB. If events are large, fewer are cached, so that the total is at most 4 KB "
        "per event. The number can have the unit `K`.",
        minimum=100,
    )
    caches: CacheOptions = section(CacheOptions, "Caches of data from the database.")
