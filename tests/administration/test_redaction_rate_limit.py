"""The limit of administrators' redactions, where it is configured."""

from pathlib import Path

import pytest

from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from tests.helpers.room_actions import create, ok, redact, refused, say
from tests.helpers.server import TestServer, User


async def make_admin(server: TestServer, user: User) -> None:
    store = AccountStore(server.app.database)
    await server.app.database.write("set_flags", store.set_flags, user.user_id, is_admin=True)


@pytest.mark.parametrize("configured", [True, False])
async def test_administrators_have_a_limit_of_their_own(
    tmp_path: Path, sqlite_database: Database, configured: bool
) -> None:
    config = "rc_admin_redaction: {per_second: 0.001, burst_count: 3}\n" if configured else ""
    server = TestServer(tmp_path, sqlite_database, config)
    admin, bob = server.register("admin"), server.register("bob")
    await make_admin(server, admin)
    for user, limited in ((admin, configured), (bob, False)):
        room = create(user)
        said = [say(user, room, "x") for _ in range(4)]
        for event_id in said[:3]:
            ok(redact(user, room, event_id))
        answer = redact(user, room, said[3])
        if limited:
            assert refused(answer) == (429, "M_LIMIT_EXCEEDED")
        else:
            ok(answer)
        say(user, room, "messages are another matter")
