"""Wires the evaluation of push rules."""

from twisted.internet.interfaces import IReactorTime

from federation.peers.identity import ServerIdentity
from federation.rooms.events import RoomEvents
from federation.rooms.memberships import Memberships
from homeserver.services.push.event_push_actions import Outcomes
from homeserver.services.push.room_rules import RoomRules
from homeserver.services.push.rule_changes import RuleChanges
from homeserver.services.push.rule_sets import RuleCompiler
from homeserver.services.push.user_rules import OwnRules
from storage.account_data.account_data import AccountDataStore
from storage.engine.database import Database
from storage.push.event_push_actions import PushOutcomeStore
from storage.push.push_rule_history import PushAttentionStore
from storage.rooms.memberships import MembershipStore
from storage.rooms.thread_subscriptions import ThreadSubscriptionStore

USERS_CACHED = 20_000
ROOMS_CACHED = 20_000


class PushParts:
    """Push rules, and their results for events."""

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        identity: ServerIdentity,
        account_data: AccountDataStore,
        memberships: Memberships,
        membership_store: MembershipStore,
        events: RoomEvents,
    ) -> None:
        streams = database.streams
        attention = PushAttentionStore(database)
        compiler = RuleCompiler()
        self.outcome_store = PushOutcomeStore(database)
        self.changes = RuleChanges(account_data, attention)
        self.rules = OwnRules(clock, attention, compiler, streams, capacity=USERS_CACHED)
        room_rules = RoomRules(
            clock, attention, memberships, self.rules, compiler, streams, capacity=ROOMS_CACHED
        )
        self.threads = ThreadSubscriptionStore(database)
        self.outcomes = Outcomes(
            clock,
            identity,
            compiler,
            self.rules,
            room_rules,
            memberships,
            membership_store,
            events,
            self.threads,
        )
