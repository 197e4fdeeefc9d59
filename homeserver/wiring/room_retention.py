"""Makes the service that knows the message lifetimes of rooms."""

from collections.abc import Callable

from federation.protocol.retention import RetentionRules
from federation.rooms.history.retention import Lifetimes
from homeserver.config.retention import Retention
from storage.engine.database import Database
from storage.retention.room_retention import RoomLifetimeStore


def lifetimes_of(
    retention: Retention, database: Database, now_ms: Callable[[], int]
) -> Lifetimes | None:
    """Return the lifetimes of messages; None if retention is disabled."""
    if not retention.enabled:
        return None
    rules = RetentionRules(
        retention.default_policy.max_lifetime,
        retention.allowed_lifetime_min,
        retention.allowed_lifetime_max,
    )
    return Lifetimes(RoomLifetimeStore(database), database.streams, rules, now_ms)
