"""The server as people run it: a process of its own, on a free port of this machine, for tests with real clients.

with running_server(tmp_path, SQLiteConfig(…)) as server:
    …  # server.url; server.log() is what it wrote
"""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from storage.database import DatabaseConfig, PostgresConfig

SERVER_NAME = "localhost"
_SECONDS_TO_START = 60.0
_SECONDS_TO_END = 20.0
_UNLIMITED = {"per_second": 100_000, "burst_count": 100_000}


@dataclass(frozen=True)
class RealServer:
    """A server that runs."""

    url: str
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")


@contextmanager
def running_server(folder: Path, database: DatabaseConfig) -> Iterator[RealServer]:
    """A server from `init` and `run`, ended by SIGTERM; fails when it does not start, or does not end well."""
    port = _free_port()
    _run("init", SERVER_NAME, "--folder", str(folder))
    further = folder / "for_tests.yaml"
    further.write_text(yaml.safe_dump(_configuration(port, database)), encoding="utf-8")
    server = RealServer(f"http://127.0.0.1:{port}", folder / "log")
    arguments = ["-m", "homeserver", "run", "--config", str(folder / "homeserver.yaml"), "--config", str(further)]
    with server.log_file.open("wb") as log:
        process = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert code == 0, server.log()


def _configuration(port: int, database: DatabaseConfig) -> dict[str, object]:
    if isinstance(database, PostgresConfig):
        section = {"name": "psycopg2", "args": {**database.connect, "cp_max": 4}}
    else:
        section = {"name": "sqlite3", "args": {"database": database.path}}
    return {
        "database": section,
        "listeners": [
            {"port": port, "bind_addresses": ["127.0.0.1"], "type": "http", "resources": [{"names": ["client"]}]}
        ],
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "rc_message": _UNLIMITED,
        "rc_registration": _UNLIMITED,
        "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
        "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
        "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
    }


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "homeserver", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(server: RealServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        assert process.poll() is None, server.log()
        try:
            with urlopen(server.url + "/_matrix/client/versions", timeout=5) as answer:
                assert json.load(answer)["versions"]
                return
        except (URLError, OSError):
            time.sleep(0.05)
    raise AssertionError("the server did not start in time\n" + server.log())
