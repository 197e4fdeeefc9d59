"""Wires the room services: the room engine, its caches, and the services that use them."""

from collections.abc import Mapping

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.devices.published_keys import KeysOfPeople
from federation.peers.identity import ServerIdentity
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.current_states import CurrentStates
from federation.rooms.engine import RoomEngine
from federation.rooms.erased_senders import ErasedSenders
from federation.rooms.events import RoomEvents
from federation.rooms.history.membership_periods import Stays
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.joins.out_of_room import OutsideMemberships
from federation.rooms.joins.restricted_joins import RestrictedJoins
from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms
from federation.rooms.replace import Replacements
from federation.rooms.room_servers import RoomServers
from federation.rooms.server_access import ServerAccess
from federation.rooms.server_in_room import Residence
from federation.rooms.sticky_checks import StickyChecks
from federation.rooms.sticky_events import StickyEvents
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import Visibility
from homeserver.cluster.notifier import Notifier
from homeserver.config.configuration import Config
from homeserver.http.rate_limits import RateLimiter
from homeserver.observe.caches import Counted, Entries
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.directory.remote_servers import Elsewhere
from homeserver.services.directory.room_directory import RoomDirectory
from homeserver.services.directory.shadow_ban import UnshownRooms
from homeserver.services.encryption.device_keys import DeviceKeys, show_keys
from homeserver.services.encryption.device_lists import DeviceLists
from homeserver.services.encryption.encrypted_rooms import EncryptedRooms
from homeserver.services.encryption.one_time_key_counts import KeyCountsInMemory
from homeserver.services.notifications.notifications import Notifications
from homeserver.services.profiles.access import ProfileAccess
from homeserver.services.profiles.profiles import Profiles
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.push.unread_counts import UnreadCounts
from homeserver.services.rooms.aggregations import Aggregations
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.rooms.creation import RoomCreation
from homeserver.services.rooms.guest_access import GuestAccess
from homeserver.services.rooms.history import RoomHistory
from homeserver.services.rooms.invite_policy import InvitePolicy
from homeserver.services.rooms.invited_rooms import InvitedRooms
from homeserver.services.rooms.membership import RoomMemberships
from homeserver.services.rooms.no_relations_cache import ChildlessEvents
from homeserver.services.rooms.profile_propagation import ProfilePropagation
from homeserver.services.rooms.reading import RoomReading
from homeserver.services.rooms.receipts import ReadMarkers
from homeserver.services.rooms.related_redactions import RelatedRedactions
from homeserver.services.rooms.relations import RoomRelations
from homeserver.services.rooms.remote_rooms import RoomsElsewhere
from homeserver.services.rooms.sending import RoomSending
from homeserver.services.rooms.state_responses import RoomAnswers
from homeserver.services.rooms.thread_subscriptions import ThreadSubscriptions
from homeserver.services.rooms.upgrade import RoomUpgrade
from homeserver.services.rooms.upgrade_settings import PersonalSettings
from homeserver.services.sliding_sync.sliding_sync import SlidingSync
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.sync.device_sections import DeviceSectionReader
from homeserver.services.sync.initial_sync import OldSync, OldSyncParts
from homeserver.services.sync.joined_rooms import JoinedRooms
from homeserver.services.sync.lazy_members import LazyMembers
from homeserver.services.sync.plain_messages import PlainMessages
from homeserver.services.sync.presence import PresenceSection
from homeserver.services.sync.room_state import RoomStates
from homeserver.services.sync.room_summary import RoomSummaries
from homeserver.services.sync.sticky_events import StickyEventReader
from homeserver.services.sync.sync import Sync, SyncParts
from homeserver.services.sync.to_device_cache import ToDeviceCache
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.cache_sizes import CacheSizes
from homeserver.wiring.presence import WhoIsThere
from homeserver.wiring.profile_rules import fixed_profile_fields, name_rules_of
from homeserver.wiring.push_rules import PushParts
from homeserver.wiring.room_data import beside_rooms
from homeserver.wiring.room_retention import lifetimes_of
from homeserver.wiring.sliding_sync import sliding_parts, thread_updates
from storage.account_data.account_data import AccountDataStore
from storage.accounts.erasures import ErasureStore
from storage.directory.aliases import AliasStore
from storage.encryption.cross_signing import CrossSigningStore
from storage.encryption.published_keys import PublishedKeyStore
from storage.engine.database import Database
from storage.events.auth_chains import AuthChainStore
from storage.events.events import EventStore
from storage.events.relations import RelationStore
from storage.events.timelines import TimelineStore
from storage.moderation.shadow_ban import UnshownRoomStore
from storage.persist.room_writer import RoomWriter
from storage.push.old_push_actions import OldOutcomeStore
from storage.rooms.memberships import MembershipStore
from storage.rooms.out_of_room_memberships import OutsideMembershipStore
from storage.rooms.partial_rooms import PartialRoomStore
from storage.rooms.receipts import ReceiptStore
from storage.rooms.recency import RoomRecencyStore
from storage.rooms.related_redactions import RelatedRedactionStore
from storage.rooms.room_servers import RoomServerStore
from storage.rooms.rooms import RoomStore
from storage.rooms.sent_transactions import SentTransactionStore
from storage.rooms.spaces import SpaceStore
from storage.rooms.sticky_events import StickyEventStore
from storage.rooms.summaries import RoomSummaryStore
from storage.state.state_tree import StateTreeStore

