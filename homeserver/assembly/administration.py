"""Puts together what administrators do with accounts."""

from federation.identity import ServerIdentity
from homeserver.assembly.accounts import AccountParts
from homeserver.assembly.people import PeopleParts
from homeserver.assembly.rooms import RoomParts
from homeserver.assembly.upstream import UpstreamParts
from homeserver.services.device_administration import DeviceAdministration
from homeserver.services.user_administration import UserAdministration
from storage.database import Database
from storage.user_lists import UserListStore


def administration_of_users(
    database: Database,
    identity: ServerIdentity,
    accounts: AccountParts,
    rooms: RoomParts,
    people: PeopleParts,
    upstream: UpstreamParts,
) -> UserAdministration:
    """Lists, details and changes of accounts."""
    return UserAdministration(
        identity,
        UserListStore(database),
        accounts.device_store,
        people.accounts,
        accounts.registration,
        rooms.profiles,
        people.threepids,
        upstream.links,
        accounts.approvals,
        people.deactivation,
        accounts.last_seen,
        accounts.policy_consents,
        rooms.unshown,
    )


def administration_of_devices(
    database: Database, identity: ServerIdentity, accounts: AccountParts, people: PeopleParts
) -> DeviceAdministration:
    """Lists and changes of devices of accounts."""
    return DeviceAdministration(
        identity,
        database,
        accounts.device_store,
        accounts.dehydrated_store,
        people.accounts,
        people.devices,
        accounts.sessions,
        accounts.last_seen,
    )
