"""Letters that the server writes to people: what they say, in the reader's language, as text and as
HTML.

A letter names the server that it comes from, says why it was sent, and what to do if one did not
ask for it. It loads nothing from anywhere: nobody learns who reads it, and a logo comes with it.
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

LOGO: Final = "logo@letter"
"""By what a letter names the picture that comes with it."""
SHOWN_IN_LETTERS: Final = ("image/png", "image/jpeg", "image/gif")


class _Lines(EmailPolicy):
    """How headers become lines, where the library's own way does not do: of a link that is too long
    for a line it makes encoded words, which are no link to a mail client, and some subjects it
    begins with an empty line.
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


LINES: Final = _Lines(linesep="\r\n", max_line_length=75, cte_type="7bit")
"""75: an encoded word has no more characters, a line of an encoded text 76. spec: RFC 2047 section
2, RFC 2045 section 6.7"""


class Letter(msgspec.Struct, frozen=True):
    """What is to be said: a subject, some paragraphs, a link with the words on it, and a last
    remark."""

    subject: str
    paragraphs: tuple[str, ...]
    link: str | None = None
    link_text: str = ""
    remark: str = ""


class DigestMessage(msgspec.Struct, frozen=True):
    """A message that somebody missed."""

    sender: str
    time: str
    text: str
    link: str


class DigestRoom(msgspec.Struct, frozen=True):
    """A room in which somebody missed something."""

    name: str | None
    is_invite: bool
    link: str
    link_text: str
    messages: Sequence[DigestMessage]
    further: str
    """How many messages there are besides, in words."""


class Digest(msgspec.Struct, frozen=True):
    """A letter about what somebody missed, in the reader's language."""

    subject: str
    greeting: str
    rooms: Sequence[DigestRoom]
    further: str
    """In how many rooms besides something waits, in words."""
    remark: str
    unsubscribe_link: str
    unsubscribe_text: str


