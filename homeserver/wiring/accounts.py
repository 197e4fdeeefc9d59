"""Wires the account services that do not need rooms: sessions, access tokens, passwords, renewal
of expiring accounts, audit log. Also wires the connection to the other nodes, because a node may
trust its cache of access tokens only while it is connected."""

from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import ServerName
from homeserver.cluster.incoming_changes import IncomingChanges
from homeserver.cluster.node_messages import NodeMessages
from homeserver.cluster.outgoing_changes import OutgoingChanges
from homeserver.cluster.peer_nodes import PeerNodes
from homeserver.config.configuration import Config
from homeserver.config.registration_files import read_registration_files
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.accounts.renewal import Renewals
from homeserver.services.application_services.application_services import (
    ApplicationServices,
)
from homeserver.services.audit.audit import Audit, AuditedStore, AuditEvent
from homeserver.services.devices.devices import DeviceSettings
from homeserver.services.login.access_tokens import AccessTokens, PendingConsents
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.login.last_seen import LastSeen
from homeserver.services.login.passwords import PasswordPolicy, Passwords, Threads
from homeserver.services.login.sessions import DependentStores, Sessions, TokenLifetimes
from homeserver.services.plugins.hooks import Plugins, load_plugin
from homeserver.services.terms.policies import load_policies
from homeserver.services.tokens.secret_tokens import RandomBytes, SecretGenerator
from homeserver.wiring.email import EmailParts
from storage.account_data.account_data import AccountDataStore
from storage.accounts.accounts import AccountStore
from storage.accounts.audit import AuditStore
from storage.accounts.policy_consents import PolicyConsentStore
from storage.accounts.validity import AccountValidityStore
from storage.devices.devices import DeviceStore
from storage.encryption.dehydrated_devices import DehydratedDeviceStore
from storage.encryption.device_keys import DeviceKeyStore
from storage.encryption.to_device import ToDeviceStore
from storage.engine.database import Database
from storage.login.access_tokens import TokenStore
from storage.login.application_passwords import ApplicationPasswordStore
from storage.login.browser_sessions import BrowserSessionStore
from storage.login.login_tokens import LoginTokenStore
from storage.login.uia import ConfirmationStore, UIAStore
from storage.oauth.device_grants import DeviceGrantStore
from storage.oauth.oauth import CrossSigningResetStore, OAuthStore
from storage.profiles.profiles import ProfileStore
from storage.push.pushers import PusherStore
from storage.sync.sliding_connections import SlidingConnectionStore
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


