"""Wires the profiles of users."""

from collections.abc import Sequence

from homeserver.cluster.jobs import Job
from homeserver.config.accounts import DisplayNamesOptions
from homeserver.config.configuration import Config
from homeserver.services.profiles.access import ProfileAccess
from homeserver.services.profiles.profiles import NameRules, Profiles, RemoteProfiles
from homeserver.services.rooms.profile_propagation import ProfilePropagation
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts


class ProfileParts:
    """Profiles, who may read them, and how a change gets into rooms."""

    def __init__(
        self,
        *,
        base: Foundation,
        accounts: AccountParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        remote: RemoteProfiles,
    ) -> None:
        users = base.config.users
        self.propagation = ProfilePropagation(
            database=base.database,
            profiles=accounts.stores.profiles,
            rooms=rooms.store,
            engine=room_engine.engine,
            memberships=rooms.memberships,
        )
        self.access = ProfileAccess(
            memberships=rooms.membership_store,
            account_needed=users.require_auth_for_profile_requests,
            room_needed=users.limit_profile_requests_to_users_who_share_rooms,
        )
        self.profiles = Profiles(
            database=base.database,
            accounts=accounts.stores.accounts,
            profiles=accounts.stores.profiles,
            propagation=self.propagation,
            remote=remote,
            server_name=base.identity.server_name,
            fixed_fields=fixed_profile_fields(base.config),
            name_rules=read_display_name_rules(base.config.registration.display_names),
        )

    def start(self) -> None:
        """Continue to send changed profiles to rooms."""
        self.propagation.wake()

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (Job("propagate_profiles", self.propagation.do_resume, 60.0),)

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.access, self.profiles)


def read_display_name_rules(display_names: DisplayNamesOptions) -> NameRules:
    """Return the rules for display names."""
    return NameRules(
        max_length=display_names.maximum_length,
        pattern=display_names.pattern,
        forbidden=display_names.forbidden,
    )


def fixed_profile_fields(config: Config) -> frozenset[str]:
    """Return the profile fields that users cannot change."""
    registration = config.registration
    fixed = {
        "displayname": not registration.enable_set_displayname,
        "avatar_url": not registration.enable_set_avatar_url,
    }
    return frozenset(field for field, is_fixed in fixed.items() if is_fixed)
