"""Wires the services that change rooms: create, join, send, list and upgrade them."""

from collections.abc import Sequence

from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.replace import RoomReplacement
from homeserver.cluster.jobs import Job
from homeserver.services.accounts.auto_join_rooms import AutoJoinRooms
from homeserver.services.directory.room_directory import RoomDirectory
from homeserver.services.rooms.creation import RoomCreation
from homeserver.services.rooms.guest_access import GuestAccess
from homeserver.services.rooms.membership import RoomMemberships
from homeserver.services.rooms.related_redactions import RelatedRedactions
from homeserver.services.rooms.sending import RoomSending
from homeserver.services.rooms.upgrade import RoomUpgrade
from homeserver.services.rooms.upgrade_settings import PersonalSettingsCopier
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.federated_rooms import FederatedRoomParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.profiles import ProfileParts
from homeserver.wiring.push_rules import PushParts
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.user_settings import UserSettingParts
from storage.account_data.account_data import AccountDataStore
from storage.directory.aliases import AliasStore
from storage.events.relations import RelationStore
from storage.rooms.related_redactions import RelatedRedactionStore
from storage.rooms.sent_transactions import SentTransactionStore
from storage.rooms.spaces import SpaceStore
from storage.rooms.summaries import RoomSummaryStore

ENCRYPTED_PRESETS = {
    "off": frozenset[str](),
    "invite": frozenset({"private_chat", "trusted_private_chat"}),
    "all": frozenset({"private_chat", "trusted_private_chat", "public_chat"}),
}


class RoomServiceParts:
    """The services that change rooms for users of this server."""

    def __init__(
        self,
        base: Foundation,
        accounts: AccountParts,
        push: PushParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        settings: UserSettingParts,
        room_reading: RoomReadingParts,
        federated_rooms: FederatedRoomParts,
        profiles: ProfileParts,
    ) -> None:
        database, limiter, identity = base.database, base.limiter, base.identity
        engine, reading, unshown = room_engine.engine, room_reading.reading, room_reading.unshown
        config = base.config
        profile_on_invite = config.people.include_profile_data_on_invite
        personal_settings = PersonalSettingsCopier(
            database, AccountDataStore(database), push.changes, engine
        )
        relation_store = RelationStore(database)
        self.guests = GuestAccess(engine, rooms.membership_store, base.clock)
        self.memberships = RoomMemberships(
            engine,
            rooms.memberships,
            rooms.membership_store,
            rooms.store,
            unshown,
            profiles.profiles,
            limiter,
            identity,
            self.guests,
            room_engine.restricted,
            personal_settings,
            settings.invite_policy,
            room_engine.residence,
            federated_rooms.remote_rooms,
            profile_on_invite=profile_on_invite,
        )
        self.creation = RoomCreation(
            engine,
            unshown,
            profiles.profiles,
            self.memberships,
            federated_rooms.planned_invites,
            limiter,
            identity,
            accounts.secret_text,
            base.now_ms,
            default_version=ROOM_VERSIONS[config.rooms.default_room_version],
            encrypted_presets=ENCRYPTED_PRESETS[
                config.rooms.encryption_enabled_by_default_for_room_type
            ],
            default_levels=config.rooms.default_power_level_content_override,
            profile_on_invite=profile_on_invite,
            federates_by_default=config.rooms.rooms_federate_by_default,
            namespaces=accounts.application_services,
        )
        self.related_redactions = RelatedRedactions(
            RelatedRedactionStore(database),
            relation_store,
            accounts.stores.accounts,
            rooms.store,
            engine,
            rooms.events,
            database.streams,
            base.clock,
        )
        self.sending = RoomSending(
            engine,
            rooms.events,
            unshown,
            self.memberships,
            reading,
            self.guests,
            relation_store,
            SentTransactionStore(database),
            self.related_redactions,
            identity,
        )
        self.directory = RoomDirectory(
            engine,
            rooms.store,
            AliasStore(database),
            RoomSummaryStore(database),
            reading,
            rooms.servers,
            federated_rooms.directory,
            unshown,
            identity,
            base.now_ms,
            readable_without_account=config.rooms.allow_public_rooms_without_auth,
            readable_by_servers=config.rooms.allow_public_rooms_over_federation,
            enabled=config.rooms.enable_room_list_search,
            only_members_add_aliases=config.rooms.require_membership_for_aliases,
            namespaces=accounts.application_services,
        )
        self.upgrades = RoomUpgrade(
            engine,
            rooms.events,
            RoomReplacement(engine, rooms.events, rooms.writer, base.now_ms),
            rooms.store,
            rooms.membership_store,
            unshown,
            SpaceStore(database),
            reading,
            profiles.profiles,
            personal_settings,
            identity,
            accounts.secret_text,
        )
        self.first_rooms = AutoJoinRooms(
            database,
            accounts.stores.accounts,
            self.memberships,
            config.registration.auto_join_rooms,
            base.clock,
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("remove_guests", self.guests.do_remove_guests, 10.0),
            Job("let_newcomers_in", self.first_rooms.do_resume, 60.0),
            Job("redact_what_relates", self.related_redactions.do_resume, 60.0),
        )
