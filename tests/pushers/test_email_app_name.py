"""The name of the service in e-mails about missed messages."""

from pathlib import Path

import pytest

from storage.engine.database import Database
from tests.helpers.clocks import pass_time
from tests.helpers.room_actions import say
from tests.pushers.test_missed_message_emails import MAIL, MINUTE, reader, room_of, start


@pytest.mark.parametrize(
    ("app_name", "brand", "called", "sender"),
    [
        ("Example", "Chat", "Example", "Example"),
        ("Example", None, "Example", "Example"),
        (None, "Chat", "Chat", "Matrix"),
        (None, "Postmaster <root@example.com>", "Postmaster <root@example.com>", "Matrix"),
        (None, None, "Matrix", "Matrix"),
    ],
)
def test_an_email_uses_the_configured_name_of_the_service(
    tmp_path: Path,
    sqlite_database: Database,
    app_name: str | None,
    brand: str | None,
    called: str,
    sender: str,
) -> None:
    """The `From` header names the server, even if the app sets a brand."""
    config = MAIL if app_name is not None else MAIL.replace(", app_name: Example", "")
    server = start(tmp_path, sqlite_database, config)
    alice, bob = (
        reader(server, data={} if brand is None else {"brand": brand}),
        server.register("bob"),
    )
    say(bob, room_of(alice, bob), "x")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert str(letter["Subject"]).startswith(f"[{called}] ")
    assert str(letter["From"]) == f"{sender} <noreply@example.org>"
