"""Files that are on a list of SHA-256 sums, such as an incident team hands out, are given to
nobody.

    config: {path: /etc/mahalla/known-files}

Each line has a sum, in hexadecimal, and a name for what it is. The list is read again when it has
changed, and files that are here already are looked at again then.
"""

import hashlib
from pathlib import Path
from typing import Any

from homeserver.services.plugins.hooks import FileToCheck, hookimpl


class KnownFiles:
    def __init__(self, config: dict[str, Any]) -> None:
        self._path = Path(config["path"])
        self._changed = 0
        self._names: dict[str, str] = {}

    @hookimpl
    def get_file_rules(self) -> str:
        self._read()
        return str(self._changed)

    @hookimpl
    async def check_file(self, file: FileToCheck) -> str | None:
        hashed = hashlib.sha256()
        async for piece in file.pieces():
            hashed.update(piece)
        self._read()
        return self._names.get(hashed.hexdigest())

    def _read(self) -> None:
        changed = self._path.stat().st_mtime_ns
        if changed != self._changed:
            lines = (
                line.split(maxsplit=1)
                for line in self._path.read_text(encoding="utf-8").splitlines()
            )
            self._names = {words[0].lower(): words[1] for words in lines if len(words) == 2}
            self._changed = changed
