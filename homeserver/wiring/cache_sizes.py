"""Computes cache capacities from the option `caches.global_factor`.

The numbers in this module apply if the option has its default, 0.5. The event cache has an option
of its own: its capacity is `event_cache_size` times `caches.global_factor`."""

from homeserver.config.memory import MemoryOptions

BASE_FACTOR = 0.5


class CacheSizes:
    """The capacities of the caches. They are upper bounds; no memory is reserved."""

    def __init__(self, memory: MemoryOptions) -> None:
        factor = memory.caches.global_factor

        def scaled(size: int) -> int:
            return max(100, int(size * factor / BASE_FACTOR))

        self.events = max(100, int(memory.event_cache_size * factor))
        self.rooms = scaled(20_000)
        self.users = scaled(20_000)
        self.devices = scaled(10_000)
        """Devices whose keys are cached, about two kilobytes each: the stored and the served
        form."""
        self.unread_counts = scaled(200_000)
        self.receipts = scaled(50_000)
        self.account_data_bytes = scaled(16 << 20)
        self.response_bytes = scaled(16 << 20)
        self.sent_typing_bytes = scaled(32 << 20)
        """The typing notifications that were sent to sliding sync clients."""
        self.filter_bytes = scaled(16 << 20)
        self.lazy_members = scaled(500_000)
        self.state_bytes = scaled(64 << 20)
        self.state_keys = scaled(400_000)
        self.listed_rooms = scaled(200_000)
        """Rooms whose latest position and filter data are cached; entries are small."""
        self.ordered_rooms = scaled(1_000_000)
        self.connected_rooms = scaled(400_000)
