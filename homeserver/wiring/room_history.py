"""Wires the visibility of past events: which events a user may see, and after what time messages
are hidden. `retention.py` wires the deletion of messages."""

from collections.abc import Callable

from federation.protocol.retention import RetentionRules
from federation.rooms.erased_senders import ErasedSenders
from federation.rooms.history.membership_periods import MembershipPeriods
from federation.rooms.history.retention import RoomRetentionCache
from federation.rooms.visibility import Visibility
from homeserver.config.retention import RetentionOptions
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from storage.accounts.erasures import ErasureStore
from storage.engine.database import Database
from storage.events.timelines import TimelineStore
from storage.retention.room_retention import RoomRetentionStore


class RoomHistoryParts:
    """Visibility and retention of events."""

    def __init__(self, *, base: Foundation, rooms: RoomDataParts) -> None:
        database = base.database
        self.retention = make_retention_cache(base.config.rooms.retention, database, base.now_ms)
        self.membership_periods = MembershipPeriods(
            timelines=rooms.timelines, events=rooms.events, store=TimelineStore(database)
        )
        self.erased = ErasedSenders(
            store=ErasureStore(database),
            streams=database.streams,
            states=rooms.current_states,
            events=rooms.events,
        )
        self.visibility = Visibility(
            trees=rooms.trees,
            events=rooms.events,
            membership_periods=self.membership_periods,
            retention=self.retention,
            erased=self.erased,
        )


def make_retention_cache(
    retention: RetentionOptions, database: Database, now_ms: Callable[[], int]
) -> RoomRetentionCache | None:
    """Return the cache of retention periods; None if retention is disabled."""
    if not retention.enabled:
        return None
    rules = RetentionRules(
        retention.default_policy.max_lifetime,
        retention.allowed_lifetime_min,
        retention.allowed_lifetime_max,
    )
    return RoomRetentionCache(
        store=RoomRetentionStore(database), streams=database.streams, rules=rules, now_ms=now_ms
    )
