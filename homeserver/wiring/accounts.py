"""Wires the account services: stores, sessions, sign-in, registration."""

from collections.abc import Callable, Sequence
from typing import Literal

from twisted.internet.interfaces import IReactorTime

from federation.http_client.client import Web
from federation.peers.policy import ServerPatterns
from federation.protocol.ids import ServerName
from homeserver.cluster.incoming_changes import NewsOfOthers
from homeserver.cluster.notify import NodeNotes
from homeserver.cluster.outgoing_changes import Writing
from homeserver.cluster.peers import OtherNodes
from homeserver.config.configuration import Config
from homeserver.config.registration_files import read_registration_files
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.accounts.registration import Registration
from homeserver.services.accounts.registration_rules import RegistrationRules
from homeserver.services.accounts.registration_tokens import RegistrationTokens
from homeserver.services.accounts.renewal import Renewals
from homeserver.services.accounts.shared_secret_registration import SharedSecretRegistration
from homeserver.services.application_services.application_services import (
    ActingServices,
    ApplicationServices,
)
from homeserver.services.audit.audit import Audit, Happened, Recorded
from homeserver.services.devices.device_settings import DeviceSettings
from homeserver.services.encryption.cross_signing_resets import (
    STAGES,
    CrossSigningResets,
    OAuthStage,
)
from homeserver.services.login.access_tokens import AccessTokens
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.login.approvals import Approvals
from homeserver.services.login.captcha import Captcha
from homeserver.services.login.last_seen import LastSeen
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.passwords import PasswordPolicy, Passwords, Threads
from homeserver.services.login.sessions import Lifetimes, Sessions
from homeserver.services.login.uia import UIA, Stage
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
from homeserver.services.plugins.hooks import Plugins, load_plugin
from homeserver.services.terms.policies import policies_of
from homeserver.services.threepids.phone_validation import PhoneValidation
from homeserver.services.threepids.sms import Gateway, TextMessages
from homeserver.services.threepids.validation import ADD, EMAIL, MSISDN, PASSWORD_RESET, REGISTER
from homeserver.services.tokens.secret_tokens import RandomBytes, SecretText
from homeserver.wiring.email import MailParts
from storage.account_data.account_data import AccountDataStore
from storage.accounts.accounts import AccountStore
from storage.accounts.audit import AuditStore
from storage.accounts.policy_consents import PolicyConsentStore
from storage.accounts.registration_tokens import RegistrationTokenStore
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
from storage.threepids.sms import TextMessageStore
from storage.upstream.sessions import UpstreamSessionStore


