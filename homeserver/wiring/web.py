"""Wires the web pages."""

from collections.abc import Sequence

from homeserver.cluster.jobs import Job
from homeserver.services.accounts.export import AccountExport
from homeserver.services.accounts.self_service import AccountSelfService
from homeserver.services.login.browser_sessions import BrowserSessions
from homeserver.services.login.cookies import Cookies
from homeserver.services.login.provider_buttons import ProviderButtons
from homeserver.services.terms.consent import Consents
from homeserver.services.threepids.validation import PASSWORD_RESET
from homeserver.services.upstream.login_buttons import UpstreamButtons
from homeserver.web.account import AccountPage
from homeserver.web.application_passwords import ApplicationPasswordsPage
from homeserver.web.approvals import ApprovalsPage
from homeserver.web.auth_fallback import AuthFallbackPages
from homeserver.web.authorize import AuthorizationPage
from homeserver.web.device_link import DeviceLinkPage
from homeserver.web.error_pages import ErrorPages
from homeserver.web.forms import Forms
from homeserver.web.landing import LandingPage
from homeserver.web.pages import Pages, ThirdPartyScript
from homeserver.web.register import RegisterPage
from homeserver.web.reset_password import ResetPasswordPage
from homeserver.web.sign_in import SignInPage
from homeserver.web.terms import TermsPage
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.email import MailParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.login import LoginParts
from homeserver.wiring.oauth import OAuthParts
from homeserver.wiring.profiles import ProfileParts
from homeserver.wiring.room_services import RoomServiceParts
from homeserver.wiring.user_data import PeopleParts
from storage.account_data.account_data import AccountDataStore
from storage.media.lists import MediaListStore
from storage.threepids.identity_bindings import IdentityBindingStore
from storage.upstream.external_ids import ExternalIdStore


class WebParts:
    """The web pages and their sessions."""

    def __init__(
        self,
        base: Foundation,
        accounts: AccountParts,
        login: LoginParts,
        mail: MailParts,
        oauth: OAuthParts,
        people: PeopleParts,
        profiles: ProfileParts,
        services: RoomServiceParts,
        consents: Consents,
    ) -> None:
        config, clock, database = base.config, base.clock, base.database
        identity = base.identity
        base_url = config.name.public_baseurl or ""
        self._audit = accounts.audit
        self._application_passwords = accounts.application_passwords
        self.cookies = Cookies(config.name.public_baseurl, identity.key)
        self.pages = Pages(
            mail.languages,
            config.server_name,
            mail.branding,
            shortest_password=accounts.passwords.min_length,
        )
        self.error_pages = ErrorPages(self.pages)
        self.forms = Forms(self.cookies, accounts.secret_text)
        self.sessions = BrowserSessions(
            clock,
            database,
            accounts.stores.browser_sessions,
            accounts.secret_text,
            self.cookies,
            validity=accounts.validity,
        )
        self.consents = consents
        buttons = UpstreamButtons(config.upstream.buttons)
        sign_in_page = SignInPage(
            self.pages,
            self.forms,
            login.sign_in,
            login.registration,
            ProviderButtons([buttons]),
            resets_passwords=mail.outbox is not None
            or login.phones.supports_purpose(PASSWORD_RESET),
            takes_numbers=login.phones.is_enabled,
        )
        own_account = AccountSelfService(
            clock,
            database,
            people.accounts,
            login.sign_in,
            accounts.sessions,
            accounts.stores.devices,
            accounts.stores.oauth,
            oauth.clients,
            profiles.profiles,
            people.threepids,
            people.deactivation,
            accounts.application_passwords,
            accounts.validity,
        )
        account_export = AccountExport(
            clock,
            database,
            identity.server_name,
            own_account,
            people.accounts,
            profiles.profiles,
            AccountDataStore(database),
            services.memberships,
            accounts.application_passwords,
            accounts.stores.policy_consents,
            ExternalIdStore(database),
            IdentityBindingStore(database),
            accounts.audit,
            MediaListStore(database, config.server_name),
        )
        captcha = None
        if login.captcha is not None:
            captcha = ThirdPartyScript(
                config.captcha.recaptcha_script,
                login.captcha.site_key,
                config.captcha.recaptcha_sources,
            )
        landing = LandingPage(
            self.pages,
            mail.languages,
            config.name.public_baseurl,
            registration_open=config.registration.enable_registration,
            web_client=config.name.web_client_location,
        )
        self.services: Sequence[object] = (
            self.pages,
            self.forms,
            self.sessions,
            sign_in_page,
            landing,
            RegisterPage(
                self.pages,
                self.forms,
                self.sessions,
                login.registration,
                mail.validation,
                mail.validations,
                login.phones,
                accounts.secret_text,
                accounts.policies,
                captcha,
                base_url=base_url,
            ),
            login.approvals,
            ApprovalsPage(
                self.pages, self.forms, self.sessions, login.approvals, people.deactivation
            ),
            self.consents,
            TermsPage(self.pages, self.forms, self.sessions, self.consents, login.uia),
            AuthorizationPage(
                self.pages,
                self.forms,
                self.sessions,
                oauth.authorization,
                oauth.metadata,
                self.consents,
                login.registration,
            ),
            AuthFallbackPages(
                self.pages,
                self.forms,
                login.uia,
                mail.validation,
                mail.validations,
                login.phones,
                accounts.secret_text,
                captcha,
            ),
            AccountPage(
                self.pages,
                self.forms,
                self.sessions,
                own_account,
                account_export,
                accounts.audit,
                login.resets,
                people.threepids,
                mail.validation,
                mail.validations,
                login.phones,
                accounts.secret_text,
                base_url=base_url,
                has_terms=bool(config.pages.user_consent.policies),
            ),
            ApplicationPasswordsPage(
                self.pages, self.forms, self.sessions, own_account, accounts.application_passwords
            ),
            ResetPasswordPage(
                self.pages,
                self.forms,
                people.accounts,
                mail.validation,
                mail.validations,
                login.phones,
                accounts.secret_text,
                base_url=base_url,
            ),
            DeviceLinkPage(
                self.pages,
                self.forms,
                self.sessions,
                oauth.device_grants,
                oauth.metadata,
                self.consents,
            ),
        )
        """Services for the router."""

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("end_old_browser_sessions", self.sessions.do_sweep, 600.0),
            Job("end_application_passwords", self._application_passwords.do_sweep, 60.0),
            Job("forget_audit_records", self._audit.do_sweep, 3600.0),
        )
