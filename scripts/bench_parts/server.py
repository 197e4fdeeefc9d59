"""The measured server: its configuration, its process and its database."""

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import psycopg2
import yaml
from psycopg2.extensions import make_dsn
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater

from bench_parts.connection import RequestFailed, connect
from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers import postgres

READY_WITHIN = 60
ENDED_WITHIN = 30
UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}
NO_LIMITS: Mapping[str, object] = {
    "rc_message": UNLIMITED,
    "rc_memberships": UNLIMITED,
    "rc_registration": UNLIMITED,
    "rc_login": {"address": UNLIMITED, "account": UNLIMITED, "failed_attempts": UNLIMITED},
    "rc_joins": {"local": UNLIMITED, "remote": UNLIMITED},
    "rc_joins_per_room": UNLIMITED,
    "rc_room_creation": UNLIMITED,
    "rc_search": UNLIMITED,
    "rc_key_requests": UNLIMITED,
    "rc_claimed_keys": UNLIMITED,
    "rc_device_changes": UNLIMITED,
    "rc_to_device_to_new_servers": UNLIMITED,
    "rc_to_device_bytes": {"per_second": 1_000_000_000, "burst_count": 1_000_000_000},
    "rc_user_directory": UNLIMITED,
    "rc_receipts": UNLIMITED,
    "rc_typing": UNLIMITED,
}


class ServerFailed(Exception):
    """The server did not start, or has exited. The text contains the end of its log."""


@contextmanager
def running_postgres() -> Iterator[tuple[int, Mapping[str, object]]]:
    """Start PostgreSQL, durable as in production. Yield its process ID and the server's
    `database.args`."""
    postgres.prepare()
    try:
        parameters = postgres.connection_parameters(postgres.DURABLE)
        connection = psycopg2.connect(
            make_dsn(**{name: str(value) for name, value in parameters.items()})
        )
        connection.autocommit = True
        connection.cursor().execute(
            "CREATE DATABASE bench TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        connection.close()
        yield postgres.server_pid(), {**parameters, "dbname": "bench"}
    finally:
        postgres.end()


class Server:
    """A server process that can be started and stopped repeatedly in the same folder."""

    def __init__(
        self, reactor: EPollReactor, folder: Path, postgres_args: Mapping[str, object] | None
    ) -> None:
        self._reactor = reactor
        self._folder = folder
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._database: Mapping[str, object] = (
            {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}}
            if postgres_args is None
            else {"name": "psycopg2", "args": postgres_args}
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._run_command("init", "bench.example", "--folder", str(folder))

    @property
    def storage(self) -> SQLiteConfig | PostgresConfig:
        """The configuration for opening its database while it is stopped."""
        arguments = (
            dict(self._database["args"]) if isinstance(self._database["args"], Mapping) else {}
        )
        if self._database["name"] == "sqlite3":
            return SQLiteConfig(str(arguments["database"]))
        return PostgresConfig(arguments)

    @property
    def pid(self) -> int:
        """The process ID. Raises ServerFailed if the server does not run."""
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed(f"the server has ended:\n{self._end_of_log()}")
        return self._process.pid

    async def start(self, *, cheap_passwords: bool) -> float:
        """Start the server, and wait until it responds. Return the seconds that this took."""
        config = {
            "server_name": "bench.example",
            "listeners": [
                {
                    "port": self.port,
                    "bind_addresses": ["127.0.0.1"],
                    "type": "http",
                    "resources": [{"names": ["client"], "compress": False}],
                }
            ],
            "database": self._database,
            "signing_key_path": str(next(self._folder.glob("*signing.key"))),
            "media_store_path": str(self._folder / "media"),
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "push": {"allow_plain_http": True},
            "ip_range_whitelist": ["127.0.0.1"],
            **({"bcrypt_rounds": 4} if cheap_passwords else {}),
            **NO_LIMITS,
        }
        path = self._folder / "bench.yaml"
        path.write_text(yaml.safe_dump(config))
        started = perf_counter()
        process = self._process = self._launch(path)
        while True:
            try:
                connection = await connect(self._reactor, self.port)
                await connection.request("GET", "/_matrix/client/versions")
            except (ConnectError, OSError, RequestFailed) as error:
                if process.poll() is not None or perf_counter() - started > READY_WITHIN:
                    raise ServerFailed(
                        f"the server did not start ({error}):\n{self._end_of_log()}"
                    ) from error
                await deferLater(self._reactor, 0.01)
            else:
                took = perf_counter() - started
                connection.close()
                return took

    def stop(self) -> None:
        """Stop the server if it runs."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(ENDED_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _launch(self, config: Path) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "homeserver", "run", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _run_command(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "homeserver", *arguments], capture_output=True, check=False
        )
        if done.returncode:
            raise ServerFailed(done.stderr.decode())

    def _end_of_log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else "(no log)"
