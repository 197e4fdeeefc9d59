"""Wires the administration of accounts and devices."""

from federation.peers.identity import ServerIdentity
from homeserver.services.administration.devices import DeviceAdministration
from homeserver.services.administration.users import UserAdministration
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.login import LoginParts
from homeserver.wiring.profiles import ProfileParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.upstream import UpstreamParts
from homeserver.wiring.user_data import PeopleParts
from storage.accounts.user_lists import UserListStore
from storage.engine.database import Database


def administration_of_users(
    database: Database,
    identity: ServerIdentity,
    accounts: AccountParts,
    login: LoginParts,
    profiles: ProfileParts,
    room_reading: RoomReadingParts,
    people: PeopleParts,
    upstream: UpstreamParts,
) -> UserAdministration:
    """Return the service that lists, shows and changes accounts."""
    return UserAdministration(
        identity,
        UserListStore(database),
        accounts.stores.devices,
        people.accounts,
        login.registration,
        profiles.profiles,
        people.threepids,
        upstream.links,
        login.approvals,
        people.deactivation,
        accounts.last_seen,
        accounts.stores.policy_consents,
        room_reading.unshown,
    )


def administration_of_devices(
    database: Database, identity: ServerIdentity, accounts: AccountParts, people: PeopleParts
) -> DeviceAdministration:
    """Return the service that lists and changes the devices of accounts."""
    return DeviceAdministration(
        identity,
        database,
        accounts.stores.devices,
        accounts.stores.dehydrated_devices,
        people.accounts,
        people.devices,
        accounts.sessions,
        accounts.last_seen,
    )
