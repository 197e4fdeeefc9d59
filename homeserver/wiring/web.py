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
from homeserver.web.forms import Forms
from homeserver.web.landing import LandingPage
from homeserver.web.pages import Pages, ThirdPartyScript
from homeserver.web.register import RegisterPage
from homeserver.web.reset_password import ResetPasswordPage
from homeserver.web.sign_in import SignInPage
from homeserver.web.terms import TermsPage
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.email import EmailParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.login import LoginParts
from homeserver.wiring.oauth import OAuthParts
from homeserver.wiring.profiles import ProfileParts
from homeserver.wiring.room_services import RoomServiceParts
from homeserver.wiring.user_data import UserDataParts
from storage.account_data.account_data import AccountDataStore
from storage.media.lists import MediaListStore
from storage.threepids.identity_bindings import IdentityBindingStore
from storage.upstream.external_ids import ExternalIdStore


class WebParts:
    """The web pages and their sessions."""

    def __init__(
        self,
        *,
        base: Foundation,
        accounts: AccountParts,
        login: LoginParts,
        email: EmailParts,
        oauth: OAuthParts,
        user_data: UserDataParts,
        profiles: ProfileParts,
        services: RoomServiceParts,
        consents: Consents,
    ) -> None:
        config, clock, database = base.config, base.clock, base.database
        identity = base.identity
        base_url = config.name.public_baseurl or ""
        self._audit = accounts.audit
        self._application_passwords = accounts.application_passwords
        self.cookies = Cookies(public_baseurl=config.name.public_baseurl, key=identity.key)
        self.pages = Pages(
            languages=email.languages,
            server_name=config.server_name,
            branding=email.branding,
            min_password_length=accounts.passwords.min_length,
        )
        self.forms = Forms(cookies=self.cookies, secret_text=accounts.secret_text)
        self.sessions = BrowserSessions(
            clock=clock,
            database=database,
            store=accounts.stores.browser_sessions,
            secret_text=accounts.secret_text,
            cookies=self.cookies,
            validity=accounts.validity,
        )
        self.consents = consents
        buttons = UpstreamButtons(config.upstream.buttons)
        sign_in_page = SignInPage(
            pages=self.pages,
            forms=self.forms,
            sign_in=login.sign_in,
            registration=login.registration,
            choices=ProviderButtons([buttons]),
            resets_passwords=email.outbox is not None
            or login.phones.supports_purpose(PASSWORD_RESET),
            takes_numbers=login.phones.is_enabled,
        )
        own_account = AccountSelfService(
            clock=clock,
            database=database,
            accounts=user_data.accounts,
            sign_in=login.sign_in,
            sessions=accounts.sessions,
            devices=accounts.stores.devices,
            oauth=accounts.stores.oauth,
            clients=oauth.clients,
            profiles=profiles.profiles,
            threepids=user_data.threepids,
            deactivation=user_data.deactivation,
            application_passwords=accounts.application_passwords,
            validity=accounts.validity,
        )
        account_export = AccountExport(
            clock=clock,
            database=database,
            server_name=identity.server_name,
            own_account=own_account,
            accounts=user_data.accounts,
            profiles=profiles.profiles,
            account_data=AccountDataStore(database),
            rooms=services.memberships,
            application_passwords=accounts.application_passwords,
            consents=accounts.stores.policy_consents,
            links=ExternalIdStore(database),
            bindings=IdentityBindingStore(database),
            audit=accounts.audit,
            files=MediaListStore(database=database, own=config.server_name),
        )
        captcha = None
        if login.captcha is not None:
            captcha = ThirdPartyScript(
                config.captcha.recaptcha_script,
                login.captcha.site_key,
                config.captcha.recaptcha_sources,
            )
        landing = LandingPage(
            pages=self.pages,
            languages=email.languages,
            address=config.name.public_baseurl,
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
                pages=self.pages,
                forms=self.forms,
                sessions=self.sessions,
                registration=login.registration,
                validation=email.validation,
                validations=email.validations,
                phones=login.phones,
                secret_text=accounts.secret_text,
                policies=accounts.policies,
                captcha=captcha,
                base_url=base_url,
            ),
            login.approvals,
            ApprovalsPage(
                pages=self.pages,
                forms=self.forms,
                sessions=self.sessions,
                approvals=login.approvals,
                deactivation=user_data.deactivation,
            ),
            self.consents,
            TermsPage(
                pages=self.pages,
                forms=self.forms,
                sessions=self.sessions,
                consents=self.consents,
                uia=login.uia,
            ),
            AuthorizationPage(
                pages=self.pages,
                forms=self.forms,
                sessions=self.sessions,
                authorization=oauth.authorization,
                metadata=oauth.metadata,
                consents=self.consents,
                registration=login.registration,
            ),
            AuthFallbackPages(
                pages=self.pages,
                forms=self.forms,
                uia=login.uia,
                validation=email.validation,
                validations=email.validations,
                phones=login.phones,
                secret_text=accounts.secret_text,
                captcha=captcha,
            ),
            AccountPage(
                pages=self.pages,
                forms=self.forms,
                sessions=self.sessions,
                account=own_account,
                export=account_export,
                audit=accounts.audit,
                resets=login.resets,
                threepids=user_data.threepids,
                validation=email.validation,
                validations=email.validations,
                phones=login.phones,
                secret_text=accounts.secret_text,
                base_url=base_url,
                has_terms=bool(config.pages.user_consent.policies),
            ),
            ApplicationPasswordsPage(
                pages=self.pages,
                forms=self.forms,
                sessions=self.sessions,
                account=own_account,
                passwords=accounts.application_passwords,
            ),
            ResetPasswordPage(
                pages=self.pages,
                forms=self.forms,
                accounts=user_data.accounts,
                validation=email.validation,
                validations=email.validations,
                phones=login.phones,
                secret_text=accounts.secret_text,
                base_url=base_url,
            ),
            DeviceLinkPage(
                pages=self.pages,
                forms=self.forms,
                sessions=self.sessions,
                grants=oauth.device_grants,
                metadata=oauth.metadata,
                consents=self.consents,
            ),
        )
        """Services for the router."""

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("delete_expired_browser_sessions", self.sessions.do_sweep, 600.0),
            Job("delete_expired_application_passwords", self._application_passwords.do_sweep, 60.0),
            Job("delete_old_audit_records", self._audit.do_sweep, 3600.0),
        )
