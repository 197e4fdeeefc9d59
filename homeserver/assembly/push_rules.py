"""Puts together what push rules are evaluated with."""

from twisted.internet.interfaces import IReactorTime

from federation.identity import ServerIdentity
from federation.rooms.memberships import Memberships
from federation.rooms.room_events import RoomEvents
from homeserver.services.push.outcomes import Outcomes
from homeserver.services.push.own_rules import OwnRules
from homeserver.services.push.room_rules import RoomRules
from homeserver.services.push.rule_changes import RuleChanges
from homeserver.services.push.rule_sets import RuleCompiler
from storage.account_data import AccountDataStore
from storage.database import Database
from storage.memberships import MembershipStore
from storage.push_attention import PushAttentionStore
from storage.push_outcomes import PushOutcomeStore
from storage.thread_subscriptions import ThreadSubscriptionStore

USERS_CACHED = 20_000
ROOMS_CACHED = 20_000


class PushParts:
    """Rules and what comes of them."""

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
        room_rules = RoomRules(clock, attention, memberships, self.rules, compiler, streams, capacity=ROOMS_CACHED)
        self.threads = ThreadSubscriptionStore(database)
        self.outcomes = Outcomes(
            clock, identity, compiler, self.rules, room_rules, memberships, membership_store, events, self.threads
        )
