"""What the service is called in letters about what people missed."""

from pathlib import Path

import pytest

from storage.engine.database import Database
from tests.helpers.federated import say
from tests.push.test_letters import MAIL, MINUTE, pass_time, reader, room_of, start


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
def test_the_service_is_called_what_its_operator_calls_it(
    tmp_path: Path,
    sqlite_database: Database,
    app_name: str | None,
    brand: str | None,
    called: str,
    sender: str,
) -> None:
    """The sender is the server, whatever an app calls itself."""
    config = MAIL if app_name is not None else MAIL.replace(", app_name: Example", "")
    server = start(tmp_path, sqlite_database, config)
    alice, bob = (
        reader(server, data={} if brand is None else {"brand": brand}),
        server.register("bob"),
    )
    say(bob, room_of(alice, bob), "x")
    pass_time(server, 11 * MINUTE)
    [(_, letter)] = server.relay.emails
    assert str(letter["Subject"]).startswith(f"[{called}] ")
    assert str(letter["From"]) == f"{sender} <noreply@example.org>"
