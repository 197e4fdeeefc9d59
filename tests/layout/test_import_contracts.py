"""The import contracts of `setup.cfg` refuse what they are there to refuse.

Each test lays out a small tree with the project's package names and checks it with the project's
own contracts.
"""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EMPTY = {f"{package}/__init__.py": "" for package in ("homeserver", "federation", "storage")} | {
    "homeserver/services/__init__.py": "",
    "homeserver/services/login/__init__.py": "",
    "homeserver/services/rooms/__init__.py": "",
    "federation/rooms/__init__.py": "",
    "storage/state/__init__.py": "",
}


def check(tree: Path, files: dict[str, str], *contracts: str) -> subprocess.CompletedProcess[str]:
    """Write the files below `tree`; run `lint-imports` there with the named contracts."""
    for name, text in (EMPTY | files).items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    project = configparser.ConfigParser()
    project.read(ROOT / "setup.cfg")
    config = configparser.ConfigParser()
    for section in ("importlinter", *(f"importlinter:contract:{name}" for name in contracts)):
        config[section] = project[section]
    with (tree / "setup.cfg").open("w") as file:
        config.write(file)
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=tree,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_two_services_may_not_import_each_other(tmp_path: Path) -> None:
    done = check(
        tmp_path,
        {
            "homeserver/services/login/sessions.py": "import homeserver.services.rooms.membership",
            "homeserver/services/rooms/membership.py": (
                "import homeserver.services.rooms.forget_on_leave"
            ),
            "homeserver/services/rooms/forget_on_leave.py": (
                "import homeserver.services.login.tokens"
            ),
            "homeserver/services/login/tokens.py": "",
        },
        "siblings",
    )

    assert done.returncode == 1
    assert "cycles are allowed in homeserver.services." in done.stdout


@pytest.mark.parametrize(
    "folder", ["homeserver/services/rooms", "federation/rooms", "storage/state"]
)
def test_two_files_of_one_folder_may_not_import_each_other(tmp_path: Path, folder: str) -> None:
    package = folder.replace("/", ".")
    done = check(
        tmp_path,
        {
            f"{folder}/members.py": f"import {package}.servers",
            f"{folder}/servers.py": f"import {package}.members",
        },
        "siblings",
    )

    assert done.returncode == 1
    assert f"cycles are allowed in {package}." in done.stdout


def test_imports_that_run_in_one_direction_pass(tmp_path: Path) -> None:
    done = check(
        tmp_path,
        {
            "homeserver/services/rooms/membership.py": "import homeserver.services.login.sessions",
            "homeserver/services/login/sessions.py": "import federation.rooms.state",
            "federation/rooms/state.py": "import storage.state.trees",
            "storage/state/trees.py": "",
        },
        "siblings",
        "packages",
    )

    assert done.returncode == 0, done.stdout


def test_storage_may_not_import_a_service(tmp_path: Path) -> None:
    done = check(
        tmp_path,
        {
            "storage/state/trees.py": "import homeserver.services.login.sessions",
            "homeserver/services/login/sessions.py": "",
        },
        "packages",
    )

    assert done.returncode == 1
    assert "storage is not allowed to import homeserver" in done.stdout
