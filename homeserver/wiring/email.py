"""Wires e-mail and third-party identifiers."""

import re
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry
from twisted.internet.interfaces import IReactorTime

from homeserver.config.configuration import Config
from homeserver.config.email import EmailOptions, get_app_name, make_sender
from homeserver.http.rate_limits import RateLimiter
from homeserver.observe.metrics import MailMetrics, TextMessageMetrics
from homeserver.services.email.emails import EmailRenderer
from homeserver.services.email.outbox import Outbox
from homeserver.services.email.smtp import Relay, SMTPRelay
from homeserver.services.pages.branding import read_branding
from homeserver.services.pages.languages import Languages
from homeserver.services.threepids.email_validation import EmailValidation
from homeserver.services.threepids.validation import EMAIL, MSISDN, ThreepidValidation
from homeserver.services.tokens.secret_tokens import RandomBytes, SecretGenerator
from storage.email.outbox import EmailOutbox
from storage.engine.database import Database
from storage.engine.executors import Executor
from storage.threepids.threepids import ThreepidStore

MakeRelay = Callable[[EmailOptions], Relay]
"""Makes a connection to the configured e-mail server."""


class EmailParts:
    """The services for e-mail and third-party addresses. Public attributes are for the other parts
    and the router."""

    def __init__(
        self,
        *,
        config: Config,
        clock: IReactorTime,
        database: Database,
        limiter: RateLimiter,
        executor: Executor,
        make_relay: MakeRelay,
        random: RandomBytes,
        registry: CollectorRegistry,
    ) -> None:
        email = config.mail.email
        self.languages = Languages()
        self.branding = read_branding(config.pages.branding, config.server_name)
        self.threepids = ThreepidStore(database)
        self._executor = executor
        self.outbox = None
        if email.smtp_host is not None:
            renderer = EmailRenderer(
                server_name=config.server_name,
                sender=make_sender(email, config.server_name),
                app_name=get_app_name(email),
                branding=self.branding,
            )
            self.outbox = Outbox(
                clock=clock,
                store=EmailOutbox(database),
                renderer=renderer,
                relay=make_relay(email),
                executor=executor,
                metrics=MailMetrics(registry),
            )
        self.text_message_metrics = TextMessageMetrics(registry)
        allowed, next_hosts = (
            config.mail.allowed_local_3pids,
            config.mail.next_link_domain_whitelist,
        )
        secret_text = SecretGenerator(random)

        def now_ms() -> int:
            return int(clock.seconds() * 1000)

        self.validations = ThreepidValidation(
            now_ms=now_ms,
            database=database,
            store=self.threepids,
            secret_text=secret_text,
            allowed=None
            if allowed is None
            else {
                medium: [
                    re.compile(each.pattern, re.IGNORECASE)
                    for each in allowed
                    if each.medium == medium
                ]
                for medium in (EMAIL, MSISDN)
            },
            lifetimes_ms={
                EMAIL: email.validation_token_lifetime,
                MSISDN: config.text_messages.sms_gateway.code_lifetime,
            },
            next_link_hosts=None
            if next_hosts is None
            else frozenset(host.lower() for host in next_hosts),
        )
        self.validation = EmailValidation(
            now_ms=now_ms,
            database=database,
            store=self.threepids,
            validations=self.validations,
            secret_text=secret_text,
            outbox=self.outbox,
            limiter=limiter,
            base_url=config.name.public_baseurl or "",
            reveals_known=not config.mail.request_token_inhibit_3pid_errors,
        )

    def start(self) -> None:
        """Send the e-mails that an earlier run left, and from now on new ones."""
        if self.outbox is not None:
            self.outbox.wake()

    async def stop(self) -> None:
        """Stop sending."""
        if self.outbox is not None:
            await self.outbox.stop()
        await self._executor.close()

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.languages, self.validation)


def smtp_relay(email: EmailOptions) -> Relay:
    """Return the configured e-mail server."""
    assert email.smtp_host is not None
    return SMTPRelay(
        host=email.smtp_host,
        port=email.smtp_port or (465 if email.force_tls else 25),
        user=email.smtp_user,
        password=email.smtp_pass,
        implicit_tls=email.force_tls,
        tls_required=email.require_transport_security,
        starttls_enabled=email.enable_tls,
        tls_name=email.tlsname,
    )
