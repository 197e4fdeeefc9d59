"""Logins with a password."""

from typing import Any

from tests.helpers.http import Answer
from tests.helpers.keys import V3
from tests.helpers.room_actions import ok
from tests.helpers.server import TestServer, User


def password_auth(user: str, password: str = "wonderland") -> dict[str, Any]:
    """Return the body of a login, which is also the `auth` of a request that needs the password.

    `user`: a localpart or a user ID.
    """
    return {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user},
        "password": password,
    }


def log_in(
    server: TestServer,
    user: str,
    password: str = "wonderland",
    *,
    ip: str = "127.0.0.1",
    **more: Any,
) -> Answer:
    """Log in with a password. `more`: further fields of the request."""
    return server.post(f"{V3}/login", {**password_auth(user, password), **more}, ip=ip)


def another_device(
    user: User, device_id: str | None = None, *, server: TestServer | None = None
) -> User:
    """Sign the user in on a new device, or again on a given one.

    `server`: the server to sign in at, if it is not the one of the user's session.
    """
    server = server or user.server
    device = {} if device_id is None else {"device_id": device_id}
    return User(server, ok(log_in(server, user.user_id, **device)))
