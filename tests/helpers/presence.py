"""Requests about presence."""

from typing import Any

from tests.helpers.room_actions import V3, ok
from tests.helpers.server import User


def set_presence(user: User, presence: str, **more: Any) -> None:
    """Set the user's presence. `more`: further fields, such as `status_msg`."""
    assert (
        ok(user.put(f"{V3}/presence/{user.user_id}/status", {"presence": presence, **more})) == {}
    )


def get_presence(user: User, of: User | str) -> Any:
    """Return the presence of a user as another user sees it."""
    name = of if isinstance(of, str) else of.user_id
    return ok(user.get(f"{V3}/presence/{name}/status"))
