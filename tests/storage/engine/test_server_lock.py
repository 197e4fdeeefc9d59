"""One server at a time on an SQLite file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.engine.server_lock import DatabaseInUse, ServerLock
from storage.engine.sqlite import SQLiteConfig
from tests.helpers.programs import ROOT

CLAIM_PROGRAM = """
import sys
from storage.engine.server_lock import DatabaseInUse, ServerLock
from storage.engine.sqlite import SQLiteConfig
try:
    ServerLock.acquire(SQLiteConfig(sys.argv[1]))
except DatabaseInUse as error:
    print(error)
else:
    print("claimed")
"""


def claim_in_another_process(path: Path) -> str:
    """Return the output of another process that claims the file."""
    command = [sys.executable, "-c", CLAIM_PROGRAM, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_a_second_server_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "homeserver.db"
    first = ServerLock.acquire(SQLiteConfig(str(path)))
    assert f"another server uses the SQLite file {path} already" in claim_in_another_process(path)
    assert claim_in_another_process(tmp_path / "other.db") == "claimed\n"
    first.release()
    assert claim_in_another_process(path) == "claimed\n"
    ServerLock.acquire(
        SQLiteConfig(str(path))
    ).release()  # a process that ended without releasing the lock does not hold it


def test_the_lock_file_is_accessible_to_its_owner_only(tmp_path: Path) -> None:
    first = ServerLock.acquire(SQLiteConfig(str(tmp_path / "homeserver.db")))
    assert (tmp_path / "homeserver.db-lock").stat().st_mode & 0o777 == 0o600
    first.release()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ServerLock.acquire(SQLiteConfig(str(tmp_path / "nowhere" / "homeserver.db")))
    assert not issubclass(DatabaseInUse, OSError)


def test_a_lock_file_created_by_root_belongs_to_the_database_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator runs `after-restore` as root; the server then runs as another user."""
    path = tmp_path / "homeserver.db"
    path.touch()
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda _, user, group: given.append((user, group)))
    ServerLock.acquire(SQLiteConfig(str(path))).release()
    assert given == [(path.stat().st_uid, path.stat().st_gid)]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ServerLock.acquire(SQLiteConfig(str(path))).release()
    assert len(given) == 1


def test_a_symbolic_link_as_lock_file_is_refused(tmp_path: Path) -> None:
    """As root, the program gives the file to the owner of the database, who could have put the link
    there."""
    other = tmp_path / "other"
    other.touch()
    (tmp_path / "homeserver.db-lock").symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        ServerLock.acquire(SQLiteConfig(str(tmp_path / "homeserver.db")))