ENCRYPTED_PRESETS = {
    "off": frozenset[str](),
    "invite": frozenset({"private_chat", "trusted_private_chat"}),
    "all": frozenset({"private_chat", "trusted_private_chat", "public_chat"}),
}


class RoomParts:
    """The services for rooms. Public attributes are for the other parts and the router.

    The order of construction is the order in which the parts receive stream changes: caches first,
    then the notifier, which wakes readers.
    """

    log = Logger()

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        database: Database,
        limiter: RateLimiter,
        identity: ServerIdentity,
        accounts: AccountParts,
    ) -> None:
        self.now_ms = now_ms = lambda: int(clock.seconds() * 1000)
        streams = database.streams
        sizes = CacheSizes(config.memory)
        self.store = room_store = RoomStore(database)
        self.membership_store = membership_store = MembershipStore(database)
        self.timeline_store = timeline_store = TimelineStore(database)
        alias_store = AliasStore(database)
        self.unshown_store = UnshownRoomStore(database)
        self.unshown = unshown = UnshownRooms(database, self.unshown_store, alias_store, room_store)
        self.receipt_store = receipt_store = ReceiptStore(database)
        self.summary_store = summary_store = RoomSummaryStore(database)
        account_data_store = AccountDataStore(database)
        beside = beside_rooms(receipt_store, account_data_store, streams, sizes)
        self.trees = trees = StateTreeStore(database, sizes.state_bytes, sizes.state_keys)
        self.events = RoomEvents(EventStore(database), room_store, streams, capacity=sizes.events)
        sticky_store = StickyEventStore(database)
        self.sticky_events = StickyEvents(sticky_store, streams, now_ms)
        self.memberships = Memberships(membership_store, streams, capacity=sizes.users)
        self.servers = RoomServers(
            RoomServerStore(database), self.memberships, streams, capacity=sizes.rooms
        )
        self.timelines = timelines = Timelines(timeline_store, streams, capacity=sizes.rooms)
        recent = RecentChanges(streams, accounts.others)
        past = PastMemberships(self.events)
        push = PushParts(
            clock,
            database,
            identity,
            account_data_store,
            self.memberships,
            membership_store,
            self.events,
        )
        self.rule_changes, self.user_rules = push.changes, push.rules
        self.unread = unread = UnreadCounts(
            push.outcome_store,
            receipt_store,
            room_store,
            past,
            push.rules,
            streams,
            capacity=sizes.unread_counts,
        )
        current_states = CurrentStates(timelines, self.events, trees)
        self.ignored = ignored = IgnoredUsers(account_data_store, streams, capacity=sizes.users)
        self.permissions = InvitePermissions(
            account_data_store, ignored, streams, capacity=sizes.users
        )
        self.notifier = Notifier(
            streams, self.memberships, clock, accounts.access_tokens.check_again, accounts.others
        )
        self.elsewhere = Elsewhere()
        self.outside = OutsideMemberships(OutsideMembershipStore(database), identity, now_ms)
        self.lifetimes = lifetimes_of(config.rooms.retention, database, now_ms)
        self.stays = stays = Stays(timelines, self.events, timeline_store)
        self.erased = ErasedSenders(ErasureStore(database), streams, current_states, self.events)
        self.visibility = visibility = Visibility(
            trees, self.events, stays, self.lifetimes, self.erased
        )
        self.chains = AuthChainStore(database)
        self.writer = RoomWriter(trees, self.chains)
        self.classify = push.outcomes.classify
        self.partial_store = PartialRoomStore(database)
        self.partial = PartialRooms(self.partial_store, streams, clock)
        self.engine = RoomEngine(
            database,
            room_store,
            self.events,
            self.servers,
            trees,
            self.writer,
            identity,
            now_ms,
            self.classify,
            self.partial,
            capacity=sizes.rooms,
        )
        self.sticky_checks = StickyChecks(
            sticky_store, room_store, self.engine, self.events, streams, now_ms
        )
        self.push_decisions = PushDecisions(
            self.engine,
            membership_store,
            past,
            push.rules,
            ignored,
            self.permissions,
            push.threads,
            self.lifetimes,
        )
        relation_store = RelationStore(database)
        sent_store = SentTransactionStore(database)
        childless = ChildlessEvents(streams, capacity=sizes.events)
        aggregations = Aggregations(
            relation_store, self.events, self.memberships, visibility, ignored, childless
        )
        self.aggregations = aggregations
        self.client_events = client_events = ClientEvents(
            self.events, sent_store, aggregations, self.sticky_events, now_ms
        )
        self.notifications = Notifications(
            push.outcome_store,
            OldOutcomeStore(database),
            RoomRecencyStore(database),
            room_store,
            self.memberships,
            past,
            self.events,
            self.outside,
            unread,
            push.rules,
            self.push_decisions,
            ignored,
            self.permissions,
            client_events,
            streams,
            self.lifetimes,
        )
        self.propagation = ProfilePropagation(
            database, accounts.profile_store, room_store, self.engine, self.memberships
        )
        self.profile_access = ProfileAccess(
            membership_store,
            account_needed=config.people.require_auth_for_profile_requests,
            room_needed=config.people.limit_profile_requests_to_users_who_share_rooms,
        )
        self.profiles = Profiles(
            database,
            accounts.store,
            accounts.profile_store,
            self.propagation,
            self.elsewhere,
            server_name=identity.server_name,
            fixed=fixed_profile_fields(config),
            name_rules=name_rules_of(config.registration.display_names),
        )
        personal_settings = PersonalSettings(
            database, account_data_store, push.changes, self.engine
        )
        self.guests = guests = GuestAccess(self.engine, membership_store, clock)
        self.access = ServerAccess(self.engine, self.store, self.memberships, self.servers)
        self.residence = Residence(self.engine, self.memberships, self.access)
        self.restricted = RestrictedJoins(self.memberships, room_store)
        admins = config.rooms.block_non_admin_invites
        self.invite_policy = InvitePolicy(
            accounts.store, self.permissions, limiter, accounts.validity, only_admins_invite=admins
        )
        self.room_memberships = RoomMemberships(
            self.engine,
            self.memberships,
            membership_store,
            room_store,
            unshown,
            self.profiles,
            limiter,
            identity,
            guests,
            self.restricted,
            personal_settings,
            self.invite_policy,
            self.residence,
            RoomsElsewhere(self.elsewhere, room_store, self.memberships, self.servers, limiter),
            profile_on_invite=config.people.include_profile_data_on_invite,
        )
        self.creation = RoomCreation(
            self.engine,
            unshown,
            self.profiles,
            self.room_memberships,
            self.elsewhere,
            limiter,
            identity,
            accounts.secret_text,
            now_ms,
            default_version=ROOM_VERSIONS[config.rooms.default_room_version],
            encrypted_presets=ENCRYPTED_PRESETS[
                config.rooms.encryption_enabled_by_default_for_room_type
            ],
            default_levels=config.rooms.default_power_level_content_override,
            profile_on_invite=config.people.include_profile_data_on_invite,
            federates_by_default=config.rooms.rooms_federate_by_default,
            namespaces=accounts.application_services,
        )
        self.related_redactions = RelatedRedactions(
            RelatedRedactionStore(database),
            relation_store,
            accounts.store,
            room_store,
            self.engine,
            self.events,
            streams,
            clock,
        )
        self.history = RoomHistory()
        self.state_responses = RoomAnswers(streams, capacity=sizes.answer_bytes)
        self.reading = RoomReading(
            self.engine,
            self.events,
            self.memberships,
            membership_store,
            timeline_store,
            visibility,
            stays,
            client_events,
            ignored,
            aggregations,
            self.state_responses,
            self.history,
        )
        self.sending = RoomSending(
            self.engine,
            self.events,
            unshown,
            self.room_memberships,
            self.reading,
            guests,
            relation_store,
            sent_store,
            self.related_redactions,
            identity,
        )
        self.thread_subscription_store = push.threads
        self.thread_subscriptions = ThreadSubscriptions(
            self.thread_subscription_store, self.reading, streams
        )
        self.relations = RoomRelations(relation_store, self.reading, client_events, ignored)
        self.directory = RoomDirectory(
            self.engine,
            room_store,
            alias_store,
            summary_store,
            self.reading,
            self.servers,
            self.elsewhere,
            unshown,
            identity,
            now_ms,
            readable_without_account=config.rooms.allow_public_rooms_without_auth,
            readable_elsewhere=config.rooms.allow_public_rooms_over_federation,
            shown=config.rooms.enable_room_list_search,
            only_members_add_aliases=config.rooms.require_membership_for_aliases,
            namespaces=accounts.application_services,
        )
        self.upgrades = RoomUpgrade(
            self.engine,
            self.events,
            Replacements(self.engine, self.events, self.writer, now_ms),
            room_store,
            membership_store,
            unshown,
            SpaceStore(database),
            self.reading,
            self.profiles,
            personal_settings,
            identity,
            accounts.secret_text,
        )
        self.markers = ReadMarkers(database, account_data_store, self.events, self.reading, now_ms)
        there = WhoIsThere(
            config,
            clock,
            database,
            self.memberships,
            self.notifier,
            limiter,
            identity,
            accounts.node_notes,
        )
        self.typing, self.presence = there.typing, there.presence
        self.invited = history = InvitedRooms(self.engine, self.events, self.outside)
        self.cross_signing_store = CrossSigningStore(database)
        self.published_keys = KeysOfPeople(
            PublishedKeyStore(database), streams, show_keys, capacity=sizes.devices
        )
        self.key_counts = key_counts = KeyCountsInMemory(
            streams, accounts.device_key_store, capacity=sizes.users
        )
        self.device_keys = DeviceKeys(
            database, accounts.device_key_store, key_counts, limiter, now_ms
        )
        self.encrypted_rooms = EncryptedRooms(summary_store, streams, capacity=sizes.rooms)
        self.device_lists = DeviceLists(
            accounts.device_store,
            self.cross_signing_store,
            self.engine,
            room_store,
            self.memberships,
            membership_store,
            self.encrypted_rooms,
            current_states,
            past,
            recent,
            self.events,
            self.partial,
        )
        summaries = RoomSummaries(summary_store, self.partial, streams, capacity=sizes.listed_rooms)
        lazy_members = LazyMembers(capacity=sizes.lazy_members)
        plain_messages = PlainMessages(
            timelines=timelines,
            events=self.events,
            visibility=visibility,
            client_events=client_events,
            unread=unread,
            ignored=ignored,
        )
        joined = JoinedRooms(
            events=self.events,
            timelines=timelines,
            current_states=current_states,
            visibility=visibility,
            states=RoomStates(trees, self.events),
            summaries=summaries,
            client_events=client_events,
            lazy_members=lazy_members,
            aggregations=aggregations,
            plain_messages=plain_messages,
            most_events=config.rooms.filter_timeline_limit,
        )
        parts = SyncParts(
            rooms=room_store,
            memberships=self.memberships,
            joined=joined,
            summaries=summaries,
            invited=history,
            unread=unread,
            receipts=receipt_store,
            account_data=account_data_store,
            beside=beside,
            typing=self.typing,
            recent=recent,
            past=past,
            states=current_states,
            ignored=ignored,
            permissions=self.permissions,
            devices=DeviceSectionReader(
                accounts.to_device_store,
                ToDeviceCache(database.streams),
                key_counts,
                self.device_lists,
                recent,
            ),
            presence=PresenceSection(
                self.presence,
                self.memberships,
                recent,
                clock,
                server_name=identity.server_name,
                tells_offline=config.people.presence.include_offline_users_on_sync,
            ),
            sticky=StickyEventReader(self.sticky_events, self.events, visibility, client_events),
            partial=self.partial,
            plain_messages=plain_messages,
        )
        self.sync = Sync(parts, streams, self.notifier, clock, database.catch_up)
        self.old_sync = OldSync(
            OldSyncParts(
                self.engine,
                self.events,
                self.reading,
                room_store,
                unshown,
                self.memberships,
                timeline_store,
                client_events,
                account_data_store,
                receipt_store,
                self.typing,
                recent,
                ignored,
                self.permissions,
                parts.presence,
                RoomRecencyStore(database),
                self.invited,
            ),
            streams,
            self.notifier,
            clock,
        )
        self.thread_updates = thread_updates(
            database, parts, self.events, visibility, client_events
        )
        self.sliding = sliding_parts(
            database,
            parts,
            self.engine,
            self.events,
            trees,
            timelines,
            visibility,
            client_events,
            self.thread_subscriptions,
            self.thread_updates,
            accounts.profile_store,
            sizes,
            now_ms,
        )
        self.sliding_sync = SlidingSync(
            self.sliding,
            streams,
            self.notifier,
            clock,
            database.catch_up,
            most_events=config.rooms.filter_timeline_limit,
        )

    @property
    def caches(self) -> Mapping[str, Counted]:
        """Return the caches that have metrics."""
        return {
            "events": self.events,
            "rooms": self.engine,
            "memberships": self.memberships,
            "timelines": self.timelines,
            "room_servers": Entries(self.servers.cache),
            "state_responses": self.state_responses.cache,
            "encrypted_rooms": Entries(self.encrypted_rooms.cache),
            "unread_counts": Entries(self.unread.cache),
            "push_rules": Entries(self.user_rules.cache),
            "ignored_users": self.ignored.cache,
            "published_keys": Entries(self.published_keys.cache),
            "key_counts": Entries(self.key_counts.cache),
            **self.sliding.caches,
        }

    def start(self) -> None:
        """Continue with work that was begun before a restart."""
        self.propagation.wake()
        Deferred.fromCoroutine(self.presence.start()).addErrback(
            lambda failure: self.log.failure(
                "cannot load the presence from before the start", failure
            )
        )
        Deferred.fromCoroutine(self.sticky_checks.start()).addErrback(
            lambda failure: self.log.failure(
                "cannot load the soft-failed sticky events to recheck", failure
            )
        )
