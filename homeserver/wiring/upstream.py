"""Wires sign-in through external systems: identity providers, directories, JSON Web Tokens."""

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
from homeserver.wiring.user_data import PeopleParts
from homeserver.wiring.web import WebParts
from storage.federation.signed_documents import SignedDocumentStore
from storage.upstream.ended_sessions import EndedProviderSessionStore
from storage.upstream.external_ids import ExternalIdStore
from storage.upstream.login_flows import UpstreamFlowStore


class UpstreamParts:
    """The services for external sign-in. Public attributes are for the router."""

    def __init__(
        self,
        base: Foundation,
        web: WebClient,
        threads: Threads,
        accounts: AccountParts,
        login: LoginParts,
        profiles: ProfileParts,
        people: PeopleParts,
        files: MediaParts,
        pages: WebParts,
    ) -> None:
        """`threads` wait for directories and check SAML signatures. Raises `ValueError` for
        unusable SAML settings or an unusable token key."""
        config, clock, database, limiter = base.config, base.clock, base.database, base.limiter
        self._clock = clock
        self._threads = threads
        self._database = database
        self._people = people
        self._account_parts = accounts
        self._links = ExternalIdStore(database)
        upstream = config.upstream
        flow_store = UpstreamFlowStore(database)
        documents = ProviderHTTP(web)
        base_url = (config.name.public_baseurl or "").rstrip("/") + "/"
        self._flows = UpstreamFlows(clock, accounts.secret_text, flow_store, pages.cookies)
        self._accounts = UpstreamAccounts(
            clock,
            database,
            accounts.stores.accounts,
            self._links,
            login.registration,
            profiles.profiles,
            UpstreamAvatars(web, files.repository, profiles.profiles),
            people.threepids,
            server_name=ServerName(config.server_name),
            validity=accounts.validity,
        )
        oidc = tuple(
            OIDCSignIn(
                clock,
                documents,
                accounts.secret_text.browser_token,
                provider,
                base_url,
                other_providers=[
                    other for other in upstream.oidc_providers if other is not provider
                ],
            )
            for provider in upstream.oidc_providers
        )
        cas = (
            CASProvider(clock, documents, upstream.cas_config, base_url)
            if upstream.cas_config.enabled
            else None
        )
        saml, library, metadata = None, None, None
        self._saml_jobs: Sequence[Job] = ()
        if upstream.saml2_config.is_used:
            library = _load_saml(config, base_url)
            metadata = SAMLMetadata(
                clock,
                threads,
                documents,
                SignedDocumentStore(database),
                library,
                upstream.saml2_config.metadata_urls,
            )
            saml = SAMLProvider(
                clock, threads, flow_store, library, upstream.saml2_config, metadata
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
            [providers[provider_id] for provider_id in upstream.browser_ids],
            self._flows,
            self._accounts,
            accounts.stores.accounts,
            people.login_tokens,
            login.uia,
            pages.consents,
            trusted_clients=upstream.sso.client_whitelist,
            update_profiles=upstream.sso.update_profile_information,
            client_path=SSO_PATH,
        )
        self._ended = EndedProviderSessions(
            clock,
            EndedProviderSessionStore(database),
            accounts.stores.browser_sessions,
            (
                accounts.stores.login_tokens,
                accounts.stores.oauth,
                accounts.stores.device_grants,
                flow_store,
            ),
        )
        self.sign_out = BackchannelLogout(
            clock,
            database,
            accounts.stores.upstream_sessions,
            accounts.stores.browser_sessions,
            self._ended,
            flow_store,
            self._links,
            accounts.sessions,
            oidc,
        )
        self.jwt_sign_in = JWTSignIn(
            clock,
            accounts.stores.accounts,
            login.registration,
            login.sign_in,
            accounts.sessions,
            limiter,
            upstream.jwt_config,
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
                DirectoryPasswords(threads, self._directories, self._links, self._accounts)
            )
        if accounts.plugins.check_passwords:
            login.sign_in.add_external_passwords(PluginPasswords(accounts.plugins, self._accounts))
        upstream_pages = UpstreamPages(
            pages.pages,
            self.sign_in,
            login.sign_in,
            pages.sessions,
            own_pages=SSO_PATH if on_own_pages else "",
        )
        self.links = ExternalIds(
            clock,
            database,
            self._links,
            people.accounts,
            (*upstream.browser_ids, *upstream.directory_ids),
        )
        self.services: Sequence[object] = (
            self.sign_in,
            offered,
            LoginFallbackPage(
                pages.pages,
                pages.forms,
                login.sign_in,
                people.login_tokens,
                offered,
                base_url=base_url,
                takes_numbers=login.phones.is_enabled,
            ),
            self.sign_out,
            self.jwt_sign_in,
            OptionalSAML(saml),
            SAMLLogout(
                SAML_ID,
                threads,
                database,
                library,
                metadata,
                flow_store,
                accounts.stores.upstream_sessions,
                accounts.stores.browser_sessions,
                self._ended,
                accounts.sessions,
            ),
            self.links,
            CallbackProviders(oidc, cas),
            upstream_pages,
            SSOPage(
                pages.pages,
                pages.forms,
                pages.sessions,
                login.sign_in,
                login.registration,
                self.sign_in,
                upstream_pages,
                pages.consents,
            ),
        )
        """Services for the router."""

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        removed_users = [
            Job(
                f"look_for_leavers_{directory.info.provider_id}",
                directory.removed_users.do_check,
                directory.config.removed_users_check_interval / 1000,
            )
            for directory in self._directories
        ]
        return (
            Job("end_old_upstream_flows", self._flows.do_sweep, 600.0),
            Job("forget_ended_sign_ins", self._ended.do_sweep, 600.0),
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
            self._clock,
            self._threads,
            self._links,
            self._account_parts.stores.accounts,
            self._people.accounts,
            self._people.deactivation,
            self._accounts,
            info,
            asked,
            config,
        )
        return Directory(info, config, asked, removed_users)


# Both libraries take tens of megabytes, and one takes seconds to load: a server that does not use
# them does not import them.


def _load_saml(config: Config, base_url: str) -> SAMLLibrary:
    library = import_module("homeserver.services.upstream.saml.library")
    saml2_config = config.upstream.saml2_config
    made = library.PySAML2(
        saml2_config.sp_config, saml2_config.idp_entityid, base_url, config.folder
    )
    return cast(SAMLLibrary, made)


def _load_directory(config: LDAPProviderOptions) -> DirectoryClient:
    library = import_module("homeserver.services.upstream.ldap.directory")
    return cast(DirectoryClient, library.LDAPDirectory(config))
