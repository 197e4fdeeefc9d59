"""E-mails about missed messages: a server that sends them, and a user who receives them."""

from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from federation.protocol.ids import RoomID
from storage.engine.database import Database
from tests.helpers.clocks import settle
from tests.helpers.email_addresses import add_email
from tests.helpers.federated_rooms import create_room
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
    server = TestServer(folder, database, config, **options)
    server.app.pushers.start()
    settle(server)
    return server


def set_email_pusher(user: User, address: str = "alice@example.com", **further: Any) -> Any:
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
    """Return Alice, who has e-mail notifications on; the e-mail that confirmed her address is
    discarded."""
    alice = server.register("alice")
    add_email(server, alice)
    assert set_email_pusher(alice, **further).status == 200
    server.relay.emails.clear()
    settle(server)
    return alice


def create_shared_room(alice: User, bob: User, **options: Any) -> RoomID:
    room_id = create_room(bob, **options)
    assert alice.post(f"{V3}/join/{room_id}").status == 200
    return room_id


def plain_and_html(letter: EmailMessage) -> tuple[str, str]:
    plain, html = letter.get_body(("plain",)), letter.get_body(("html",))
    assert plain is not None
    assert html is not None
    return plain.get_content(), html.get_content()


def unsubscribe_link(letter: EmailMessage) -> str:
    header = str(letter["List-Unsubscribe"])
    assert letter["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    link = header.strip("<>").replace("\n", "").replace(" ", "")
    assert link in plain_and_html(letter)[0]
    parts = urlsplit(link)
    assert (parts.scheme, parts.netloc) == ("https", "matrix.example.org")
    return f"{parts.path}?{parts.query}"
