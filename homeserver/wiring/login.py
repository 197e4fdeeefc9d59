"""Wires sign-in, registration, and user-interactive authentication with its stages."""

from collections.abc import Sequence
from typing import Literal

from twisted.internet.interfaces import IReactorTime

from federation.http_client.client import WebClient
from federation.peers.federation_policy import ServerPatterns
from federation.protocol.ids import ServerName
from homeserver.config.configuration import Config
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.accounts.registration import NewAccountEmails, Registration
from homeserver.services.accounts.registration_rules import RegistrationRules
from homeserver.services.accounts.registration_tokens import RegistrationTokens
from homeserver.services.accounts.shared_secret_registration import SharedSecretRegistration
from homeserver.services.application_services.application_services import (
    ApplicationServiceRequests,
)
from homeserver.services.encryption.cross_signing_resets import (
    STAGES,
    CrossSigningResets,
    OAuthStage,
)
from homeserver.services.login.approvals import Approvals, NewAccountTasks
from homeserver.services.login.captcha import CaptchaVerifier
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.uia import UIA, UIAStage
from homeserver.services.login.uia_stages import (
    EMAIL_IDENTITY,
    MSISDN_IDENTITY,
    CaptchaStage,
    DummyStage,
    PasswordStage,
    RegistrationTokenStage,
    SSOStage,
    TermsStage,
    ThreepidStage,
)
from homeserver.services.oauth.metadata import ACCOUNT_PATH, CROSS_SIGNING_RESET
from homeserver.services.plugins.hooks import Plugins
from homeserver.services.threepids.phone_validation import PhoneValidation
from homeserver.services.threepids.sms import SMSGatewayRequest, TextMessageSender
from homeserver.services.threepids.validation import ADD, EMAIL, MSISDN, PASSWORD_RESET, REGISTER
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.email import EmailParts
from storage.accounts.registration_tokens import RegistrationTokenStore
from storage.engine.database import Database
from storage.login.uia import UIAStore
from storage.threepids.sms import TextMessageStore


class LoginParts:
    """Sign-in, registration and user-interactive authentication. Public attributes are for the
    other parts and the router."""

    def __init__(
        self,
        *,
        config: Config,
        clock: IReactorTime,
        database: Database,
        limiter: RateLimiter,
        accounts: AccountParts,
        email: EmailParts,
        web: WebClient | None,
        new_account_tasks: NewAccountTasks,
        new_account_emails: NewAccountEmails | None,
    ) -> None:
        """`web` leads to the captcha service; None for commands, which register no user by captcha.
        `new_account_tasks`: the tasks for new accounts. `new_account_emails` handles their e-mail
        addresses.

        Raises `ValueError` if no service can check captchas or send the required messages."""
        server_name = ServerName(config.server_name)
        registration_tokens, uia_store = RegistrationTokenStore(database), UIAStore(database)
        self.approvals = Approvals(
            clock=clock,
            database=database,
            accounts=accounts.stores.accounts,
            threepids=email.threepids,
            outbox=email.outbox,
            languages=email.languages,
            administrator_emails=config.registration.registration_approval_emails,
            base_url=config.name.public_baseurl or "",
            new_account_tasks=new_account_tasks,
        )
        passwords = config.sessions.password_config
        has_other_passwords = (
            bool(config.upstream.ldap_providers) or accounts.plugins.check_passwords
        )
        self.sign_in = SignIn(
            clock=clock,
            database=database,
            accounts=accounts.stores.accounts,
            threepids=email.threepids,
            passwords=accounts.passwords,
            sessions=accounts.sessions,
            limiter=limiter,
            application_passwords=accounts.application_passwords,
            server_name=server_name,
            password_login=passwords.enabled is True
            and (passwords.localdb_enabled or has_other_passwords),
            password_confirmation=passwords.localdb_enabled and passwords.enabled is not False,
            local_passwords=passwords.localdb_enabled,
            plugins=accounts.plugins,
            approvals=self.approvals,
            validity=accounts.validity,
        )
        self.captcha = None if web is None else _captcha(config, web, accounts.plugins)
        self.phones = PhoneValidation(
            now_ms=lambda: int(clock.seconds() * 1000),
            database=database,
            store=email.threepids,
            message_counts=TextMessageStore(),
            validations=email.validations,
            secret_text=accounts.secret_text,
            messages=None
            if web is None
            else TextMessageSender(
                web=web,
                plugins=accounts.plugins,
                secret_text=accounts.secret_text,
                gateway=_gateway(config),
            ),
            limiter=limiter,
            metrics=email.text_message_metrics,
            purposes=_purposes_of_codes(config, resets=self.sign_in.password_login),
            server_name=config.server_name,
            base_url=config.name.public_baseurl or "",
            reveals_known=not config.mail.request_token_inhibit_3pid_errors,
            daily_limit=config.text_messages.sms_gateway.max_per_day,
        )
        registers = web is not None and config.registration.enable_registration
        if (
            registers
            and MSISDN in config.mail.registrations_require_3pid
            and not self.phones.supports_purpose(REGISTER)
        ):
            raise ValueError(
                "registrations_require_3pid has msisdn, but this server sends no text messages:"
                " nobody could register"
            )
        stages: list[UIAStage] = [
            DummyStage(),
            PasswordStage(self.sign_in),
            RegistrationTokenStage(clock=clock, tokens=registration_tokens),
            *([] if self.captcha is None else [CaptchaStage(self.captcha)]),
            ThreepidStage(name=EMAIL_IDENTITY, medium=EMAIL, validations=email.validations),
            ThreepidStage(name=MSISDN_IDENTITY, medium=MSISDN, validations=email.validations),
            *(OAuthStage(name=name, url=_reset_page(config)) for name in STAGES),
            SSOStage(),
            TermsStage(accounts.policies),
        ]
        self.uia = UIA(
            clock=clock,
            secret_text=accounts.secret_text,
            database=database,
            store=uia_store,
            stages=stages,
        )
        self.resets = CrossSigningResets(
            clock=clock, database=database, store=accounts.stores.cross_signing_resets, uia=self.uia
        )
        self.registration = Registration(
            clock=clock,
            secret_text=accounts.secret_text,
            database=database,
            accounts=accounts.stores.accounts,
            profiles=accounts.stores.profiles,
            tokens=registration_tokens,
            threepids=email.threepids,
            passwords=accounts.passwords,
            sessions=accounts.sessions,
            sign_in=self.sign_in,
            uia=self.uia,
            limiter=limiter,
            server_name=server_name,
            rules=_rules(config, takes_numbers=self.phones.supports_purpose(REGISTER)),
            reserved=accounts.application_services,
            plugins=accounts.plugins,
            consents=accounts.stores.policy_consents,
            approvals=self.approvals,
            new_account_tasks=new_account_tasks,
            new_account_emails=new_account_emails,
        )
        self.registration_tokens = RegistrationTokens(
            clock=clock,
            secret_text=accounts.secret_text,
            database=database,
            store=registration_tokens,
        )
        self.acting_services = ApplicationServiceRequests(
            services=accounts.application_services,
            accounts=accounts.stores.accounts,
            devices=accounts.stores.devices,
            registration=self.registration,
            sign_in=self.sign_in,
            sessions=accounts.sessions,
            validity=accounts.validity,
            token_in_query=config.sessions.accept_token_in_query,
        )
        self.shared_secret_registration = SharedSecretRegistration(
            clock=clock,
            secret_text=accounts.secret_text,
            database=database,
            nonces=uia_store,
            registration=self.registration,
            secret=config.registration.registration_shared_secret,
        )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (
            self.acting_services,
            self.phones,
            self.registration,
            self.registration_tokens,
            self.shared_secret_registration,
            self.sign_in,
        )


