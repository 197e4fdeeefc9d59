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
        identity=identity,
        store=UserListStore(database),
        devices=accounts.stores.devices,
        accounts=people.accounts,
        registration=login.registration,
        profiles=profiles.profiles,
        threepids=people.threepids,
        links=upstream.links,
        approvals=login.approvals,
        deactivation=people.deactivation,
        last_seen=accounts.last_seen,
        consents=accounts.stores.policy_consents,
        unshown=room_reading.unshown,
    )


def administration_of_devices(
    database: Database, identity: ServerIdentity, accounts: AccountParts, people: PeopleParts
) -> DeviceAdministration:
    """Return the service that lists and changes the devices of accounts."""
    return DeviceAdministration(
        identity=identity,
        database=database,
        store=accounts.stores.devices,
        dehydrated=accounts.stores.dehydrated_devices,
        accounts=people.accounts,
        devices=people.devices,
        sessions=accounts.sessions,
        last_seen=accounts.last_seen,
    )
