"""The texts of the server's e-mails, in the reader's language, as plain text and HTML.

An e-mail names the server and says why it was sent. If somebody else may have caused it, it also
says what to do in that case. It loads nothing from the network, so that reading it is not tracked;
the logo is attached.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime, make_msgid
from typing import Final

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from homeserver.services.pages.branding import Branding
from homeserver.services.pages.languages import Language

LOGO: Final = "logo@email"
"""Content-ID of the attached logo."""
LOGO_TYPES: Final = ("image/png", "image/jpeg", "image/gif")
"""Image types that mail clients show."""


class _HeaderFolding(EmailPolicy):
    """Folds headers where the library's way does not work. The library turns a link that is too
    long for a line into encoded words, which mail clients do not take as a link, and starts some
    subjects with an empty line.
    """

    def fold_binary(self, name: str, value: str) -> bytes:
        match name:
            case "List-Unsubscribe":
                return f"{name}: {value}{self.linesep}".encode()
            case "Subject":
                subject = Header(value, maxlinelen=self.max_line_length, header_name=name)
                return f"{name}: {subject.encode(linesep=self.linesep)}{self.linesep}".encode()
            case _:
                return super().fold_binary(name, value)


EMAIL_POLICY: Final = _HeaderFolding(linesep="\r\n", max_line_length=75, cte_type="7bit")
"""75 characters is the maximum of an encoded word; a line of an encoded text may have 76. spec:
RFC 2047 section 2, RFC 2045 section 6.7"""


class EmailContent(msgspec.Struct, frozen=True):
    """The content of an e-mail: a subject, paragraphs, a link with its text, and a footer."""

    subject: str
    paragraphs: tuple[str, ...]
    link: str | None = None
    link_text: str = ""
    footer: str = ""


class DigestMessage(msgspec.Struct, frozen=True):
    """An unread message."""

    sender: str
    time: str
    text: str
    link: str


class DigestRoom(msgspec.Struct, frozen=True):
    """A room with unread messages, or an invite."""

    name: str | None
    is_invite: bool
    link: str
    link_text: str
    messages: Sequence[DigestMessage]
    more_messages: str
    """A text with the number of further messages."""


class Digest(msgspec.Struct, frozen=True):
    """The content of an e-mail about unread messages, in the reader's language."""

    subject: str
    greeting: str
    rooms: Sequence[DigestRoom]
    more_rooms: str
    """A text with the number of further rooms."""
    footer: str
    unsubscribe_link: str
    unsubscribe_text: str


