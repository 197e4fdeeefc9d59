"""A server with accounts and nothing else, and a client that uses its real HTTP resources."""

from collections.abc import Mapping
from random import Random
from typing import Any

from twisted.internet.task import Clock

from federation.peers.token_buckets import Rate
from federation.protocol.errors import NotFound
from federation.protocol.ids import ServerName, UserID
from federation.protocol.room_versions import DEFAULT_ROOM_VERSION
from homeserver.admin import register
from homeserver.api.limits import Limit
from homeserver.client import (
    account,
    account_data,
    capabilities,
    devices,
    filters,
    login,
    logout,
    profiles,
    registration,
    tags,
)
from homeserver.config.upstream import JWTOptions
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.account_data.account_data import AccountData
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.accounts.deactivation import Deactivation
from homeserver.services.accounts.registration import NoReservedNames, Registration, ReservedNames
from homeserver.services.accounts.registration_rules import RegistrationRules
from homeserver.services.accounts.shared_secret_registration import SharedSecretRegistration
from homeserver.services.application_services.application_services import (
    ApplicationServiceRequests,
    ApplicationServices,
)
from homeserver.services.devices.devices import Devices
from homeserver.services.discovery.capabilities import Capabilities
from homeserver.services.discovery.client import ClientDiscovery
from homeserver.services.filters.filters import Filters
from homeserver.services.login.access_tokens import AccessTokens
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.services.login.last_seen import LastSeen
from homeserver.services.login.login_tokens import LoginTokens
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.passwords import PasswordPolicy, Passwords
from homeserver.services.login.sessions import DependentStores, Sessions, TokenLifetimes
from homeserver.services.login.uia import UIA, Stage
from homeserver.services.login.uia_stages import DummyStage, PasswordStage, RegistrationTokenStage
from homeserver.services.profiles.access import ProfileAccess
from homeserver.services.profiles.profiles import Profiles
from homeserver.services.push.push_rules import push_rules_content
from homeserver.services.push.stored_rules import PUSH_RULES
from homeserver.services.tokens.secret_tokens import SecretGenerator
from homeserver.services.upstream.identity import OfferedProviders
from homeserver.services.upstream.jwt import JWTSignIn
from storage.account_data.account_data import AccountDataStore
from storage.accounts.accounts import AccountStore
from storage.accounts.registration_tokens import RegistrationTokenStore
from storage.devices.devices import DeviceStore
from storage.engine.database import Database
from storage.filters.filters import FilterStore
from storage.login.access_tokens import TokenStore
from storage.login.application_passwords import ApplicationPasswordStore
from storage.login.login_tokens import LoginTokenStore
from storage.login.uia import UIAStore
from storage.profiles.profiles import ProfileStore
from storage.rooms.memberships import MembershipStore
from storage.threepids.threepids import ThreepidStore
from storage.upstream.sessions import UpstreamSessionStore
from tests.helpers.executors import InlineThreads
from tests.helpers.http import Answer, Client, client_for

SERVER_NAME = ServerName("example.org")
START = 1_700_000_000.0
OPEN = RegistrationRules(enabled=True, without_verification=True, guests=True)
SHARED_SECRET = "example-shared-secret"


class NoProfiles:
    """Answers every remote profile request with `NotFound`."""

    async def get_profile(self, user_id: UserID, field: str | None) -> Mapping[str, object]:
        raise NotFound


class RecordingRooms:
    """Records the users who left all rooms. If `failure` is set, raises it instead."""

    def __init__(self) -> None:
        self.left: list[UserID] = []
        self.failure: Exception | None = None

    async def leave_all_rooms(self, user_id: UserID) -> bool:
        if self.failure is not None:
            raise self.failure
        self.left.append(user_id)
        return True


class RecordingPropagation:
    """Records the users for whom profile propagation was woken."""

    def __init__(self) -> None:
        self.woken: list[UserID] = []

    def wake(self, user_id: UserID) -> None:
        self.woken.append(user_id)


