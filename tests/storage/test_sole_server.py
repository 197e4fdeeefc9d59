"""One server at a time on an SQLite file."""

import subprocess
import sys
from pathlib import Path

import pytest

from storage.sole_server import DatabaseInUse, SoleServer
from storage.sqlite import SQLiteConfig
from tests.helpers.programs import ROOT

CLAIM = """
import sys
from storage.sole_server import DatabaseInUse, SoleServer
from storage.sqlite import SQLiteConfig
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
    SoleServer.claim(SQLiteConfig(str(path))).give_up()  # a process that ended without a word keeps nobody out


def test_the_lock_is_nobody_elses(tmp_path: Path) -> None:
    first = SoleServer.claim(SQLiteConfig(str(tmp_path / "homeserver.db")))
    assert (tmp_path / "homeserver.db-lock").stat().st_mode & 0o777 == 0o600
    first.give_up()


def test_without_a_folder_there_is_no_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SoleServer.claim(SQLiteConfig(str(tmp_path / "nowhere" / "homeserver.db")))
    assert not issubclass(DatabaseInUse, OSError)