class EmailRenderer:
    """Composes e-mails and renders them as MIME messages."""

    def __init__(
        self, *, server_name: str, sender: str, app_name: str, branding: Branding | None = None
    ) -> None:
        """`sender`: the `From` header, an address with or without a name."""
        self._branding = branding or Branding(server_name)
        logo = self._branding.logo
        self._logo = logo if logo is not None and logo.content_type in LOGO_TYPES else None
        self._server_name = server_name
        self._app_name = app_name
        self.sender = sender
        self._environment = Environment(
            loader=PackageLoader("homeserver.services.email"),
            autoescape=lambda name: name is not None and name.endswith(".html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def confirm_address(self, language: Language, link: str, purpose: str) -> EmailContent:
        """Compose an e-mail that asks to confirm an address. `purpose`: register, add, password."""
        _ = language.gettext
        name = {"server": self._server_name}
        if purpose == "password":
            return EmailContent(
                _("Set a new password on %(server)s") % name,
                (
                    _(
                        "Somebody, probably you, asked to set a new password for your account on "
                        "%(server)s."
                    )
                    % name,
                    _(
                        "Open this page to confirm that it was you; then continue in the app where "
                        "you started."
                    ),
                ),
                link,
                _("It was me"),
                _("If you did not ask for this, do nothing: your password stays as it is."),
            )
        return EmailContent(
            _("Confirm your e-mail address for %(server)s") % name,
            (
                _("This address was given for an account on %(server)s.") % name,
                _(
                    "Open this page to confirm that it is yours; then continue in the app where "
                    "you started."
                ),
            ),
            link,
            _("Confirm the address"),
            _("If you did not ask for this, do nothing: the address will not be used."),
        )

    def already_registered(self, language: Language) -> EmailContent:
        """Compose an e-mail for an address that was given for a new account and already belongs to
        one."""
        _ = language.gettext
        name = {"server": self._server_name}
        return EmailContent(
            _("You already have an account on %(server)s") % name,
            (
                _(
                    "Somebody, perhaps you, tried to create an account on %(server)s with this "
                    "address."
                )
                % name,
                _(
                    "The address already belongs to an account. Sign in with it, or set a new "
                    "password in your app."
                ),
            ),
            footer=_("If it was not you, you do not need to do anything."),
        )

    def account_pending(self, language: Language, user_id: str, link: str) -> EmailContent:
        """Compose an e-mail that asks an administrator to approve a new account."""
        _ = language.gettext
        name = {"server": self._server_name, "user": user_id}
        return EmailContent(
            _("A new account on %(server)s is waiting for approval") % name,
            (
                _(
                    "The account %(user)s was created on %(server)s. It cannot be used until an "
                    "administrator approves it."
                )
                % name,
                _(
                    "Other accounts may be waiting too. While one is waiting, we send no e-mail "
                    "about further ones for an hour."
                ),
            ),
            link,
            _("Show the waiting accounts"),
        )

    def account_approved(self, language: Language, user_id: str, link: str) -> EmailContent:
        """Compose an e-mail to a user whose account was approved."""
        _ = language.gettext
        name = {"server": self._server_name, "user": user_id}
        return EmailContent(
            _("Your account on %(server)s is approved") % name,
            (_("You can now sign in as %(user)s in an app of your choice.") % name,),
            link,
            _("How to sign in"),
        )

    def renew_account(
        self, language: Language, link: str, user_id: str, day: str, subject: str | None
    ) -> EmailContent:
        """Compose an e-mail to a user whose account expires on a day. `subject`: the configured
        subject, in which `%(app)s` is replaced."""
        _ = language.gettext
        about = {"user": user_id, "server": self._server_name, "day": day}
        return EmailContent(
            _("Renew your account on %(server)s") % about
            if subject is None
            else subject.replace("%(app)s", self._app_name),
            (
                _("Your account %(user)s is valid until %(day)s.") % about,
                _("If you want to keep it, open this page and press the button there."),
            ),
            link,
            _("Renew the account"),
            _("After that day it cannot be used until it is renewed. Nothing of it is deleted."),
        )

    def render(
        self, language: Language, content: EmailContent, recipient: str, now: float
    ) -> bytes:
        """Render an e-mail as a MIME message. Raises ValueError if the recipient is not a valid
        address."""
        message = self._build_headers(content.subject, recipient, now)
        self._set_body(message, language, "notice", {"notice": content})
        return message.as_bytes()

    def render_digest(
        self, language: Language, digest: Digest, recipient: str, now: float
    ) -> bytes:
        """Render a digest as `render` does, with headers that let mail clients offer to unsubscribe
        (RFC 2369, RFC 8058)."""
        message = self._build_headers(digest.subject, recipient, now)
        message["List-Unsubscribe"] = f"<{digest.unsubscribe_link}>"
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        self._set_body(message, language, "digest", {"digest": digest})
        return message.as_bytes()

    def _build_headers(self, subject: str, recipient: str, now: float) -> EmailMessage:
        message = EmailMessage(policy=EMAIL_POLICY)
        message["Subject"] = _as_header(subject)
        message["From"] = self.sender
        message["To"] = Address(addr_spec=recipient)
        message["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
        message["Message-ID"] = make_msgid(domain=Address(addr_spec=address_of(self.sender)).domain)
        message["Auto-Submitted"] = "auto-generated"
        return message

    def _set_body(
        self, message: EmailMessage, language: Language, template: str, fields: Mapping[str, object]
    ) -> None:
        headers = {
            "language": language,
            "app_name": self._app_name,
            "server": self._server_name,
            "brand": self._branding,
            "logo": "" if self._logo is None else f"cid:{LOGO}",
            **fields,
        }
        message.set_content(self._environment.get_template(f"{template}.txt").render(headers))
        message.add_alternative(
            self._environment.get_template(f"{template}.html").render(headers), subtype="html"
        )
        if self._logo is not None:
            html = message.get_body(("html",))
            assert isinstance(html, EmailMessage)
            kind = self._logo.content_type.partition("/")[2]
            html.add_related(
                self._logo.content, "image", kind, cid=f"<{LOGO}>", disposition="inline"
            )
        message["Content-Language"] = language.tag


def _as_header(text: str) -> str:
    """Return the text on one line, without encoded words. Other people choose names of users and
    rooms. A name that looks like an encoded word (RFC 2047) would be decoded when the header is
    set, and could add line ends and so headers and a body.
    """
    words = "".join(char if char.isprintable() else " " for char in text).split()
    return " ".join(words).replace("=?", "= ?")


def address_of(sender: str) -> str:
    """Return the bare address in a `From` header. Raises ValueError if there is none."""
    message = EmailMessage(policy=EMAIL_POLICY)
    message["From"] = sender
    addresses = message["From"].addresses
    if len(addresses) != 1 or not addresses[0].domain:
        raise ValueError(f"not an e-mail address: {sender!a}")
    return str(addresses[0].addr_spec)
