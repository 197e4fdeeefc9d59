"""E-mails about missed messages: a server that sends them, and a user who receives them."""

from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storage.engine.database import Database
from tests.helpers.clocks import settle
from tests.helpers.email_addresses import add_email
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"
EMAIL_CONFIG = """
public_baseurl: https://matrix.example.org/
email: {smtp_host: mail.example.org,
  notif_from: "%(app)s <noreply@example.org>", app_name: Example, enable_notifs: true}
rc_3pid_validation: *unlimited
"""
MINUTE, HOUR = 60, 3600


def start_with_email(
    folder: Path, database: Database, config: str = EMAIL_CONFIG, **options: Any
) -> TestServer:
    """Start a server that sends e-mails about missed messages."""
    server = TestServer(folder, database, config, **options)
    server.app.pushers.start()
    settle(server)
    return server


def set_email_pusher(user: User, address: str = "alice@example.com", **further: Any) -> Any:
    """Enable e-mails about missed messages; return the response."""
    body = {
        "kind": "email",
        "app_id": "m.email",
        "pushkey": address,
        "app_display_name": "Email Notifications",
        "device_display_name": address,
        "lang": "en",
        "data": {},
        **further,
    }
    return user.post(f"{V3}/pushers/set", body)


def register_email_reader(server: TestServer, **further: Any) -> User:
    """Register Alice, who has e-mail notifications on. Removes the e-mail that validated her
    address."""
    alice = server.register("alice")
    add_email(server, alice)
    assert set_email_pusher(alice, **further).status == 200
    server.relay.emails.clear()
    settle(server)
    return alice


def plain_and_html(message: EmailMessage) -> tuple[str, str]:
    """Return both bodies of an e-mail."""
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert html is not None
    return plain.get_content(), html.get_content()


def unsubscribe_link(message: EmailMessage) -> str:
    """Return the path and query of the link that turns the e-mails off."""
    header = str(message["List-Unsubscribe"])
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    link = header.strip("<>").replace("\n", "").replace(" ", "")
    assert link in plain_and_html(message)[0]
    parts = urlsplit(link)
    assert (parts.scheme, parts.netloc) == ("https", "matrix.example.org")
    return f"{parts.path}?{parts.query}"
