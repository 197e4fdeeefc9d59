"""Runs the server as a separate process on a free port, for tests with real clients.

with running_server(tmp_path, SQLiteConfig(…)) as server:
    …  # server.url; server.log() returns its output
"""

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from storage.engine.database import DatabaseConfig, PostgresConfig
from tests.helpers.ports import free_port
from tests.helpers.programs import Program, start_program

SERVER_NAME = "localhost"
_SECONDS_TO_START = 180.0
_SECONDS_TO_END = 60.0
_UNLIMITED = {"per_second": 100_000, "burst_count": 100_000}


class RealServer:
    """A running server that can be killed and restarted on the same data."""

    def __init__(self, arguments: Sequence[str], port: int, log_file: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._arguments = arguments
        self._log_file = log_file
        self._process = self._spawn()

    def log(self) -> str:
        return self._log_file.read_text(encoding="utf-8")

    def kill(self) -> None:
        """Kill the process with SIGKILL and start it again at once."""
        self._process.kill()
        self._process.wait(_SECONDS_TO_END)
        self._process = self._spawn()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log()
            try:
                with urlopen(self.url + "/_matrix/client/versions", timeout=60) as answer:
                    assert json.load(answer)["versions"]
                    return
            except (URLError, OSError):
                time.sleep(0.05)
        raise AssertionError("the server did not start in time\n" + self.log())

    def start(self) -> None:
        """Start the server again after its end."""
        self._process = self._spawn()
        self.wait_until_ready()

    def end(self) -> int:
        """Stop the server with SIGTERM; return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def _spawn(self) -> Program:
        with self._log_file.open("ab") as log:
            return start_program("homeserver", *self._arguments, output=log)


@contextmanager
def running_server(
    folder: Path,
    database: DatabaseConfig,
    *,
    baseurl: bool = False,
    configuration: Mapping[str, object] | None = None,
) -> Iterator[RealServer]:
    """Run a server, made by `init`, while the context is open. Fails if it does not start, or does
    not stop cleanly on SIGTERM. `baseurl` sets its public URL; `configuration` adds options."""
    port = free_port()
    options = {
        **({"public_baseurl": f"http://127.0.0.1:{port}/"} if baseurl else {}),
        **(configuration or {}),
    }
    log = folder / "log"
    folder.mkdir(exist_ok=True)
    with log.open("ab") as made:
        initial = start_program(
            "homeserver", "init", SERVER_NAME, "--folder", str(folder), output=made
        )
    assert initial.wait(_SECONDS_TO_START) == 0, log.read_text(encoding="utf-8")
    further = folder / "for_tests.yaml"
    further.write_text(
        yaml.safe_dump({**_configuration(port, database), **options}), encoding="utf-8"
    )
    arguments = ["run", "--config", str(folder / "homeserver.yaml"), "--config", str(further)]
    server = RealServer(arguments, port, log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        code = server.end()
    assert code == 0, server.log()


def _configuration(port: int, database: DatabaseConfig) -> dict[str, object]:
    if isinstance(database, PostgresConfig):
        section = {"name": "psycopg2", "args": {**database.connect, "cp_max": 4}}
    else:
        section = {"name": "sqlite3", "args": {"database": database.path}}
    return {
        "database": section,
        "listeners": [
            {
                "port": port,
                "bind_addresses": ["127.0.0.1"],
                "type": "http",
                "resources": [{"names": ["client"]}],
            }
        ],
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "rc_message": _UNLIMITED,
        "rc_memberships": _UNLIMITED,
        "rc_registration": _UNLIMITED,
        "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
        "rc_presence": {"per_user": _UNLIMITED},
        "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
        "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
    }
