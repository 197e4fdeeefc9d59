"""One server at a time on an SQLite file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.engine.sole_server import DatabaseInUse, SoleServer
from storage.engine.sqlite import SQLiteConfig
from tests.helpers.programs import ROOT

CLAIM = """
import sys
from storage.engine.sole_server import DatabaseInUse, SoleServer
from storage.engine.sqlite import SQLiteConfig
try:
    SoleServer.claim(SQLiteConfig(sys.argv[1]))
except DatabaseInUse as error:
    print(error)
else:
    print("claimed")
"""


def claim_elsewhere(path: Path) -> str:
    """What another process is told."""
    command = [sys.executable, "-c", CLAIM, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_a_second_server_is_told_so_and_begins_when_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "homeserver.db"
    first = SoleServer.claim(SQLiteConfig(str(path)))
    assert f"another server uses the SQLite file {path} already" in claim_elsewhere(path)
    assert claim_elsewhere(tmp_path / "other.db") == "claimed\n"
    first.give_up()
    assert claim_elsewhere(path) == "claimed\n"
    SoleServer.claim(
        SQLiteConfig(str(path))
    ).give_up()  # a process that ended without a word keeps nobody out


def test_the_lock_is_nobody_elses(tmp_path: Path) -> None:
    first = SoleServer.claim(SQLiteConfig(str(tmp_path / "homeserver.db")))
    assert (tmp_path / "homeserver.db-lock").stat().st_mode & 0o777 == 0o600
    first.give_up()


def test_without_a_folder_there_is_no_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SoleServer.claim(SQLiteConfig(str(tmp_path / "nowhere" / "homeserver.db")))
    assert not issubclass(DatabaseInUse, OSError)


def test_the_lock_that_root_makes_is_the_server_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator runs `after-restore` as root, and the server as another user begins after
    that."""
    path = tmp_path / "homeserver.db"
    path.touch()
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda _, user, group: given.append((user, group)))
    SoleServer.claim(SQLiteConfig(str(path))).give_up()
    assert given == [(path.stat().st_uid, path.stat().st_gid)]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    SoleServer.claim(SQLiteConfig(str(path))).give_up()
    assert len(given) == 1


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """As root it gives the file to the database's owner, who could have put the link there."""
    other = tmp_path / "other"
    other.touch()
    (tmp_path / "homeserver.db-lock").symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        SoleServer.claim(SQLiteConfig(str(tmp_path / "homeserver.db")))