class Letters:
    """Writes letters."""

    def __init__(
        self, server_name: str, sender: str, app_name: str, branding: Branding | None = None
    ) -> None:
        """`sender`: the header `From`, an address with or without a name."""
        self._branding = branding or Branding(server_name)
        logo = self._branding.logo
        self._logo = logo if logo is not None and logo.content_type in SHOWN_IN_LETTERS else None
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

    def confirm_address(self, language: Language, link: str, purpose: str) -> Letter:
        """To somebody who is to show that an address is theirs. `purpose`: register, add,
        password."""
        _ = language.gettext
        name = {"server": self._server_name}
        if purpose == "password":
            return Letter(
                _("Set a new password on %(server)s") % name,
                (
                    _(
                        "Somebody, probably you, asked to set a new password for your account on %(server)s."
                    )
                    % name,
                    _(
                        "Open this page to show that it was you; then go on in the app where you began."
                    ),
                ),
                link,
                _("It was me"),
                _("If you did not ask for this, do nothing: your password stays as it is."),
            )
        return Letter(
            _("Confirm your e-mail address for %(server)s") % name,
            (
                _("This address was given for an account on %(server)s.") % name,
                _(
                    "Open this page to confirm that it is yours; then go on in the app where you began."
                ),
            ),
            link,
            _("Confirm the address"),
            _("If you did not ask for this, do nothing: the address will not be used."),
        )

    def already_registered(self, language: Language) -> Letter:
        """To somebody whose address was given for a new account although they have one."""
        _ = language.gettext
        name = {"server": self._server_name}
        return Letter(
            _("You already have an account on %(server)s") % name,
            (
                _(
                    "Somebody, perhaps you, tried to make an account on %(server)s with this address."
                )
                % name,
                _(
                    "The address already belongs to an account. Sign in with it, or set a new password in your app."
                ),
            ),
            remark=_("If it was not you, you need do nothing."),
        )

    def account_waits(self, language: Language, user_id: str, link: str) -> Letter:
        """To an administrator who is to approve new accounts."""
        _ = language.gettext
        name = {"server": self._server_name, "user": user_id}
        return Letter(
            _("A new account on %(server)s waits for approval") % name,
            (
                _(
                    "The account %(user)s was made on %(server)s, and cannot be used before an administrator approves it."
                )
                % name,
                _(
                    "Others may be waiting, too. While one waits, no further letters tell of the next for an hour."
                ),
            ),
            link,
            _("Look at the accounts that wait"),
        )

    def account_approved(self, language: Language, user_id: str, link: str) -> Letter:
        """To somebody whose account may be used from now on."""
        _ = language.gettext
        name = {"server": self._server_name, "user": user_id}
        return Letter(
            _("Your account on %(server)s is approved") % name,
            (_("From now on you can sign in as %(user)s, in an app of your choice.") % name,),
            link,
            _("How to sign in"),
        )

    def renew_account(
        self, language: Language, link: str, user_id: str, day: str, subject: str | None
    ) -> Letter:
        """To somebody whose account is good until a day. `subject`: the operator's words, with
        `%(app)s`."""
        _ = language.gettext
        about = {"user": user_id, "server": self._server_name, "day": day}
        return Letter(
            _("Renew your account on %(server)s") % about
            if subject is None
            else subject.replace("%(app)s", self._app_name),
            (
                _("Your account %(user)s is good until %(day)s.") % about,
                _("If you want to keep it, open this page and press the button there."),
            ),
            link,
            _("Renew the account"),
            _("After that day it cannot be used until it is renewed. Nothing of it is deleted."),
        )

    def write(self, language: Language, letter: Letter, recipient: str, now: float) -> bytes:
        """The letter as it goes over the wire. Raises ValueError for a recipient that is no
        address."""
        message = self._begin(letter.subject, recipient, now)
        self._set_text(message, language, "letter", {"letter": letter})
        return message.as_bytes()

    def write_digest(self, language: Language, digest: Digest, recipient: str, now: float) -> bytes:
        """As `write`, with what lets mail clients offer to end such letters (RFC 2369, RFC
        8058)."""
        message = self._begin(digest.subject, recipient, now)
        message["List-Unsubscribe"] = f"<{digest.unsubscribe_link}>"
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        self._set_text(message, language, "digest", {"digest": digest})
        return message.as_bytes()

    def _begin(self, subject: str, recipient: str, now: float) -> EmailMessage:
        message = EmailMessage(policy=LINES)
        message["Subject"] = _as_header(subject)
        message["From"] = self.sender
        message["To"] = Address(addr_spec=recipient)
        message["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
        message["Message-ID"] = make_msgid(domain=Address(addr_spec=address_of(self.sender)).domain)
        message["Auto-Submitted"] = "auto-generated"
        return message

    def _set_text(
        self, message: EmailMessage, language: Language, template: str, fields: Mapping[str, object]
    ) -> None:
        further = {
            "language": language,
            "app_name": self._app_name,
            "server": self._server_name,
            "brand": self._branding,
            "logo": "" if self._logo is None else f"cid:{LOGO}",
            **fields,
        }
        message.set_content(self._environment.get_template(f"{template}.txt").render(further))
        message.add_alternative(
            self._environment.get_template(f"{template}.html").render(further), subtype="html"
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
    """The text in one line, to be read as it stands. Names of people and rooms are what others
    chose: one that looks like an encoded word (RFC 2047) would be decoded when the header is set,
    to line ends, and so to headers and a text of their own, if it says so.
    """
    words = "".join(letter if letter.isprintable() else " " for letter in text).split()
    return " ".join(words).replace("=?", "= ?")


def address_of(sender: str) -> str:
    """The bare address in a header `From`. Raises ValueError where there is none."""
    message = EmailMessage(policy=LINES)
    message["From"] = sender
    addresses = message["From"].addresses
    if len(addresses) != 1 or not addresses[0].domain:
        raise ValueError(f"not an e-mail address: {sender!a}")
    return str(addresses[0].addr_spec)
