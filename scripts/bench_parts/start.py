"""Measures the CPU of a start of the server on SQLite, until it listens.

Prints the best and the median of several starts with a new database, of several starts with a
database that holds users, rooms and messages, and of several runs of a command that needs no
database.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import yaml

from bench_parts import processes
from tests.helpers.databases import copy_sqlite, make_sqlite_template, open_inline
from tests.helpers.ports import free_port
from tests.helpers.room_actions import create, join, say
from tests.helpers.server import TestServer

SERVER_NAME = "example.org"
USERS, ROOMS, MESSAGES = 50, 50, 40
"""The number of users, of rooms, and of messages in each room."""
LISTENING = b"listening on"
READY_WITHIN = 60.0


class StartFailed(Exception):
    """The server did not start. The text is its log."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench start", description="Measure the CPU of a start until it listens."
    )
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args(arguments).rounds
    with TemporaryDirectory(prefix="mahalla-bench-") as name:
        folder = Path(name)
        _run("init", SERVER_NAME, "--folder", name)
        filled = folder / "filled.db"
        fill(folder / "filling", filled)
        new, old, command = [], [], []
        for number in range(rounds + 1):
            new.append(measure_start(folder, folder / f"new{number}.db"))
            old.append(measure_start(folder, filled))
            command.append(measure_command("version"))
    # the first of each compiles modules, and fills the system's page cache
    show("start with a new database", new[1:])
    show(f"start with {USERS} users, {ROOMS} rooms, {ROOMS * MESSAGES} messages", old[1:])
    show("the command `version`", command[1:])


def show(name: str, seconds: Sequence[float]) -> None:
    """Print a line of the report."""
    best, middle = min(seconds) * 1000, median(seconds) * 1000
    sys.stdout.write(f"{name:<50} {best:>6.0f} ms (median {middle:.0f})\n")


def fill(folder: Path, database: Path) -> None:
    """Make a database with users, rooms and messages."""
    folder.mkdir()
    copied = copy_sqlite(make_sqlite_template(folder), folder)
    server = TestServer(folder, open_inline(copied), server_name=SERVER_NAME)
    users = [server.register(f"user{number}") for number in range(USERS)]
    for number in range(ROOMS):
        creator, guest = users[number % USERS], users[(number + 1) % USERS]
        room_id = create(creator, preset="public_chat")
        join(guest, room_id)
        for text in range(MESSAGES):
            say(creator, room_id, f"message {text}")
    server.run(server.app.database.close())
    Path(copied.path).rename(database)


def measure_start(folder: Path, database: Path) -> float:
    """Return the seconds of CPU of one start until the server listens."""
    config = folder / "start.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "server_name": SERVER_NAME,
                "listeners": [
                    {
                        "port": free_port(),
                        "bind_addresses": ["127.0.0.1"],
                        "type": "http",
                        "resources": [{"names": ["client", "federation"]}],
                    }
                ],
                "database": {"name": "sqlite3", "args": {"database": str(database)}},
                "signing_key_path": str(folder / f"{SERVER_NAME}.signing.key"),
                "media_store_path": str(folder / "media"),
            }
        )
    )
    log = folder / "start.log"
    with _server(config, log) as process:
        until = time.monotonic() + READY_WITHIN
        while LISTENING not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > until:
                raise StartFailed(log.read_text(errors="replace"))
            time.sleep(0.005)
        return processes.cpu_seconds(process.pid)


def measure_command(*words: str) -> float:
    """Return the seconds of CPU of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _run(*words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "homeserver", *words],
        check=True,
        stdout=subprocess.DEVNULL,
        env=_environment(),
    )


@contextmanager
def _server(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "homeserver", "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _environment() -> Mapping[str, str]:
    """Return the environment of a service, in which Python keeps compiled modules."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


if __name__ == "__main__":
    main(sys.argv[1:])
