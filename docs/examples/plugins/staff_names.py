"""A plug-in that refuses accounts: names of the form `first.last` only, and none that sound like an
office."""

import re
from collections.abc import Sequence

from homeserver.services.plugins.hooks import hookimpl


class StaffNames:
    """`offices`: words that no name may have."""

    def __init__(self, config: dict[str, object]) -> None:
        offices = config.get("offices", [])
        assert isinstance(offices, list)
        self._offices = {str(word) for word in offices}

    @hookimpl
    def check_registration(
        self, username: str | None, emails: Sequence[str], address: str
    ) -> str | None:
        if username is None or not re.fullmatch(r"[a-z]+\.[a-z]+", username):
            return "Your user name has to be first.last"
        if self._offices & set(username.split(".")):
            return "This name belongs to an office; ask the registry"
        return None
