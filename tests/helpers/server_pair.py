"""Two server processes that reach each other by TLS, with a test certificate authority.

with two_neighbours(tmp_path) as (first, second):
    …  # first.url is for clients; first.name is its server name; first.kill(), first.start()
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from storage.engine.database import DatabaseConfig, SQLiteConfig
from tests.helpers.certificates import Authority
from tests.helpers.ports import free_port
from tests.helpers.server_process import RunningServer, ServerFiles

_UNLIMITED = {"per_second": 100000, "burst_count": 100000}


class PairedServer:
    """One of the two servers. It keeps its ports over restarts."""

    def __init__(
        self, folder: Path, authority: Authority, database: DatabaseConfig | None = None
    ) -> None:
        port, client_port = free_port(), free_port()
        certificate, key = authority.issue("localhost")
        self.name = f"localhost:{port}"
        self.url = f"http://127.0.0.1:{client_port}"
        self.port = client_port
        self._files = ServerFiles(
            folder,
            database or SQLiteConfig(str(folder / "homeserver.db")),
            {
                "server_name": self.name,
                "tls_certificate_path": str(certificate),
                "tls_private_key_path": str(key),
                "federation_custom_ca_list": [str(authority.path)],
                "ip_range_whitelist": ["127.0.0.1", "::1"],
                "rc_invites": {
                    "per_room": _UNLIMITED,
                    "per_user": _UNLIMITED,
                    "per_issuer": _UNLIMITED,
                },
                "rc_key_requests": _UNLIMITED,
                "rc_device_changes": _UNLIMITED,
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
            },
        )
        self.server: RunningServer = self._files.start(listeners=2)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self.server.kill()

    def start(self) -> None:
        """Start the server again on its existing data."""
        self.server = self._files.start(listeners=2)

    def kill_and_start(self) -> None:
        self.kill()
        self.start()

    def end(self) -> None:
        self._files.end()


@contextmanager
def two_servers(
    folder: Path, first: DatabaseConfig | None = None, second: DatabaseConfig | None = None
) -> Iterator[tuple[PairedServer, PairedServer]]:
    """Run two servers while the context is open, by default on SQLite."""
    authority = Authority(folder)
    with ExitStack() as stack:
        made = []
        for name, database in (("first", first), ("second", second)):
            neighbour = PairedServer(folder / name, authority, database)
            stack.callback(neighbour.end)
            made.append(neighbour)
        yield made[0], made[1]
