"""A server process whose database is restored from a backup. The fixture is in
`tests/clients/conftest.py`."""

import shutil
from pathlib import Path

from storage.engine.database import PostgresConfig
from tests.helpers.databases import PostgresTemplates
from tests.helpers.programs import run_program
from tests.helpers.real_server import RealServer


class Restorable:
    """A server and a backup of its database."""

    def __init__(
        self,
        server: RealServer,
        folder: Path,
        templates: PostgresTemplates | None,
        used: PostgresConfig | None,
    ) -> None:
        self.server = server
        self._folder = folder
        self._templates = templates
        self._used = used
        self._copy: PostgresConfig | None = None

    def back_up(self) -> None:
        """Stop the server, back up its database, and start it again."""
        assert self.server.end() == 0
        if self._templates is None:
            shutil.copy(self._folder / "homeserver.db", self._folder / "backup.db")
        else:
            self._copy = self._templates.create(like=self._used)
        self.server.start()

    def restore(self, times: int) -> None:
        """Replace the database by the backup. `times`: how often the restore command runs."""
        assert self.server.end() == 0
        further = self._folder / "for_tests.yaml"
        if self._templates is None:
            for path in self._folder.glob("homeserver.db*"):
                path.unlink()
            shutil.copy(self._folder / "backup.db", self._folder / "homeserver.db")
        else:
            assert self._used is not None
            assert self._copy is not None
            used, copy = (str(each.connect["dbname"]) for each in (self._used, self._copy))
            further.write_text(further.read_text().replace(used, copy))
        for _ in range(times):
            words = (
                "after-restore",
                "-c",
                str(self._folder / "homeserver.yaml"),
                "-c",
                str(further),
            )
            done = run_program("homeserver", *words, timeout=120)
            assert (done.returncode, done.stderr) == (0, "")
        self.server.start()

    def close(self) -> None:
        if self._templates is not None and self._copy is not None:
            self._templates.drop(self._copy)