class AccountParts:
    """The account services that do not need rooms. Public attributes are for the other parts and
    the router."""

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        database: Database,
        limiter: RateLimiter,
        threads: Threads,
        random: RandomBytes,
        mail: MailParts,
        web: Web | None,
        monotonic: Callable[[], float],
    ) -> None:
        """`web` leads to the captcha service; None for commands, which register nobody by captcha.
        `monotonic` is a clock in seconds that is never set. Raises `ValueError` if no service can
        check captchas or send the required messages."""
        server_name = ServerName(config.server_name)
        self.secret_text = SecretText(random)
        self.policies = policies_of(config.pages.user_consent, config.name.public_baseurl or "")
        self.policy_consents = PolicyConsentStore(database)
        files = read_registration_files(config.others.app_service_config_files)
        self.application_services = ApplicationServices(files, server_name)
        self.plugins = Plugins(
            [load_plugin(plugin.module, plugin.config) for plugin in config.upstream.plugins]
        )
        self.store = AccountStore(database)
        self.device_store = DeviceStore(database)
        self.profile_store = ProfileStore(database)
        self.device_key_store = DeviceKeyStore(database)
        self.to_device_store = ToDeviceStore(database)
        self.pusher_store = PusherStore(database)
        self.dehydrated_store = DehydratedDeviceStore(database)
        self.token_store = token_store = TokenStore(database)
        self.login_token_store = LoginTokenStore(database)
        self.browser_store = BrowserSessionStore(database)
        self.oauth_store = OAuthStore(database)
        self.device_grant_store = DeviceGrantStore(database)
        self.reset_store = CrossSigningResetStore(database)
        program_store = ApplicationPasswordStore(database)
        registration_tokens = RegistrationTokenStore(database)
        uia_store = UIAStore(database)
        self.confirmation_store = ConfirmationStore(database)
        self.upstream_sessions = UpstreamSessionStore(database)

        self.last_seen = LastSeen(
            clock, self.device_store, addresses_ms=config.sessions.user_ips_max_age
        )
        account_validity = config.sessions.account_validity
        self.validity = AccountValidity(clock, enabled=account_validity.enabled)
        self.validity_store = AccountValidityStore(database, self.store)
        self.access_tokens = AccessTokens(
            clock,
            database,
            token_store,
            self.store,
            database.streams,
            self.last_seen,
            validity=self.validity,
            monotonic=monotonic,
        )
        is_shared = config.storage.database.name == "psycopg2"  # SQLite supports one node only
        self.node_notes = NodeNotes(clock) if is_shared else None
        self.other_nodes = None
        self.others = None
        if self.node_notes is not None:
            Writing(database.streams, self.node_notes)
            self.others = NewsOfOthers(database.streams, clock, self.node_notes)
            self.other_nodes = OtherNodes(
                clock, database, self.access_tokens, self.node_notes, monotonic
            )
        self.passwords = _passwords(config, threads)
        self.sessions = Sessions(
            clock,
            self.secret_text,
            database,
            self.store,
            self.device_store,
            token_store,
            limiter=limiter,
            lifetimes=_lifetimes(config),
            ends_with_sessions=[
                self.login_token_store,
                self.oauth_store,
                self.device_grant_store,
                self.reset_store,
                uia_store,
                self.confirmation_store,
            ],
            recorded_with_sessions=[
                Recorded(clock, self.browser_store, Happened.BROWSER_SIGNED_OUT)
            ],
            recorded_with_all_sessions=[
                Recorded(clock, program_store, Happened.APPLICATION_PASSWORD_ENDED)
            ],
            kept_by_device=[
                self.device_key_store,
                self.to_device_store,
                self.dehydrated_store,
                SlidingConnectionStore(database),
                DeviceSettings(AccountDataStore(database)),
                self.pusher_store,
            ],
            kept_by_session=[
                self.oauth_store,
                program_store,
                self.confirmation_store,
                self.upstream_sessions,
            ],
            set_by_tokens=[self.pusher_store],
        )
        self.renewals = Renewals(
            clock,
            database,
            self.validity_store,
            mail.threepids,
            self.secret_text,
            self.validity,
            mail.languages,
            mail.outbox,
            period_ms=account_validity.period,
            renew_at_ms=account_validity.renew_at,
            subject=account_validity.renew_email_subject,
            base_url=config.name.public_baseurl or "",
        )
        application_passwords = config.sessions.application_passwords
        self.application_passwords = ApplicationPasswords(
            clock,
            database,
            program_store,
            self.passwords,
            self.secret_text,
            self.sessions,
            enabled=application_passwords.enabled,
            in_login_flows=application_passwords.in_login_flows,
            most=application_passwords.limit,
            longest_ms=application_passwords.longest_lifetime,
        )
        self.approvals = Approvals(
            clock,
            database,
            self.store,
            mail.threepids,
            mail.outbox,
            mail.languages,
            letters_to=config.registration.registration_approval_letters,
            base_url=config.name.public_baseurl or "",
        )
        passwords = config.sessions.password_config
        has_others = bool(config.upstream.ldap_providers) or self.plugins.check_passwords
        self.sign_in = SignIn(
            clock,
            database,
            self.store,
            mail.threepids,
            self.passwords,
            self.sessions,
            limiter,
            self.application_passwords,
            server_name=server_name,
            password_login=passwords.enabled is True and (passwords.localdb_enabled or has_others),
            password_confirmation=passwords.localdb_enabled and passwords.enabled is not False,
            own_passwords=passwords.localdb_enabled,
            plugins=self.plugins,
            approvals=self.approvals,
            validity=self.validity,
        )
        self.captcha = None if web is None else _captcha(config, web, self.plugins)
        self.phones = PhoneValidation(
            lambda: int(clock.seconds() * 1000),
            database,
            mail.threepids,
            TextMessageStore(),
            mail.validations,
            self.secret_text,
            None
            if web is None
            else TextMessages(web, self.plugins, self.secret_text, _gateway(config)),
            limiter,
            mail.text_message_metrics,
            purposes=_purposes_of_codes(config, resets=self.sign_in.password_login),
            server_name=config.server_name,
            base_url=config.name.public_baseurl or "",
            known_is_told=not config.mail.request_token_inhibit_3pid_errors,
            most_per_day=config.text_messages.sms_gateway.most_per_day,
        )
        registers = web is not None and config.registration.enable_registration
        if (
            registers
            and MSISDN in config.mail.registrations_require_3pid
            and not self.phones.is_possible(REGISTER)
        ):
            raise ValueError(
                "registrations_require_3pid has msisdn, but this server sends no text messages:"
                " nobody could register"
            )
        stages: list[Stage] = [
            DummyStage(),
            PasswordStage(self.sign_in),
            RegistrationTokenStage(clock, registration_tokens),
            *([] if self.captcha is None else [CaptchaStage(self.captcha)]),
            ThreepidStage(EMAIL_IDENTITY, EMAIL, mail.validations),
            ThreepidStage(MSISDN_IDENTITY, MSISDN, mail.validations),
            *(OAuthStage(name, _reset_page(config)) for name in STAGES),
            SSOStage(),
            TermsStage(self.policies),
        ]
        self.uia = UIA(clock, self.secret_text, database, uia_store, stages)
        self.audit = Audit(clock, AuditStore(database), keep_ms=config.sessions.audit.keep_for)
        self.resets = CrossSigningResets(clock, database, self.reset_store, self.uia)
        self.registration = Registration(
            clock,
            self.secret_text,
            database,
            self.store,
            self.profile_store,
            registration_tokens,
            mail.threepids,
            self.passwords,
            self.sessions,
            self.sign_in,
            self.uia,
            limiter,
            server_name=server_name,
            rules=_rules(config, takes_numbers=self.phones.is_possible(REGISTER)),
            reserved=self.application_services,
            plugins=self.plugins,
            consents=self.policy_consents,
            approvals=self.approvals,
        )
        self.registration_tokens = RegistrationTokens(
            clock, self.secret_text, database, registration_tokens
        )
        self.acting_services = ActingServices(
            self.application_services,
            self.store,
            self.device_store,
            self.registration,
            self.sign_in,
            self.sessions,
            self.validity,
            token_in_query=config.sessions.accept_token_in_query,
        )
        self.shared_secret_registration = SharedSecretRegistration(
            clock,
            self.secret_text,
            database,
            uia_store,
            self.registration,
            secret=config.registration.registration_shared_secret,
        )

    def get_node(self) -> int:
        """Return the number of this node among the connected ones; 0 if it is disconnected or the
        only one."""
        return 0 if self.other_nodes is None else self.other_nodes.node


