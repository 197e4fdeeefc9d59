"""Puts together what of accounts needs their rooms: the end of an account, and what people keep with the server."""

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from homeserver.assembly.accounts import AccountParts
from homeserver.assembly.rooms import RoomParts
from homeserver.services.account_data import AccountData
from homeserver.services.accounts import Accounts
from homeserver.services.deactivation import Deactivation
from homeserver.services.devices import Devices
from homeserver.services.filters import Filters
from homeserver.services.push_rules import PushRules
from storage.account_data import AccountDataStore
from storage.database import Database
from storage.delayed_events import DelayedEventStore
from storage.filters import FilterStore
from storage.openid_tokens import OpenIDTokenStore


class PeopleParts:
    """Accounts as people manage them. What is public is for the router."""

    log = Logger()

    def __init__(self, clock: IReactorTime, database: Database, accounts: AccountParts, rooms: RoomParts) -> None:
        store = AccountDataStore(database)
        self.deactivation = Deactivation(
            clock,
            database,
            accounts.store,
            store,
            accounts.profile_store,
            accounts.sessions,
            rooms.room_memberships,
            kept_by_user=[rooms.presence, DelayedEventStore(database), OpenIDTokenStore(database)],
        )
        self.accounts = Accounts(
            database,
            accounts.store,
            accounts.passwords,
            accounts.sessions,
            accounts.sign_in,
            accounts.uia,
            self.deactivation,
        )
        self.devices = Devices(database, accounts.device_store, accounts.sessions, self.accounts)
        self.account_data = AccountData(database, store)
        self.push_rules = PushRules(database, store)
        self.filters = Filters(database, FilterStore(database))

    def resume_departures(self) -> None:
        """Let accounts that were closed before a restart leave their rooms."""
        Deferred.fromCoroutine(self.deactivation.do_resume_departures()).addErrback(
            lambda failure: self.log.failure("closed accounts could not leave their rooms", failure)
        )