class AccountsServer:
    """The services for accounts, on one database."""

    def __init__(
        self,
        database: Database,
        *,
        rules: RegistrationRules = OPEN,
        lifetimes: TokenLifetimes | None = None,
        policy: PasswordPolicy | None = None,
        rates: Mapping[Limit, Rate] | None = None,
        reserved: ReservedNames | None = None,
        fixed_profile_fields: frozenset[str] = frozenset(),
        password_login: bool = True,
        login_tokens: bool = False,
        login_tokens_confirmed: bool = True,
        public_baseurl: str | None = None,
        shared_secret: str | None = SHARED_SECRET,
    ) -> None:
        self.clock = clock = Clock()
        clock.advance(START)
        self.database = database
        self.secret_text = SecretGenerator(Random(1).randbytes)
        self.threads = InlineThreads()
        self.rooms = RecordingRooms()
        self.propagation = RecordingPropagation()
        self.limiter = RateLimiter(clock=clock, rates=rates or {})

        self.account_store = AccountStore(database)
        self.device_store = DeviceStore(database)
        self.token_store = TokenStore(database)
        self.login_token_store = LoginTokenStore(database)
        self.registration_tokens = RegistrationTokenStore(database)
        self.profile_store = ProfileStore(database)
        self.account_data_store = AccountDataStore(database)
        self.uia_store = UIAStore(database)

        self.last_seen = LastSeen(
            clock=clock, devices=self.device_store, address_retention_ms=28 * 24 * 3600 * 1000
        )
        self.access_tokens = AccessTokens(
            clock=clock,
            database=database,
            tokens=self.token_store,
            accounts=self.account_store,
            streams=database.streams,
            last_seen=self.last_seen,
        )
        self.passwords = Passwords(threads=self.threads, rounds=4, pepper="pepper", policy=policy)
        self.sessions = Sessions(
            clock=clock,
            secret_text=self.secret_text,
            database=database,
            accounts=self.account_store,
            devices=self.device_store,
            tokens=self.token_store,
            limiter=self.limiter,
            lifetimes=lifetimes,
            dependents=DependentStores(ends_with_sessions=[self.login_token_store]),
        )
        self.threepids = ThreepidStore(database)
        self.application_passwords = application_passwords = ApplicationPasswords(
            clock=clock,
            database=database,
            store=ApplicationPasswordStore(database),
            passwords=self.passwords,
            secret_text=self.secret_text,
            sessions=self.sessions,
            enabled=False,
        )
        self.sign_in = SignIn(
            clock=clock,
            database=database,
            accounts=self.account_store,
            threepids=self.threepids,
            passwords=self.passwords,
            sessions=self.sessions,
            limiter=self.limiter,
            application_passwords=application_passwords,
            server_name=SERVER_NAME,
            password_login=password_login,
        )
        stages: list[Stage] = [
            DummyStage(),
            PasswordStage(self.sign_in),
            RegistrationTokenStage(clock=clock, tokens=self.registration_tokens),
        ]
        self.uia = UIA(
            clock=clock,
            secret_text=self.secret_text,
            database=database,
            store=self.uia_store,
            stages=stages,
        )
        self.registration = Registration(
            clock=clock,
            secret_text=self.secret_text,
            database=database,
            accounts=self.account_store,
            profiles=self.profile_store,
            tokens=self.registration_tokens,
            threepids=self.threepids,
            passwords=self.passwords,
            sessions=self.sessions,
            sign_in=self.sign_in,
            uia=self.uia,
            limiter=self.limiter,
            server_name=SERVER_NAME,
            rules=rules,
            reserved=reserved or NoReservedNames(),
        )
        self.deactivation = Deactivation(
            clock=clock,
            database=database,
            accounts=self.account_store,
            account_data=self.account_data_store,
            profiles=self.profile_store,
            sessions=self.sessions,
            threepids=self.threepids,
            rooms=self.rooms,
        )
        self.confirmation = AccountConfirmation(
            clock=clock, accounts=self.account_store, sign_in=self.sign_in, uia=self.uia
        )
        self.accounts = Accounts(
            clock=clock,
            database=database,
            accounts=self.account_store,
            passwords=self.passwords,
            sessions=self.sessions,
            sign_in=self.sign_in,
            uia=self.uia,
            confirmation=self.confirmation,
            deactivation=self.deactivation,
            threepids=self.threepids,
        )
        self.profiles = Profiles(
            database=database,
            accounts=self.account_store,
            profiles=self.profile_store,
            propagation=self.propagation,
            remote=NoProfiles(),
            server_name=SERVER_NAME,
            fixed_fields=fixed_profile_fields,
        )
        shared = SharedSecretRegistration(
            clock=clock,
            secret_text=self.secret_text,
            database=database,
            nonces=self.uia_store,
            registration=self.registration,
            secret=shared_secret,
        )
        self.login_tokens = LoginTokens(
            clock=clock,
            secret_text=self.secret_text,
            database=database,
            store=self.login_token_store,
            upstream_sessions=UpstreamSessionStore(database),
            account_store=self.account_store,
            confirmation=self.confirmation,
            sign_in=self.sign_in,
            sessions=self.sessions,
            limiter=self.limiter,
            application_passwords=application_passwords,
            issued_to_sessions=login_tokens,
            requires_confirmation=login_tokens_confirmed,
            lifetime_ms=120_000,
        )
        services: list[object] = [
            self.accounts,
            ApplicationServiceRequests(
                services=ApplicationServices(files=(), server_name=SERVER_NAME),
                accounts=self.account_store,
                devices=self.device_store,
                registration=self.registration,
                sign_in=self.sign_in,
                sessions=self.sessions,
                validity=AccountValidity(clock=clock),
            ),
            self.login_tokens,
            AccountData(
                database=database,
                store=self.account_data_store,
                max_entries=1000,
                max_bytes=1 << 24,
                info_uri="https://example.org/",
                computed={PUSH_RULES: push_rules_content},
            ),
            Capabilities(
                default_room_version=DEFAULT_ROOM_VERSION,
                passwords_can_change=True,
                fixed_profile_fields=fixed_profile_fields,
                login_tokens=login_tokens,
            ),
            ClientDiscovery(public_baseurl=public_baseurl),
            Devices(
                database=database,
                devices=self.device_store,
                sessions=self.sessions,
                confirmation=self.confirmation,
                last_seen=self.last_seen,
            ),
            Filters(
                store=FilterStore(database),
                now_ms=lambda: int(clock.seconds() * 1000),
                capacity=1 << 20,
            ),
            ProfileAccess(
                memberships=MembershipStore(database), account_needed=False, room_needed=False
            ),
            self.profiles,
            self.registration,
            self.sessions,
            shared,
            self.sign_in,
            OfferedProviders(),
            JWTSignIn(
                clock=clock,
                account_store=self.account_store,
                registration=self.registration,
                sign_in=self.sign_in,
                sessions=self.sessions,
                limiter=self.limiter,
                config=JWTOptions(),
                server_name=SERVER_NAME,
            ),
        ]
        sources = [
            account,
            account_data,
            capabilities,
            devices,
            filters,
            login,
            logout,
            profiles,
            register,
            registration,
            tags,
        ]
        self.http: Client = client_for(
            sources,
            {type(service): service for service in services},
            tokens=self.access_tokens,
            clock=clock,
            rates=rates,
        )

    def request(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        token: str | None = None,
        ip: str = "10.0.0.1",
    ) -> Answer:
        """Send a request; a path without a leading slash belongs to the client API, v3."""
        if not path.startswith("/"):
            path = "/_matrix/client/v3/" + path
        return self.http.request(method, path, token=token, json=json, ip=ip)

    def register(
        self, name: str = "alice", password: str = "wonderland", **further: object
    ) -> "User":
        """Register and sign in a user."""
        body = {
            "username": name,
            "password": password,
            "auth": {"type": "m.login.dummy"},
            **further,
        }
        answer = self.request("POST", "register", body)
        assert answer.status == 200, answer.body
        return User(self, answer.json, password)

    def login(
        self,
        name: str = "alice",
        password: str = "wonderland",
        *,
        ip: str = "10.0.0.1",
        **further: object,
    ) -> Answer:
        """Try to sign in with a password."""
        identifier = {"type": "m.id.user", "user": name}
        body = {
            "type": "m.login.password",
            "identifier": identifier,
            "password": password,
            **further,
        }
        return self.request("POST", "login", body, ip=ip)


class User:
    """A signed-in user."""

    def __init__(self, server: AccountsServer, session: Mapping[str, Any], password: str) -> None:
        self.server = server
        self.id = UserID(session["user_id"])
        self.token = str(session["access_token"])
        self.device_id = str(session["device_id"])
        self.password = password

    def request(self, method: str, path: str, json: Any = None) -> Answer:
        """Send a request with the access token; `{me}` in the path is the user id."""
        return self.server.request(method, path.replace("{me}", self.id), json, token=self.token)

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def put(self, path: str, json: Any) -> Answer:
        return self.request("PUT", path, json)

    def post(self, path: str, json: Any) -> Answer:
        return self.request("POST", path, json)

    def delete(self, path: str, json: Any = None) -> Answer:
        return self.request("DELETE", path, json)

    def password_auth(
        self, session: str | None = None, password: str | None = None
    ) -> dict[str, object]:
        """Return the `auth` of the password stage."""
        auth: dict[str, object] = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.id},
            "password": password or self.password,
        }
        return auth if session is None else {**auth, "session": session}

    def is_signed_in(self) -> bool:
        return self.get("account/whoami").status == 200
