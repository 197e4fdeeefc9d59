"""E-mails as the bytes that mail servers see. Some parse them less generously than Python does."""

import re
from email import message_from_bytes
from email.policy import default

from homeserver.services.email.emails import Digest, DigestMessage, DigestRoom, EmailRenderer
from homeserver.services.pages.languages import Languages

NAME = "Совещание руководителей отделов министерства по вопросам бюджета будущего года"
LINK = (
    "https://matrix.a-ministry-with-a-long-name.example.org/"
    + "below/" * 20
    + "unsubscribe?pusher=1&signature="
    + "a" * 32
)
TEXT = "Уважаемые коллеги! " * 20


def written() -> bytes:
    message = DigestMessage("Ольга Михайловна", "2026-11-29 18:32 UTC", TEXT, LINK)
    room = DigestRoom(NAME, False, LINK, "Открыть комнату", [message], "")
    digest = Digest(f"[{NAME}] {NAME}", "", [room], "", "", LINK, "Больше не писать")
    letters = EmailRenderer(
        server_name="example.org", sender=f"{NAME} <noreply@example.org>", app_name=NAME
    )
    return letters.render_digest(Languages().get("ru"), digest, "alice@example.com", 0)


def test_the_unsubscribe_header_is_neither_encoded_nor_folded() -> None:
    assert f"\r\nList-Unsubscribe: <{LINK}>\r\n".encode() in written()


def test_encoded_words_and_lines_keep_the_limits_of_mail() -> None:
    letter = written()
    words = re.findall(rb"=\?\S*\?=", letter)
    assert len(words) > 5
    assert max(map(len, words)) <= 75
    lines = [line for line in letter.split(b"\r\n") if not line.startswith(b"List-Unsubscribe:")]
    assert max(map(len, lines)) <= 76
    read = message_from_bytes(letter, policy=default)
    assert read["Subject"] == f"[{NAME}] {NAME}"
    plain = read.get_body(("plain",))
    assert plain is not None
    assert TEXT.strip() in plain.get_content()
