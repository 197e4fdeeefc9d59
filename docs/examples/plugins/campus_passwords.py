"""Checks passwords of the people of a campus, from a file that another program writes.

Each line of the file has, separated by colons: the number of the person, the name, the displayed
name, the salt and the hash of the password (scrypt, both in hexadecimal digits).
"""

import hashlib
import hmac
from pathlib import Path

from twisted.internet.threads import deferToThread

from homeserver.services.plugins.hooks import Person, hookimpl


class CampusPasswords:
    """Reads the file for each sign-in: it is short."""

    def __init__(self, config: dict[str, object]) -> None:
        self._path = Path(str(config["path"]))

    @hookimpl
    async def check_password(self, name: str, password: str) -> Person | None:
        for line in self._path.read_text(encoding="utf-8").splitlines():
            number, known, shown, salt, wanted = line.split(":")
            if known == name:
                # hashing takes long, so it is done in a thread
                given = await deferToThread(
                    hashlib.scrypt, password.encode(), salt=bytes.fromhex(salt), n=2**14, r=8, p=1
                )
                if hmac.compare_digest(given.hex(), wanted):
                    return Person(
                        source="campus", subject=number, localpart=known, display_name=shown
                    )
        return None
