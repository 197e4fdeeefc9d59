"""Runs the server as an operator does: a process of `python -m homeserver run`, reached over a real
socket.

`ServerFiles` writes the configuration, keys and database into a folder. `start()` starts a process
and returns when it listens. `stop()` sends SIGTERM, `kill()` sends SIGKILL, both by process ID.
"""

import http.client
import json as json_module
import os
import re
import signal
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from homeserver.commands.init_files import write_init_files
from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers.programs import Program, start_program

SECONDS_TO_START = 180.0
SECONDS_TO_END = 60.0
SECONDS_TO_ANSWER = 60.0
"""Generous timeouts, in seconds, for busy machines. Tests do not measure time by them."""

_LISTENING = re.compile(r'listening on 127\.0\.0\.1:(\d+)[\n"]')
_UNLIMITED = {"per_second": 100000, "burst_count": 100000}
OPEN: Mapping[str, object] = {
    "server_name": "localhost",
    "signing_key_path": "localhost.signing.key",
    "listeners": [
        {"port": 0, "bind_addresses": ["127.0.0.1"], "resources": [{"names": ["client"]}]}
    ],
    "enable_registration": True,
    "enable_registration_without_verification": True,
    "filter_timeline_limit": 100000,
    "rc_message": _UNLIMITED,
    "rc_memberships": _UNLIMITED,
    "rc_registration": _UNLIMITED,
    "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
    "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
    "rc_joins_per_room": _UNLIMITED,
    "rc_room_creation": _UNLIMITED,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json_module.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float = SECONDS_TO_ANSWER) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    json: Any = None,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send one request on a connection. Raises the errors of the socket."""
    lines = dict(headers or {})
    if token is not None:
        lines["Authorization"] = f"Bearer {token}"
    connection.request(method, path, None if json is None else json_module.dumps(json), lines)
    answer = connection.getresponse()
    body = answer.read()
    return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)


class RunningServer:
    """A running server process."""

    def __init__(
        self, process: Program, log: Path, seconds_to_start: float, ports: list[int]
    ) -> None:
        self.process = process
        self.log = log
        self.seconds_to_start = seconds_to_start
        self.ports = ports

    def connect(self, timeout: float = SECONDS_TO_ANSWER) -> http.client.HTTPConnection:
        """Open a connection to the first TCP listener."""
        return http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=timeout)

    def connect_tls(self, certificate: Path, number: int = 0) -> http.client.HTTPSConnection:
        """Open a connection to a TLS listener."""
        context = ssl.create_default_context(cafile=str(certificate))
        return http.client.HTTPSConnection(
            "localhost", self.ports[number], timeout=SECONDS_TO_ANSWER, context=context
        )

    def request(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        token: str | None = None,
        seconds: float = SECONDS_TO_ANSWER,
    ) -> Reply:
        """Send one request on a new connection."""
        connection = self.connect(seconds)
        try:
            return exchange(connection, method, path, json, token=token)
        finally:
            connection.close()

    def register(self, name: str) -> str:
        """Register a user; return the access token."""
        body = {"username": name, "password": "wonderland", "auth": {"type": "m.login.dummy"}}
        reply = self.request("POST", "/_matrix/client/v3/register", body)
        assert reply.status == 200, reply.body
        return str(reply.json["access_token"])

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS_TO_END)

    def stop(self) -> int:
        """Stop the process with SIGTERM; return its exit code. Raises `subprocess.TimeoutExpired`
        if it does not end."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        return self.process.wait(SECONDS_TO_END)


class ServerFiles:
    """A folder with configuration, key and database, and the processes that were started on it."""

    def __init__(
        self,
        folder: Path,
        database: SQLiteConfig | PostgresConfig,
        further: Mapping[str, object] | None = None,
    ) -> None:
        self.folder = folder
        self.config = folder / "homeserver.yaml"
        folder.mkdir(exist_ok=True)
        write_init_files(folder, "localhost", None, os.urandom)
        section: dict[str, object]
        if isinstance(database, SQLiteConfig):
            section = {"name": "sqlite3", "args": {"database": database.path}}
        else:
            section = {"name": "psycopg2", "args": {**database.connect, "cp_min": 1, "cp_max": 3}}
        self.config.write_text(
            yaml.safe_dump({**OPEN, "database": section, **(further or {})}), encoding="utf-8"
        )
        self._started: list[RunningServer] = []

    def launch(self, *arguments: str) -> tuple[Program, Path]:
        """Start a command of the server. Return its process and the path of its log."""
        log = self.folder / f"log.{time.monotonic_ns()}"
        with log.open("wb") as file:
            process = start_program("homeserver", *arguments, "-c", str(self.config), output=file)
        return process, log

    def start(self, listeners: int = 1) -> RunningServer:
        """Start the server, and wait until it listens on so many TCP ports."""
        began = time.monotonic()
        process, log = self.launch("run")
        server = RunningServer(process, log, 0.0, [])
        self._started.append(server)
        while len(server.ports) < listeners:
            if process.poll() is not None or time.monotonic() - began > SECONDS_TO_START:
                code = process.poll()
                self.end()  # the caller gets no server to stop
                raise AssertionError(
                    f"the server did not start (exit code {code}): {log.read_text()}"
                )
            time.sleep(0.005)
            server.ports = [int(port) for port in _LISTENING.findall(log.read_text())]
        server.seconds_to_start = time.monotonic() - began
        return server

    def end(self) -> None:
        """Kill all processes that still run."""
        for server in self._started:
            if server.process.poll() is None:
                server.kill()
