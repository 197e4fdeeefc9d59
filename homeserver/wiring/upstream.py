"""Wires external sign-in: OpenID, CAS, SAML, LDAP, JSON Web Tokens, and plug-ins."""

from collections.abc import Sequence
from importlib import import_module
from typing import cast

from federation.http_client.client import WebClient
from federation.protocol.ids import ServerName
from homeserver.cluster.jobs import Job
from homeserver.config.configuration import Config
from homeserver.config.ldap import LDAPProviderOptions
from homeserver.services.login.passwords import Threads
from homeserver.services.upstream.accounts import UpstreamAccounts
from homeserver.services.upstream.avatars import UpstreamAvatars
from homeserver.services.upstream.cas import CASProvider
from homeserver.services.upstream.ended_sessions import EndedProviderSessions
from homeserver.services.upstream.external_ids import ExternalIds
from homeserver.services.upstream.identity import OfferedProviders, ProviderInfo, UpstreamProvider
from homeserver.services.upstream.jwt import JWTSignIn
from homeserver.services.upstream.ldap.login import Directory, DirectoryPasswords
from homeserver.services.upstream.ldap.removed_users import RemovedUsers
from homeserver.services.upstream.ldap.types import DirectoryClient
from homeserver.services.upstream.login import UpstreamSignIn
from homeserver.services.upstream.login_flows import UpstreamFlows
from homeserver.services.upstream.oidc.backchannel_logout import BackchannelLogout
from homeserver.services.upstream.oidc.provider import OIDCSignIn
from homeserver.services.upstream.plugin_passwords import PluginPasswords
from homeserver.services.upstream.provider_http import ProviderHTTP
from homeserver.services.upstream.saml.logout import SAMLLogout
from homeserver.services.upstream.saml.metadata import SAMLMetadata
from homeserver.services.upstream.saml.provider import PROVIDER_ID as SAML_ID
from homeserver.services.upstream.saml.provider import OptionalSAML, SAMLLibrary, SAMLProvider
from homeserver.web.login_fallback import LoginFallbackPage
from homeserver.web.sso import SSO_PATH, SSOPage
from homeserver.web.upstream import UpstreamPages
from homeserver.web.upstream_callbacks import CallbackProviders
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.login import LoginParts
from homeserver.wiring.media import MediaParts
from homeserver.wiring.oauth import has_own_pages
from homeserver.wiring.profiles import ProfileParts
from homeserver.wiring.user_data import UserDataParts
from homeserver.wiring.web import WebParts
from storage.federation.signed_documents import SignedDocumentStore
from storage.upstream.ended_sessions import EndedProviderSessionStore
from storage.upstream.external_ids import ExternalIdStore
from storage.upstream.login_flows import UpstreamFlowStore


