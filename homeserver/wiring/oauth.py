"""Wires the OAuth 2.0 API: clients, authorization, tokens, device grants, rendezvous."""

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from homeserver.cluster.jobs import Job
from homeserver.config.configuration import Config
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.login.rendezvous import RendezvousSessions
from homeserver.services.oauth.authorization import Authorization
from homeserver.services.oauth.clients import OAuthClients
from homeserver.services.oauth.device_grants import DeviceGrants
from homeserver.services.oauth.metadata import OAuthMetadata
from homeserver.services.oauth.tokens import OAuthTokens, UpstreamDevices
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.login import LoginParts
from storage.engine.database import Database
from storage.login.rendezvous import RendezvousStore


def has_own_pages(config: Config) -> bool:
    """Whether users of apps sign in on this server's own pages, which need the OAuth 2.0 API."""
    return config.name.public_baseurl is not None and config.sessions.oauth.enabled


class OAuthParts:
    """The services of the OAuth 2.0 API. Public attributes are for the other parts."""

    def __init__(
        self,
        *,
        config: Config,
        clock: IReactorTime,
        database: Database,
        limiter: RateLimiter,
        accounts: AccountParts,
        login: LoginParts,
    ) -> None:
        self.metadata = OAuthMetadata(
            public_baseurl=config.name.public_baseurl,
            enabled=config.sessions.oauth.enabled,
            registration_open=login.registration.is_open,
        )
        self.clients = OAuthClients(clock=clock, database=database, store=accounts.stores.oauth)
        self.authorization = Authorization(
            clock=clock,
            database=database,
            store=accounts.stores.oauth,
            secret_text=accounts.secret_text,
            clients=self.clients,
            issuer=self.metadata.issuer,
        )
        self.tokens = OAuthTokens(
            clock=clock,
            database=database,
            store=accounts.stores.oauth,
            accounts=accounts.stores.accounts,
            tokens=accounts.stores.access_tokens,
            sessions=accounts.sessions,
            secret_text=accounts.secret_text,
            clients=self.clients,
            upstream=UpstreamDevices(accounts.stores.upstream_sessions),
            limiter=limiter,
            introspection_clients=config.sessions.oauth.introspection_clients,
            issuer=self.metadata.issuer,
            validity=accounts.validity,
        )
        self.device_grants = DeviceGrants(
            clock=clock,
            database=database,
            store=accounts.stores.device_grants,
            secret_text=accounts.secret_text,
            clients=self.clients,
            tokens=self.tokens,
            limiter=limiter,
        )
        self.rendezvous = RendezvousSessions(
            clock=clock,
            database=database,
            store=RendezvousStore(database),
            secret_text=accounts.secret_text,
            creators=config.sessions.oauth.qr_code,
        )
        self.services: Sequence[object] = (
            self.rendezvous,
            self.metadata,
            self.clients,
            self.authorization,
            self.tokens,
            self.device_grants,
        )
        """Services for the router."""

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("delete_expired_rendezvous_sessions", self.rendezvous.do_sweep, 60.0),
            Job("delete_unused_oauth_clients", self.clients.do_sweep, 3600.0),
            Job("delete_expired_oauth_codes", self.authorization.do_sweep, 600.0),
            Job("delete_expired_device_grants", self.device_grants.do_sweep, 600.0),
        )
