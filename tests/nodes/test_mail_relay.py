"""E-mails reach a real mail server: in plain text, with STARTTLS, with implicit TLS, with a
password."""

import hmac
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult, Envelope
from msgspec.structs import replace

from homeserver.services.email.smtp import DeliveryFailed, SMTPRelay
from tests.helpers.certificates import Authority
from tests.helpers.mail_servers import mail_server

EMAIL = EmailMessage(policy=SMTP)
EMAIL["Subject"] = "Подтверждение"
EMAIL["From"] = "noreply@example.org"
EMAIL["To"] = "alice@example.com"
EMAIL.set_content("Oʻzbekiston\n.\nend")
USER, PASSWORD = "xabarchi-oʻzbek", "maxfiy soʻz пароль"
SENDER, RECIPIENT = "noreply@example.org", "alice@example.com"


class Mailbox:
    """Accepts e-mails, except for some recipients."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def handle_RCPT(
        self, _server: Any, _session: Any, envelope: Envelope, address: str, _options: Any
    ) -> str:
        if address.startswith("nobody@"):
            return "550 no such user"
        if address.startswith("full@"):
            return "452 mailbox full"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        return "250 OK"


def authenticate(
    _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any
) -> AuthResult:
    return AuthResult(success=(data.login, data.password) == (b"mahalla", b"secret"), handled=False)


Start = Callable[..., int]


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def start(mailbox: Mailbox) -> Iterator[Start]:
    """Start a mail server on a free loopback port; stop it at the end."""
    with ExitStack() as started:

        def start_one(handler: Mailbox = mailbox, **options: Any) -> int:
            return started.enter_context(mail_server(handler, **options))

        yield start_one


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate of a mail server for localhost that the relay trusts."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def deliver(relay: SMTPRelay, recipient: str = RECIPIENT) -> None:
    relay.deliver(SENDER, recipient, EMAIL.as_bytes())


def test_an_e_mail_arrives_unchanged(start: Start, mailbox: Mailbox) -> None:
    deliver(SMTPRelay("127.0.0.1", start()))
    [envelope] = mailbox.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == (SENDER, [RECIPIENT])
    assert isinstance(envelope.content, bytes)
    assert envelope.content.rstrip() == EMAIL.as_bytes().rstrip()


def test_starttls_is_used_if_it_is_offered(
    start: Start, mailbox: Mailbox, context: ssl.SSLContext
) -> None:
    port = start(tls_context=context, require_starttls=True)
    deliver(SMTPRelay("127.0.0.1", port, tls_required=True, tls_name="localhost"))
    assert len(mailbox.envelopes) == 1
    with pytest.raises(DeliveryFailed) as refused:
        deliver(SMTPRelay("127.0.0.1", port, starttls_enabled=False))
    assert not refused.value.permanent


def test_a_certificate_for_another_name_is_not_trusted(
    start: Start, mailbox: Mailbox, context: ssl.SSLContext
) -> None:
    port = start(tls_context=context)
    with pytest.raises(DeliveryFailed) as refused:
        deliver(SMTPRelay("127.0.0.1", port, tls_name="mail.example.org"))
    assert not refused.value.permanent
    assert not mailbox.envelopes


def test_nothing_is_sent_in_plain_text_if_tls_is_required(start: Start, mailbox: Mailbox) -> None:
    with pytest.raises(DeliveryFailed, match="require_transport_security"):
        deliver(SMTPRelay("127.0.0.1", start(), tls_required=True))
    assert not mailbox.envelopes


def test_implicit_tls_is_used(start: Start, mailbox: Mailbox, context: ssl.SSLContext) -> None:
    port = start(ssl_context=context)
    deliver(SMTPRelay("127.0.0.1", port, implicit_tls=True, tls_name="localhost"))
    assert len(mailbox.envelopes) == 1
    with pytest.raises(DeliveryFailed):
        deliver(SMTPRelay("127.0.0.1", port, implicit_tls=True, tls_name="mail.example.org"))


def test_the_server_authenticates_at_the_mail_server(
    start: Start, mailbox: Mailbox, context: ssl.SSLContext
) -> None:
    port = start(tls_context=context, authenticator=authenticate, auth_required=True)
    deliver(SMTPRelay("127.0.0.1", port, user="mahalla", password="secret", tls_name="localhost"))
    assert len(mailbox.envelopes) == 1
    for wrong in ("wrong", "xato soʻz", ""):
        with pytest.raises(DeliveryFailed) as refused:
            deliver(
                SMTPRelay("127.0.0.1", port, user="mahalla", password=wrong, tls_name="localhost")
            )
        assert not refused.value.permanent


class Challenging(Mailbox):
    """Authenticates its one user by challenge and response."""

    async def auth_CRAM__MD5(self, server: Any, _arguments: Any) -> AuthResult:
        answer = await server.challenge_auth(b"<1@mail.example.org>")
        digest = hmac.new(PASSWORD.encode(), b"<1@mail.example.org>", "md5").hexdigest()
        return AuthResult(success=answer == f"{USER} {digest}".encode(), handled=False)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
@pytest.mark.parametrize("tls_at_once", [False, True])
def test_credentials_that_are_not_ascii_are_accepted(
    start: Start, context: ssl.SSLContext, mechanism: str, tls_at_once: bool
) -> None:
    mailbox, asked = Challenging(), list[str]()

    def check(_server: Any, _session: Any, _envelope: Any, asked_for: str, data: Any) -> AuthResult:
        asked.append(asked_for)
        return AuthResult(
            success=(data.login, data.password) == (USER.encode(), PASSWORD.encode()), handled=False
        )

    others = {"PLAIN", "LOGIN", "CRAM-MD5"} - {mechanism}
    offered = {"auth_exclude_mechanism": others, "authenticator": check}
    if tls_at_once:
        port = start(mailbox, ssl_context=context, auth_require_tls=False, **offered)
    else:
        port = start(mailbox, tls_context=context, **offered)
    relay = SMTPRelay(
        "127.0.0.1", port, USER, PASSWORD, implicit_tls=tls_at_once, tls_name="localhost"
    )
    deliver(relay)
    assert len(mailbox.envelopes) == 1
    assert asked == ([] if mechanism == "CRAM-MD5" else [mechanism])
    with pytest.raises(DeliveryFailed, match="535"):
        deliver(replace(relay, password=PASSWORD + "ʼ"))


@pytest.mark.parametrize(
    ("recipient", "for_good"), [("nobody@example.com", True), ("full@example.com", False)]
)
def test_a_rejected_recipient_is_a_permanent_failure(
    start: Start, recipient: str, for_good: bool
) -> None:
    with pytest.raises(DeliveryFailed) as refused:
        deliver(SMTPRelay("127.0.0.1", start()), recipient)
    assert refused.value.permanent is for_good


def test_an_unreachable_mail_server_is_a_temporary_failure() -> None:
    with pytest.raises(DeliveryFailed) as refused:
        deliver(SMTPRelay("127.0.0.1", 1))
    assert not refused.value.permanent