def _reset_page(config: Config) -> str:
    base_url = (config.name.public_baseurl or "").rstrip("/")
    return f"{base_url}{ACCOUNT_PATH}?action={CROSS_SIGNING_RESET}"


def _passwords(config: Config, threads: Threads) -> Passwords:
    policy = config.sessions.password_config.policy
    return Passwords(
        threads,
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


def _lifetimes(config: Config) -> Lifetimes:
    return Lifetimes(
        session=config.sessions.session_lifetime,
        refreshable_access_token=config.sessions.refreshable_access_token_lifetime,
        refresh_token=config.sessions.refresh_token_lifetime,
        nonrefreshable_access_token=config.sessions.nonrefreshable_access_token_lifetime,
    )


def _captcha(config: Config, web: Web, plugins: Plugins) -> Captcha | None:
    captcha = config.captcha
    if not captcha.enable_registration_captcha:
        return None
    return Captcha(
        web,
        plugins,
        verify_url=captcha.recaptcha_siteverify_api,
        site_key=str(captcha.recaptcha_public_key),
        secret=captcha.recaptcha_private_key,
    )


def _gateway(config: Config) -> Gateway | None:
    sms_gateway = config.text_messages.sms_gateway
    if sms_gateway.url is None:
        return None
    token = [] if sms_gateway.token is None else [("Authorization", f"Bearer {sms_gateway.token}")]
    return Gateway(
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
        names_can_be_asked=not registration.inhibit_user_in_use_error,
    )
