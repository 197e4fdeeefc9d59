"""This server and Synapse as processes that reach each other by TLS with a test certificate
authority.

    servers = InteropServers(tmp_path, python_of_synapse())
    ours, theirs = servers.start_ours(), servers.start_synapse()
    theirs.kill(); theirs.start()         # at any time
    ours.gate.cut(); ours.gate.mend()     # the connections of other servers to it
    ours.pass_time(); theirs.pass_time()  # advance the clock by `moved_clock.STEP` seconds

A server's name is `localhost:PORT`, where PORT is its gate's. `InteropServers.end()` ends all
processes by process ID.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import yaml

from federation.protocol.signing import encode_base64
from storage.engine.database import DatabaseConfig, SQLiteConfig
from tests.helpers.certificates import Authority
from tests.helpers.interop import InteropServer, until
from tests.helpers.ports import free_port
from tests.helpers.programs import ROOT, Program, start_program
from tests.helpers.server_process import ServerFiles
from tests.helpers.tcp_proxy import TcpProxy

Spawn = Callable[[IO[bytes]], subprocess.Popen[bytes] | Program]
"""Starts a server's process with this file as its output."""

MOVED_CLOCK = "tests.helpers.moved_clock"
SECONDS_TO_START = 300.0
SECONDS_TO_END = 60.0
_UNLIMITED = {"per_second": 100000, "burst_count": 100000}
_NO_LIMITS = {
    "rc_message": _UNLIMITED,
    "rc_memberships": _UNLIMITED,
    "rc_registration": _UNLIMITED,
    "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
    "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
    "rc_joins_per_room": _UNLIMITED,
    "rc_room_creation": _UNLIMITED,
    "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
    "rc_presence": {"per_user": _UNLIMITED},
}
_QUICK_TO_COME_BACK = {
    "destination_min_retry_interval": "1s",
    "destination_max_retry_interval": "1s",
    "destination_retry_multiplier": 1,
    "max_short_retries": 1,
    "max_long_retries": 1,
    "max_short_retry_delay": "1s",
    "max_long_retry_delay": "1s",
}
"""Short retry intervals. By default Synapse does not retry an unreachable server for ten
minutes."""


def python_of_synapse() -> Path | None:
    """Return the Python interpreter of the environment that scripts/synapse makes, or None."""
    named = os.environ.get("MAHALLA_SYNAPSE_PYTHON")
    path = Path(named) if named else ROOT / ".cache" / "synapse" / "bin" / "python"
    return path if path.exists() else None


class InteropProcess(InteropServer):
    """A running server that can be killed and restarted on the same data."""

    def __init__(self, gate: TcpProxy, client_port: int, folder: Path, spawn: Spawn) -> None:
        super().__init__(f"localhost:{gate.port}", client_port)
        self.gate = gate
        self.log = folder / "log"
        self._spawn = spawn
        self._process: subprocess.Popen[bytes] | Program | None = None

    @property
    def pid(self) -> int:
        """The process ID of the server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self.log.open("ab") as file:
            self._process = process = self._spawn(file)

        def answers() -> bool:
            assert process.poll() is None, self.log.read_text()[-5000:]
            try:
                return self.ask("GET", "/_matrix/client/versions").status == 200
            except OSError:
                return False

        until(answers, SECONDS_TO_START)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pass_time(self) -> None:
        """Advance the server's clock by `moved_clock.STEP` seconds. A restart resets the clock."""
        os.kill(self.pid, signal.SIGUSR2)

    def end(self) -> None:
        """Kill the process if it runs, and close the gate."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self.kill()
        self.gate.end()


class InteropServers:
    """Servers that trust the same certificate authority."""

    def __init__(self, folder: Path, synapse: Path) -> None:
        self._folder = folder
        self._synapse = synapse
        self._authority = Authority(folder)
        self._servers: list[InteropProcess] = []

    def start_ours(self, database: DatabaseConfig | None = None, **further: Any) -> InteropProcess:
        """Start this server, by default on SQLite."""
        client_port, port = free_port(), free_port()
        gate = TcpProxy(to=port)
        certificate, key = self._authority.issue("localhost")
        folder = self._folder / f"ours-{gate.port}"
        files = ServerFiles(
            folder,
            database or SQLiteConfig(str(folder / "homeserver.db")),
            {
                "server_name": f"localhost:{gate.port}",
                "tls_certificate_path": str(certificate),
                "tls_private_key_path": str(key),
                "federation_custom_ca_list": [str(self._authority.path)],
                "ip_range_whitelist": ["127.0.0.1", "::1"],
                "allow_public_rooms_over_federation": True,
                **_NO_LIMITS,
                "listeners": [
                    {
                        "port": client_port,
                        "bind_addresses": ["127.0.0.1"],
                        "resources": [{"names": ["client"]}],
                    },
                    {
                        "port": port,
                        "bind_addresses": ["127.0.0.1"],
                        "tls": True,
                        "resources": [{"names": ["federation"]}],
                    },
                ],
                **further,
            },
        )
        command = ["homeserver", "run", "-c", str(files.config)]
        return self._start(
            InteropProcess(
                gate,
                client_port,
                folder,
                lambda file: start_program(MOVED_CLOCK, *command, output=file),
            )
        )

    def start_synapse(self, **further: Any) -> InteropProcess:
        client_port, port = free_port(), free_port()
        gate = TcpProxy(to=port)
        certificate, key = self._authority.issue("localhost")
        folder = self._folder / f"synapse-{gate.port}"
        folder.mkdir()
        config = folder / "homeserver.yaml"
        settings = {
            "server_name": f"localhost:{gate.port}",
            "report_stats": False,
            "pid_file": str(folder / "pid"),
            "signing_key_path": str(folder / "signing.key"),
            "media_store_path": str(folder / "media"),
            "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
            "macaroon_secret_key": "m",
            "form_secret": "f",
            "tls_certificate_path": str(certificate),
            "tls_private_key_path": str(key),
            "federation_custom_ca_list": [str(self._authority.path)],
            "ip_range_blacklist": [],
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "allow_public_rooms_over_federation": True,
            "room_list_publication_rules": [{"action": "allow"}],
            "bcrypt_rounds": 4,
            # otherwise a repeated initial /sync gets a cached response
            "caches": {"sync_response_cache_duration": 0},
            "federation": _QUICK_TO_COME_BACK,
            **_NO_LIMITS,
            "listeners": [
                {
                    "port": client_port,
                    "bind_addresses": ["127.0.0.1"],
                    "type": "http",
                    "resources": [{"names": ["client"]}],
                },
                {
                    "port": port,
                    "bind_addresses": ["127.0.0.1"],
                    "type": "http",
                    "tls": True,
                    "resources": [{"names": ["federation"]}],
                },
            ],
            **further,
        }
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        # the same as `--generate-keys`, which is slower than the server's start
        (folder / "signing.key").write_text(f"ed25519 a_town {encode_base64(os.urandom(32))}\n")
        command = [
            str(self._synapse),
            "-P",
            str(ROOT / f"{MOVED_CLOCK.replace('.', '/')}.py"),
            "synapse.app.homeserver",
            "-c",
            str(config),
        ]

        def spawn(file: IO[bytes]) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

        return self._start(InteropProcess(gate, client_port, folder, spawn))

    def end(self) -> None:
        """Kill all servers."""
        for server in self._servers:
            server.end()

    def _start(self, server: InteropProcess) -> InteropProcess:
        self._servers.append(server)
        server.start()
        return server
