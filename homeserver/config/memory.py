"""Options about how much is kept in memory."""

from dataclasses import dataclass

from homeserver.config.option import Size, option, section


@dataclass(frozen=True, slots=True, kw_only=True)
class Caches:
    """What was read from the database and is kept."""

    global_factor: float = option(
        0.5,
        "How much is kept of everything: twice the number, and about twice the memory of all caches.",
        minimum=0.01,
        maximum=100,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How much is kept in memory."""

    event_cache_size: Size = option(
        Size(100 << 10),
        "Events that are kept, before `caches.global_factor` is counted in; one takes about 2 KB, and "
        "of large ones fewer are kept, so that all take at most 4 KB on average. The number may have the unit `K`.",
        minimum=100,
    )
    caches: Caches = section(Caches, "What was read from the database and is kept.")
