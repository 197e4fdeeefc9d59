"""Makes what knows how long messages are kept."""

from collections.abc import Callable

from federation.protocol.retention import RetentionRules
from federation.rooms.lifetimes import Lifetimes
from federation.rooms.room_events import RoomEvents
from homeserver.config.retention import Retention
from storage.database import Database
from storage.room_lifetimes import RoomLifetimeStore
from storage.state_tree import StateTreeStore


def lifetimes_of(
    retention: Retention, database: Database, trees: StateTreeStore, events: RoomEvents, now_ms: Callable[[], int]
) -> Lifetimes | None:
    """None where messages are kept for ever."""
    if not retention.enabled:
        return None
    rules = RetentionRules(
        retention.default_policy.max_lifetime, retention.allowed_lifetime_min, retention.allowed_lifetime_max
    )
    return Lifetimes(RoomLifetimeStore(database), trees, events, database.streams, rules, now_ms)