class UpstreamParts:
    """The services for external sign-in. Public attributes are for the router."""

    def __init__(
        self,
        *,
        base: Foundation,
        web: WebClient,
        threads: Threads,
        accounts: AccountParts,
        login: LoginParts,
        profiles: ProfileParts,
        user_data: UserDataParts,
        media: MediaParts,
        pages: WebParts,
    ) -> None:
        """`threads` wait for directories and check SAML signatures. Raises `ValueError` for
        unusable SAML settings or an unusable token key."""
        config, clock, database, limiter = base.config, base.clock, base.database, base.limiter
        self._clock = clock
        self._threads = threads
        self._database = database
        self._user_data = user_data
        self._account_parts = accounts
        self._links = ExternalIdStore(database)
        upstream = config.upstream
        flow_store = UpstreamFlowStore(database)
        documents = ProviderHTTP(web)
        base_url = (config.name.public_baseurl or "").rstrip("/") + "/"
        self._flows = UpstreamFlows(
            clock=clock, secret_text=accounts.secret_text, store=flow_store, cookies=pages.cookies
        )
        self._accounts = UpstreamAccounts(
            clock=clock,
            database=database,
            accounts=accounts.stores.accounts,
            links=self._links,
            registration=login.registration,
            profiles=profiles.profiles,
            avatars=UpstreamAvatars(web=web, uploads=media.repository, avatars=profiles.profiles),
            addresses=user_data.threepids,
            server_name=ServerName(config.server_name),
            validity=accounts.validity,
        )
        oidc = tuple(
            OIDCSignIn(
                clock=clock,
                documents=documents,
                new_secret=accounts.secret_text.browser_token,
                config=provider,
                base_url=base_url,
                other_providers=[
                    other for other in upstream.oidc_providers if other is not provider
                ],
            )
            for provider in upstream.oidc_providers
        )
        cas = (
            CASProvider(
                clock=clock, documents=documents, config=upstream.cas_config, base_url=base_url
            )
            if upstream.cas_config.enabled
            else None
        )
        saml, library, metadata = None, None, None
        self._saml_jobs: Sequence[Job] = ()
        if upstream.saml2_config.is_used:
            library = _load_saml(config, base_url)
            metadata = SAMLMetadata(
                clock=clock,
                threads=threads,
                documents=documents,
                store=SignedDocumentStore(database),
                library=library,
                urls=upstream.saml2_config.metadata_urls,
            )
            saml = SAMLProvider(
                clock=clock,
                threads=threads,
                store=flow_store,
                library=library,
                config=upstream.saml2_config,
                metadata=metadata,
            )
            if upstream.saml2_config.metadata_urls:
                interval = upstream.saml2_config.metadata_refresh_interval / 1000
                self._saml_jobs = (
                    Job("fetch_saml_metadata", metadata.do_refresh_at_intervals, interval),
                )
        providers: dict[str, UpstreamProvider] = {
            provider.info.provider_id: provider
            for provider in (*oidc, saml, cas)
            if provider is not None
        }
        self.sign_in = UpstreamSignIn(
            providers=[providers[provider_id] for provider_id in upstream.browser_ids],
            flows=self._flows,
            accounts=self._accounts,
            account_store=accounts.stores.accounts,
            login_tokens=user_data.login_tokens,
            uia=login.uia,
            consents=pages.consents,
            trusted_clients=upstream.sso.client_whitelist,
            update_profiles=upstream.sso.update_profile_information,
            client_path=SSO_PATH,
        )
        self._ended_sessions = EndedProviderSessions(
            clock=clock,
            store=EndedProviderSessionStore(database),
            browsers=accounts.stores.browser_sessions,
            pending=(
                accounts.stores.login_tokens,
                accounts.stores.oauth,
                accounts.stores.device_grants,
                flow_store,
            ),
        )
        self.sign_out = BackchannelLogout(
            clock=clock,
            database=database,
            store=accounts.stores.upstream_sessions,
            browsers=accounts.stores.browser_sessions,
            ended=self._ended_sessions,
            flows=flow_store,
            links=self._links,
            sessions=accounts.sessions,
            providers=oidc,
        )
        self.jwt_sign_in = JWTSignIn(
            clock=clock,
            account_store=accounts.stores.accounts,
            registration=login.registration,
            sign_in=login.sign_in,
            sessions=accounts.sessions,
            limiter=limiter,
            config=upstream.jwt_config,
            server_name=ServerName(config.server_name),
        )
        infos = tuple(self.sign_in.providers)
        # a page on which nobody can sign in is not offered
        on_own_pages = has_own_pages(config) and (login.sign_in.password_login or bool(infos))
        offered = OfferedProviders(infos, own_pages=on_own_pages)
        self._directories = [self._directory(provider) for provider in upstream.ldap_providers]
        # A circle that stays: these sources of passwords create accounts by `registration`, which
        # checks accounts by `sign_in`.
        if self._directories:
            login.sign_in.add_external_passwords(
                DirectoryPasswords(
                    threads=threads,
                    directories=self._directories,
                    links=self._links,
                    accounts=self._accounts,
                )
            )
        if accounts.plugins.check_passwords:
            login.sign_in.add_external_passwords(
                PluginPasswords(plugins=accounts.plugins, accounts=self._accounts)
            )
        upstream_pages = UpstreamPages(
            pages=pages.pages,
            sign_in=self.sign_in,
            own_sign_in=login.sign_in,
            sessions=pages.sessions,
            own_pages=SSO_PATH if on_own_pages else "",
        )
        self.links = ExternalIds(
            clock=clock,
            database=database,
            store=self._links,
            accounts=user_data.accounts,
            providers=(*upstream.browser_ids, *upstream.directory_ids),
        )
        self.services: Sequence[object] = (
            self.sign_in,
            offered,
            LoginFallbackPage(
                pages=pages.pages,
                forms=pages.forms,
                sign_in=login.sign_in,
                login_tokens=user_data.login_tokens,
                providers=offered,
                base_url=base_url,
                takes_numbers=login.phones.is_enabled,
            ),
            self.sign_out,
            self.jwt_sign_in,
            OptionalSAML(saml),
            SAMLLogout(
                provider_id=SAML_ID,
                threads=threads,
                database=database,
                library=library,
                metadata=metadata,
                flows=flow_store,
                upstream_sessions=accounts.stores.upstream_sessions,
                browser_sessions=accounts.stores.browser_sessions,
                ended=self._ended_sessions,
                sessions=accounts.sessions,
            ),
            self.links,
            CallbackProviders(oidc, cas),
            upstream_pages,
            SSOPage(
                pages=pages.pages,
                forms=pages.forms,
                sessions=pages.sessions,
                sign_in=login.sign_in,
                registration=login.registration,
                upstream=self.sign_in,
                upstream_pages=upstream_pages,
                consents=pages.consents,
            ),
        )
        """Services for the router."""

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        removed_users = [
            Job(
                f"check_removed_users_{directory.info.provider_id}",
                directory.removed_users.do_check,
                directory.config.removed_users_check_interval / 1000,
            )
            for directory in self._directories
        ]
        return (
            Job("delete_expired_upstream_flows", self._flows.do_sweep, 600.0),
            Job("delete_old_upstream_sessions", self._ended_sessions.do_sweep, 600.0),
            *self._saml_jobs,
            *removed_users,
        )

    def _directory(self, config: LDAPProviderOptions) -> Directory:
        asked = _load_directory(config)
        info = ProviderInfo(
            config.idp_id,
            config.idp_id,
            allow_existing_users=config.allow_existing_users,
            enable_registration=config.enable_registration,
        )
        removed_users = RemovedUsers(
            clock=self._clock,
            threads=self._threads,
            links=self._links,
            account_store=self._account_parts.stores.accounts,
            accounts=self._user_data.accounts,
            deactivation=self._user_data.deactivation,
            upstream_accounts=self._accounts,
            info=info,
            directory=asked,
            config=config,
        )
        return Directory(info, config, asked, removed_users)


# Both libraries take tens of megabytes, and one takes seconds to load: a server that does not use
# them does not import them.


def _load_saml(config: Config, base_url: str) -> SAMLLibrary:
    library = import_module("homeserver.services.upstream.saml.library")
    saml2_config = config.upstream.saml2_config
    loaded = library.PySAML2(
        settings=saml2_config.sp_config,
        idp_entityid=saml2_config.idp_entityid,
        base_url=base_url,
        folder=config.folder,
    )
    return cast(SAMLLibrary, loaded)


def _load_directory(config: LDAPProviderOptions) -> DirectoryClient:
    library = import_module("homeserver.services.upstream.ldap.directory")
    return cast(DirectoryClient, library.LDAPDirectory(config))