class AccountParts:
    """The account services that do not need rooms. Public attributes are for the other parts and
    the router."""

    def __init__(
        self,
        *,
        config: Config,
        clock: IReactorTime,
        database: Database,
        limiter: RateLimiter,
        threads: Threads,
        random: RandomBytes,
        email: EmailParts,
        monotonic: Callable[[], float],
        consents: PendingConsents | None,
    ) -> None:
        """`monotonic` is a clock in seconds that is never set. `consents`: the source of missing
        consents; None if requests do not depend on them."""
        self.stores = stores = AccountStores(database)
        server_name = ServerName(config.server_name)
        self.secret_text = SecretGenerator(random)
        self.policies = load_policies(config.pages.user_consent, config.name.public_baseurl or "")
        files = read_registration_files(config.integrations.app_service_config_files)
        self.application_services = ApplicationServices(files=files, server_name=server_name)
        self.plugins = Plugins(
            [load_plugin(plugin.module, plugin.config) for plugin in config.upstream.plugins]
        )
        program_store = ApplicationPasswordStore(database)
        uia_store = UIAStore(database)

        self.last_seen = LastSeen(
            clock=clock,
            devices=stores.devices,
            address_retention_ms=config.sessions.user_ips_max_age,
        )
        account_validity = config.sessions.account_validity
        self.validity = AccountValidity(clock=clock, enabled=account_validity.enabled)
        self.access_tokens = AccessTokens(
            clock=clock,
            database=database,
            tokens=stores.access_tokens,
            accounts=stores.accounts,
            streams=database.streams,
            last_seen=self.last_seen,
            validity=self.validity,
            monotonic=monotonic,
            consents=consents,
        )
        is_shared = config.storage.database.name == "psycopg2"  # SQLite supports one node only
        self.node_messages = NodeMessages(clock) if is_shared else None
        self.peer_nodes = None
        self.incoming_changes = None
        if self.node_messages is not None:
            OutgoingChanges(streams=database.streams, messages=self.node_messages)
            self.incoming_changes = IncomingChanges(
                streams=database.streams, clock=clock, messages=self.node_messages
            )
            self.peer_nodes = PeerNodes(
                clock=clock,
                database=database,
                cache=self.access_tokens,
                messages=self.node_messages,
                monotonic=monotonic,
            )
        self.passwords = _passwords(config, threads)
        self.sessions = Sessions(
            clock=clock,
            secret_text=self.secret_text,
            database=database,
            accounts=stores.accounts,
            devices=stores.devices,
            tokens=stores.access_tokens,
            limiter=limiter,
            lifetimes=_lifetimes(config),
            dependents=DependentStores(
                ends_with_sessions=[
                    stores.login_tokens,
                    stores.oauth,
                    stores.device_grants,
                    stores.cross_signing_resets,
                    uia_store,
                    stores.confirmations,
                ],
                recorded_with_sessions=[
                    AuditedStore(
                        clock=clock,
                        store=stores.browser_sessions,
                        what=AuditEvent.BROWSER_SIGNED_OUT,
                    )
                ],
                recorded_with_all_sessions=[
                    AuditedStore(
                        clock=clock, store=program_store, what=AuditEvent.APPLICATION_PASSWORD_ENDED
                    )
                ],
                deleted_with_device=[
                    stores.device_keys,
                    stores.to_device,
                    stores.dehydrated_devices,
                    SlidingConnectionStore(database),
                    DeviceSettings(AccountDataStore(database)),
                    stores.pushers,
                ],
                deleted_with_session=[
                    stores.oauth,
                    program_store,
                    stores.confirmations,
                    stores.upstream_sessions,
                ],
                set_by_tokens=[stores.pushers],
            ),
        )
        self.renewals = Renewals(
            clock=clock,
            database=database,
            store=stores.validity,
            threepids=email.threepids,
            secret_text=self.secret_text,
            validity=self.validity,
            languages=email.languages,
            outbox=email.outbox,
            period_ms=account_validity.period,
            renew_at_ms=account_validity.renew_at,
            subject=account_validity.renew_email_subject,
            base_url=config.name.public_baseurl or "",
        )
        application_passwords = config.sessions.application_passwords
        self.application_passwords = ApplicationPasswords(
            clock=clock,
            database=database,
            store=program_store,
            passwords=self.passwords,
            secret_text=self.secret_text,
            sessions=self.sessions,
            enabled=application_passwords.enabled,
            in_login_flows=application_passwords.in_login_flows,
            max_per_account=application_passwords.limit,
            max_lifetime_ms=application_passwords.max_lifetime,
        )
        self.audit = Audit(
            clock=clock,
            store=AuditStore(database),
            retention_ms=config.sessions.audit.retention_period,
        )

    def get_node(self) -> int:
        """Return the number of this node among the connected ones; 0 if it is disconnected or the
        only one."""
        return 0 if self.peer_nodes is None else self.peer_nodes.node

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.application_passwords, self.audit, self.renewals, self.sessions)


def _passwords(config: Config, threads: Threads) -> Passwords:
    policy = config.sessions.password_config.policy
    return Passwords(
        threads=threads,
        rounds=config.sessions.bcrypt_rounds,
        pepper=config.sessions.password_config.pepper or "",
        policy=PasswordPolicy(
            minimum_length=policy.minimum_length,
            require_digit=policy.require_digit,
            require_symbol=policy.require_symbol,
            require_lowercase=policy.require_lowercase,
            require_uppercase=policy.require_uppercase,
        )
        if policy.enabled
        else None,
    )


def _lifetimes(config: Config) -> TokenLifetimes:
    return TokenLifetimes(
        session=config.sessions.session_lifetime,
        refreshable_access_token=config.sessions.refreshable_access_token_lifetime,
        refresh_token=config.sessions.refresh_token_lifetime,
        nonrefreshable_access_token=config.sessions.nonrefreshable_access_token_lifetime,
    )
