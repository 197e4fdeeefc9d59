"""An e-mail about missed messages, from a real server process to a mail server, and its
unsubscribe link."""

import re
import time
from collections.abc import Iterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from aiosmtpd.smtp import Envelope

from storage.engine.database import SQLiteConfig
from tests.helpers.mail_servers import mail_server
from tests.helpers.server_process import OPEN, RunningServer, ServerFiles

SECONDS = 60.0
V3 = "/_matrix/client/v3"
BASE = "https://matrix.example.org"


class Mailbox:
    """Accepts every e-mail."""

    def __init__(self) -> None:
        self.letters: list[EmailMessage] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        letter = message_from_bytes(envelope.content, policy=default)
        assert isinstance(letter, EmailMessage)
        self.letters.append(letter)
        return "250 OK"

    def wait(self, number: int) -> EmailMessage:
        """Return the e-mail with that number as soon as it has arrived."""
        deadline = time.monotonic() + SECONDS
        while len(self.letters) <= number:
            assert time.monotonic() < deadline, "the letter did not come"
            time.sleep(0.05)
        return self.letters[number]


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def server(tmp_path: Path, mailbox: Mailbox) -> Iterator[RunningServer]:
    with mail_server(mailbox) as port:
        email = {
            "smtp_host": "127.0.0.1",
            "smtp_port": port,
            "enable_notifs": True,
            "notif_delay_before_mail": "0s",
        }
        further = {**OPEN, "public_baseurl": BASE, "email": email}
        files = ServerFiles(
            tmp_path / "server", SQLiteConfig(str(tmp_path / "homeserver.db")), further
        )
        try:
            yield files.start()
        finally:
            files.end()


def text_of(letter: EmailMessage) -> str:
    plain = letter.get_body(("plain",))
    assert plain is not None
    return str(plain.get_content())


def post_form(server: RunningServer, path: str, fields: dict[str, str]) -> tuple[int, str]:
    connection = server.connect()
    connection.request(
        "POST", path, urlencode(fields), {"Content-Type": "application/x-www-form-urlencoded"}
    )
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_an_email_arrives_and_its_link_unsubscribes(
    server: RunningServer, mailbox: Mailbox
) -> None:
    body = {"client_secret": "secret", "email": "alice@example.com", "send_attempt": 1}
    sid = server.request("POST", f"{V3}/register/email/requestToken", body).json["sid"]
    [link] = re.findall(rf"{BASE}(/\S+)", text_of(mailbox.wait(0)))
    fields = {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}
    assert post_form(server, urlsplit(link).path, fields)[0] == 200
    auth = {
        "type": "m.login.email.identity",
        "threepid_creds": {"sid": sid, "client_secret": "secret"},
    }
    registration = {"username": "alice", "password": "wonderland", "auth": auth}
    alice = server.request("POST", f"{V3}/register", registration).json["access_token"]
    bob = server.register("bob")
    answer = server.request(
        "POST", f"{V3}/createRoom", {"preset": "public_chat", "name": "Чойхона"}, token=bob
    )
    room_id = answer.json["room_id"]
    assert server.request("POST", f"{V3}/join/{room_id}", {}, token=alice).status == 200
    message = {"msgtype": "m.text", "body": "Ассалому алайкум, ўртоқ!"}
    assert (
        server.request(
            "PUT", f"{V3}/rooms/{room_id}/send/m.room.message/1", message, token=bob
        ).status
        == 200
    )

    letter = mailbox.wait(1)
    assert letter["To"] == "alice@example.com"
    assert letter["Subject"] == "[Matrix] Message from bob in Чойхона"
    assert "Ассалому алайкум, ўртоқ!" in text_of(letter)
    assert letter["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    one_click = str(letter["List-Unsubscribe"]).strip("<>")
    assert one_click.startswith(f"{BASE}/_mahalla/unsubscribe?")
    status, page = post_form(
        server, one_click.removeprefix(BASE), {"List-Unsubscribe": "One-Click"}
    )
    assert status == 200
    assert "You will no longer receive these e-mails" in page
    assert server.request("GET", f"{V3}/pushers", token=alice).json == {"pushers": []}
