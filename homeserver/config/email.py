"""Options about sending e-mail, and about the e-mail addresses and telephone numbers of users."""

from dataclasses import dataclass
from email.message import EmailMessage
from typing import Final

from federation.protocol.ids import host_of
from homeserver.config.option import Duration, Secret, option, section

APP_NAME: Final = "Matrix"


def _check_base_url(url: str) -> str | None:
    if not url.startswith(("https://", "http://")) or not url.isprintable() or " " in url:
        return "must start with http:// or https://"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailOptions:
    """E-mails to users: address validation, password reset, missed messages."""

    smtp_host: str | None = option(
        None,
        "The mail server that accepts our e-mails. `null`: this server sends none.",
        example="mail.example.org",
    )
    smtp_port: int | None = option(
        None,
        "The port of the mail server. `null`: 465 with `force_tls`, otherwise 25.",
        minimum=1,
        maximum=65535,
        example="587",
    )
    smtp_user: str | None = option(
        None, "The user name at the mail server. `null`: no authentication."
    )
    smtp_pass: Secret | None = option(None, "The password at the mail server.")
    force_tls: bool = option(False, "Uses TLS from the first byte, as on port 465.")
    require_transport_security: bool = option(
        False, "Sends nothing unless the mail server offers STARTTLS."
    )
    enable_tls: bool = option(True, "Uses STARTTLS if it is offered.")
    tlsname: str | None = option(
        None, "The name in the mail server's certificate, if it is not `smtp_host`."
    )
    notif_from: str | None = option(
        None,
        "The sender; `%(app)s` stands for `app_name`. By default noreply at `server_name`.",
        example='"%(app)s <noreply@example.org>"',
    )
    app_name: str | None = option(
        None,
        "The name of the service in e-mails. `null`: Matrix; in the subject of e-mails about "
        "missed messages, the name of the app with which they were switched on, if known.",
        example="Example Chat",
    )
    enable_notifs: bool = option(
        False,
        "Sends e-mails about missed messages to people who subscribed to them. Needs "
        "`public_baseurl` for the unsubscribe link.",
    )
    notif_for_new_users: bool = option(
        True, "With `enable_notifs`: subscribes new accounts with an e-mail address."
    )
    notif_delay_before_mail: Duration = option(
        Duration(600_000),
        "How long a message must be unread before an e-mail mentions it.",
        minimum=0,
    )
    client_base_url: str = option(
        "https://matrix.to",
        "The target of links in e-mails: matrix.to, or the address of an Element Web.",
        example="https://chat.example.org",
        check=_check_base_url,
    )
    validation_token_lifetime: Duration = option(
        Duration(3_600_000),
        "How long the link in an e-mail is valid.",
        minimum=60_000,
        example="1h",
    )


def get_app_name(email: EmailOptions) -> str:
    """Return the name of the service in e-mails that no app requested."""
    return email.app_name or APP_NAME


def make_sender(email: EmailOptions, server_name: str) -> str:
    """Return the `From` header of e-mails. Raises ValueError if `notif_from` is not valid."""
    try:
        sender = (email.notif_from or f"%(app)s <noreply@{host_of(server_name)}>") % {
            "app": get_app_name(email)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("knows only `%(app)s`; write `%%` for a percent sign") from error
    message = EmailMessage()
    message["From"] = sender
    if len(message["From"].addresses) != 1 or not message["From"].addresses[0].domain:
        raise ValueError(f"must be an e-mail address, with or without a name, not {sender!r}")
    return sender


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedThreepidOptions:
    """A pattern of addresses that users may add."""

    medium: str = option(
        "email",
        "`email`, or `msisdn` for telephone numbers. `pattern` is compared with a telephone number "
        "as digits that begin with the country code.",
    )
    pattern: str = option(
        ".*", "A regular expression that the address must match.", example="'^[^@]+@example\\.org$'"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MailOptions:
    """E-mail."""

    email: EmailOptions = section(EmailOptions, "Sending e-mail.")
    registrations_require_3pid: tuple[str, ...] = option(
        (),
        "The addresses that everybody must confirm at registration: `email`, `msisdn` (a "
        "telephone number), or both.",
        example="[email]",
    )
    allowed_local_3pids: tuple[AllowedThreepidOptions, ...] | None = option(
        None,
        "Rules that the users' e-mail addresses and telephone numbers must match. `null`: all "
        "are allowed.",
        example="[{medium: email, pattern: '^[^@]+@example\\.org$'}]",
    )
    enable_3pid_changes: bool = option(
        True, "Lets people add and remove their own addresses and telephone numbers."
    )
    next_link_domain_whitelist: tuple[str, ...] | None = option(
        None,
        "The hosts to which people can be redirected after they confirmed an address. (The "
        "client that requests the e-mail chooses the URL, `next_link`.) `[]`: none. `null`: all, "
        "but a page first shows the host.",
        example="[element.example.org]",
    )
    request_token_inhibit_3pid_errors: bool = option(
        False,
        "Does not reveal whether an address or a telephone number belongs to an account, except in "
        "a message to it.",
    )
