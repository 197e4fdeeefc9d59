"""Wires the services that create, join, list and upgrade rooms, and send events to them."""

from collections.abc import Sequence

from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.room_replacement import RoomReplacement
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
from homeserver.wiring.push_rules import PushRuleParts
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
        *,
        base: Foundation,
        accounts: AccountParts,
        push: PushRuleParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        settings: UserSettingParts,
        room_reading: RoomReadingParts,
        federated_rooms: FederatedRoomParts,
        profiles: ProfileParts,
    ) -> None:
        database, limiter, identity = base.database, base.limiter, base.identity
        engine, reading, hidden_changes = (
            room_engine.engine,
            room_reading.reading,
            room_reading.hidden_changes,
        )
        config = base.config
        profile_on_invite = config.users.include_profile_data_on_invite
        personal_settings = PersonalSettingsCopier(
            database=database,
            account_data=AccountDataStore(database),
            rule_changes=push.changes,
            engine=engine,
        )
        relation_store = RelationStore(database)
        self.guests = GuestAccess(
            engine=engine, memberships=rooms.membership_store, clock=base.clock
        )
        self.memberships = RoomMemberships(
            engine=engine,
            memberships=rooms.memberships,
            membership_store=rooms.membership_store,
            rooms=rooms.store,
            hidden_changes=hidden_changes,
            profiles=profiles.profiles,
            limiter=limiter,
            identity=identity,
            guest_access=self.guests,
            restricted_joins=room_engine.restricted,
            personal_settings=personal_settings,
            invite_policy=settings.invite_policy,
            server_in_room=room_engine.server_in_room,
            remote_rooms=federated_rooms.remote_rooms,
            profile_on_invite=profile_on_invite,
        )
        self.creation = RoomCreation(
            engine=engine,
            hidden_changes=hidden_changes,
            profiles=profiles.profiles,
            memberships=self.memberships,
            planned_invites=federated_rooms.planned_invites,
            limiter=limiter,
            identity=identity,
            secret_text=accounts.secret_text,
            now_ms=base.now_ms,
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
            store=RelatedRedactionStore(database),
            relations=relation_store,
            accounts=accounts.stores.accounts,
            rooms=rooms.store,
            engine=engine,
            events=rooms.events,
            streams=database.streams,
            clock=base.clock,
        )
        self.sending = RoomSending(
            engine=engine,
            events=rooms.events,
            hidden_changes=hidden_changes,
            memberships=self.memberships,
            reading=reading,
            guest_access=self.guests,
            relations=relation_store,
            sent_transactions=SentTransactionStore(database),
            related_redactions=self.related_redactions,
            identity=identity,
        )
        self.directory = RoomDirectory(
            engine=engine,
            rooms=rooms.store,
            aliases=AliasStore(database),
            summaries=RoomSummaryStore(database),
            reading=reading,
            servers=rooms.servers,
            remote=federated_rooms.directory,
            hidden_changes=hidden_changes,
            identity=identity,
            now_ms=base.now_ms,
            readable_without_account=config.rooms.allow_public_rooms_without_auth,
            readable_by_servers=config.rooms.allow_public_rooms_over_federation,
            enabled=config.rooms.enable_room_list_search,
            only_members_add_aliases=config.rooms.require_membership_for_aliases,
            namespaces=accounts.application_services,
        )
        self.upgrades = RoomUpgrade(
            engine=engine,
            events=rooms.events,
            replacements=RoomReplacement(
                engine=engine, events=rooms.events, writer=rooms.writer, now_ms=base.now_ms
            ),
            rooms=rooms.store,
            membership_store=rooms.membership_store,
            hidden_changes=hidden_changes,
            spaces=SpaceStore(database),
            reading=reading,
            profiles=profiles.profiles,
            personal_settings=personal_settings,
            identity=identity,
            secret_text=accounts.secret_text,
        )
        self.auto_join_rooms = AutoJoinRooms(
            database=database,
            accounts=accounts.stores.accounts,
            memberships=self.memberships,
            rooms=config.registration.auto_join_rooms,
            clock=base.clock,
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("remove_guests", self.guests.do_remove_guests, 10.0),
            Job("join_auto_join_rooms", self.auto_join_rooms.do_resume, 60.0),
            Job("redact_related_events", self.related_redactions.do_resume, 60.0),
        )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.creation, self.directory, self.memberships, self.sending, self.upgrades)
