"""Wires the push rules of users and their evaluation on new events."""

from collections.abc import Mapping

from homeserver.observe.caches import CountedCache, UnsizedCache
from homeserver.services.push.event_push_actions import PushActionClassifier
from homeserver.services.push.room_rules import RoomRuleClasses
from homeserver.services.push.rule_changes import RuleChanges
from homeserver.services.push.rule_sets import RuleCompiler
from homeserver.services.push.user_rules import UserRuleCache
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from storage.account_data.account_data import AccountDataStore
from storage.push.event_push_actions import EventPushActionStore
from storage.push.push_rule_history import PushRuleHistoryStore
from storage.rooms.thread_subscriptions import ThreadSubscriptionStore

USERS_CACHED = 20_000
ROOMS_CACHED = 20_000


class PushRuleParts:
    """Push rules, and their results for events."""

    def __init__(
        self,
        *,
        base: Foundation,
        rooms: RoomDataParts,
    ) -> None:
        clock, database, streams = base.clock, base.database, base.database.streams
        memberships = rooms.memberships
        history = PushRuleHistoryStore(database)
        compiler = RuleCompiler()
        self.outcome_store = EventPushActionStore(database)
        self.changes = RuleChanges(account_data=AccountDataStore(database), history=history)
        self.rules = UserRuleCache(
            clock=clock,
            history=history,
            compiler=compiler,
            streams=streams,
            capacity=USERS_CACHED,
        )
        room_rules = RoomRuleClasses(
            clock=clock,
            store=history,
            memberships=memberships,
            rules=self.rules,
            compiler=compiler,
            streams=streams,
            capacity=ROOMS_CACHED,
        )
        self.threads = ThreadSubscriptionStore(database)
        self.outcomes = PushActionClassifier(
            clock=clock,
            identity=base.identity,
            compiler=compiler,
            rules=self.rules,
            room_rules=room_rules,
            memberships=memberships,
            membership_store=rooms.membership_store,
            events=rooms.events,
            threads=self.threads,
        )

    @property
    def caches(self) -> Mapping[str, CountedCache]:
        """Return the caches that have metrics."""
        return {"push_rules": UnsizedCache(self.rules.cache)}