def _reset_page(config: Config) -> str:
    base_url = (config.name.public_baseurl or "").rstrip("/")
    return f"{base_url}{ACCOUNT_PATH}?action={CROSS_SIGNING_RESET}"


def _captcha(config: Config, web: WebClient, plugins: Plugins) -> CaptchaVerifier | None:
    captcha = config.captcha
    if not captcha.enable_registration_captcha:
        return None
    return CaptchaVerifier(
        web=web,
        plugins=plugins,
        verify_url=captcha.recaptcha_siteverify_api,
        site_key=str(captcha.recaptcha_public_key),
        secret=captcha.recaptcha_private_key,
    )


def _gateway(config: Config) -> SMSGatewayRequest | None:
    sms_gateway = config.text_messages.sms_gateway
    if sms_gateway.url is None:
        return None
    token = [] if sms_gateway.token is None else [("Authorization", f"Bearer {sms_gateway.token}")]
    return SMSGatewayRequest(
        sms_gateway.url,
        [*token, *sms_gateway.headers.items()],
        sms_gateway.format,
        sms_gateway.body,
        sms_gateway.sender,
    )


def _purposes_of_codes(config: Config, *, resets: bool) -> Sequence[str]:
    """Return the purposes for which text messages may be sent. Each message costs money, so
    purposes that are disabled are left out."""
    registers = (
        config.registration.enable_registration
        and not config.text_messages.disable_msisdn_registration
    )
    wanted = {REGISTER: registers, ADD: config.mail.enable_3pid_changes, PASSWORD_RESET: resets}
    return [purpose for purpose, is_wanted in wanted.items() if is_wanted]


def _rules(config: Config, *, takes_numbers: bool) -> RegistrationRules:
    registration = config.registration
    email: Literal["none", "optional", "required"] = "none"
    if config.mail.email.smtp_host is not None:
        email = "required" if EMAIL in config.mail.registrations_require_3pid else "optional"
    phone: Literal["none", "optional", "required"] = "none"
    if MSISDN in config.mail.registrations_require_3pid:
        phone = "required"
    elif takes_numbers:
        phone = "optional"
    return RegistrationRules(
        enabled=registration.enable_registration,
        without_verification=registration.enable_registration_without_verification,
        requires_token=registration.registration_requires_token,
        captcha=config.captcha.enable_registration_captcha,
        email=email,
        phone=phone,
        terms=bool(config.pages.user_consent.policies)
        and config.pages.user_consent.require_at_registration,
        needs_approval=registration.registration_requires_approval,
        guests=registration.allow_guest_access,
        reserved_names=ServerPatterns(registration.reserved_usernames)
        if registration.reserved_usernames
        else None,
        reveals_taken_names=not registration.inhibit_user_in_use_error,
    )
