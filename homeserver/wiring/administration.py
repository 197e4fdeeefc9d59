"""Wires the administration of accounts and devices."""

from federation.peers.identity import ServerIdentity
from homeserver.services.administration.devices import DeviceAdministration
from homeserver.services.administration.users import UserAdministration
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.login import LoginParts
from homeserver.wiring.profiles import ProfileParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.upstream import UpstreamParts
from homeserver.wiring.user_data import UserDataParts
from storage.accounts.user_lists import UserListStore
from storage.engine.database import Database


def make_user_administration(
    database: Database,
    identity: ServerIdentity,
    accounts: AccountParts,
    login: LoginParts,
    profiles: ProfileParts,
    room_reading: RoomReadingParts,
    user_data: UserDataParts,
    upstream: UpstreamParts,
) -> UserAdministration:
    """Return the service that lists, shows and changes accounts."""
    return UserAdministration(
        identity=identity,
        store=UserListStore(database),
        devices=accounts.stores.devices,
        accounts=user_data.accounts,
        registration=login.registration,
        profiles=profiles.profiles,
        threepids=user_data.threepids,
        links=upstream.links,
        approvals=login.approvals,
        deactivation=user_data.deactivation,
        last_seen=accounts.last_seen,
        consents=accounts.stores.policy_consents,
        hidden_changes=room_reading.hidden_changes,
    )


def make_device_administration(
    database: Database, identity: ServerIdentity, accounts: AccountParts, user_data: UserDataParts
) -> DeviceAdministration:
    """Return the service that lists and changes the devices of accounts."""
    return DeviceAdministration(
        identity=identity,
        database=database,
        store=accounts.stores.devices,
        dehydrated=accounts.stores.dehydrated_devices,
        accounts=user_data.accounts,
        devices=user_data.devices,
        sessions=accounts.sessions,
        last_seen=accounts.last_seen,
    )
