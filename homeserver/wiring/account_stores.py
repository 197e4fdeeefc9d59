"""Makes the stores of accounts, which many parts share."""

from storage.accounts.accounts import AccountStore
from storage.accounts.policy_consents import PolicyConsentStore
from storage.accounts.validity import AccountValidityStore
from storage.devices.devices import DeviceStore
from storage.encryption.dehydrated_devices import DehydratedDeviceStore
from storage.encryption.device_keys import DeviceKeyStore
from storage.encryption.to_device import ToDeviceStore
from storage.engine.database import Database
from storage.login.access_tokens import TokenStore
from storage.login.browser_sessions import BrowserSessionStore
from storage.login.login_tokens import LoginTokenStore
from storage.login.uia import ConfirmationStore
from storage.oauth.device_grants import DeviceGrantStore
from storage.oauth.oauth import CrossSigningResetStore, OAuthStore
from storage.profiles.profiles import ProfileStore
from storage.push.pushers import PusherStore
from storage.upstream.sessions import UpstreamSessionStore


class AccountStores:
    """The stores of accounts, devices and sessions."""

    def __init__(self, database: Database) -> None:
        self.accounts = AccountStore(database)
        self.devices = DeviceStore(database)
        self.profiles = ProfileStore(database)
        self.device_keys = DeviceKeyStore(database)
        self.to_device = ToDeviceStore(database=database)
        self.pushers = PusherStore(database)
        self.dehydrated_devices = DehydratedDeviceStore(database)
        self.access_tokens = TokenStore(database)
        self.login_tokens = LoginTokenStore(database)
        self.browser_sessions = BrowserSessionStore(database)
        self.oauth = OAuthStore(database)
        self.device_grants = DeviceGrantStore(database)
        self.cross_signing_resets = CrossSigningResetStore(database)
        self.confirmations = ConfirmationStore(database)
        self.upstream_sessions = UpstreamSessionStore(database)
        self.policy_consents = PolicyConsentStore(database)
        self.validity = AccountValidityStore(database=database, accounts=self.accounts)
