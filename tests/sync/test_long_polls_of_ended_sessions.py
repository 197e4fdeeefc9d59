"""Long polls of sessions that end while they wait: they return no later data.

spec: client-server-api#using-access-tokens
"""

import pytest

from tests.helpers.http import Pending
from tests.helpers.logins import another_device, log_in
from tests.helpers.room_actions import ok
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import STABLE, UNSTABLE, SlidingClient, a_list
from tests.helpers.sync_requests import Rooms, poll, token

V3 = "/_matrix/client/v3"
FORMS = ["sync", "events", UNSTABLE, STABLE]
rooms = Rooms()


def wait(user: User, form: str) -> Pending:
    """Start a long poll without new data."""
    match form:
        case "sync":
            return poll(user, token(user))
        case "events":
            return user.start("GET", f"{V3}/events?from={token(user)}&timeout=30000")
        case _ if form == UNSTABLE:
            client = SlidingClient(user, lists={"all": a_list([0, 9])})
            client.sync()
            return client.wait()
    body = {"lists": {"all": {"range": [0, 9], "timeline_limit": 1}}}
    pos = user.post(STABLE, body).json["pos"]
    return user.start("POST", STABLE, {**body, "pos": pos, "timeout": 30_000})


def run_reactor(server: TestServer) -> None:
    """Run the pending calls of the reactor."""
    for _ in range(4):
        server.clock.advance(0)


def end(server: TestServer, alice: User, phone: User, how: str) -> None:
    match how:
        case "logout":
            assert phone.post(f"{V3}/logout").status == 200
        case "logout/all":
            assert alice.post(f"{V3}/logout/all").status == 200
        case "an administrator":
            root = server.register("root")
            server.run(server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
            path = f"/_synapse/admin/v2/users/{phone.user_id}/devices/{phone.device_id}"
            assert root.delete(path).status == 200
        case _:
            ok(log_in(server, "alice", device_id=phone.device_id))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "how", ["logout", "logout/all", "an administrator", "the same device once more"]
)
def test_a_long_poll_ends_with_its_session(server: TestServer, form: str, how: str) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(bob, alice)
    phone = another_device(alice)
    waiting = wait(phone, form)
    assert not waiting.done
    end(server, alice, phone, how)
    rooms.say(bob, room, "after the end")
    run_reactor(server)
    assert (waiting.answer.status, waiting.answer.errcode) == (401, "M_UNKNOWN_TOKEN")
    assert b"after the end" not in waiting.answer.body


@pytest.mark.parametrize("form", FORMS)
def test_a_long_poll_ends_when_the_account_is_locked(server: TestServer, form: str) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(bob, alice)
    waiting = wait(alice, form)
    server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, locked=True))
    rooms.say(bob, room, "after the lock")
    run_reactor(server)
    assert (waiting.answer.status, waiting.answer.errcode) == (401, "M_USER_LOCKED")


@pytest.mark.parametrize("form", FORMS)
def test_long_polls_of_other_sessions_continue(server: TestServer, form: str) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(bob, alice)
    phone, tablet = another_device(alice), another_device(alice)
    waiting = wait(tablet, form)
    assert phone.post(f"{V3}/logout").status == 200
    run_reactor(server)
    if waiting.done:  # /sync reports the removed device
        assert waiting.answer.status == 200
        waiting = wait(tablet, form)
    rooms.say(bob, room, "still here")
    run_reactor(server)
    assert waiting.answer.status == 200
    assert b"still here" in waiting.answer.body


@pytest.mark.parametrize("form", FORMS)
def test_a_long_poll_survives_a_refresh_of_the_session(server: TestServer, form: str) -> None:
    """A client refreshes its session during its long poll."""
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(bob, alice)
    session = ok(log_in(server, "alice", refresh_token=True))
    waiting = wait(User(server, session), form)
    refreshed = server.post(f"{V3}/refresh", {"refresh_token": session["refresh_token"]}).json
    assert User(server, {**session, **refreshed}).get(f"{V3}/account/whoami").status == 200
    run_reactor(server)
    assert not waiting.done
    rooms.say(bob, room, "still here")
    run_reactor(server)
    assert waiting.answer.status == 200
    assert b"still here" in waiting.answer.body
