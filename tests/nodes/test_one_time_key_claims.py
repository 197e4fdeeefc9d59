"""One-time keys claimed by fifty at once: by clients and another server, and on two processes with
one database."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers.server_pair import two_servers
from tests.helpers.server_process import RunningServer, ServerFiles

V3 = "/_matrix/client/v3"
CLAIMERS = 50
EACH = 2
KEYS = 80
"""Fewer than are claimed: the last ones get the fallback key."""
ALGORITHM = "signed_curve25519"
UNLIMITED = {"rc_key_requests": {"per_second": 100000, "burst_count": 100000}}


class Bob:
    """Has the keys, in two uploads."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._token = server.register("bob")
        who = server.request("GET", f"{V3}/account/whoami", token=self._token).json
        self.user_id = who["user_id"]
        self.requested = {self.user_id: {who["device_id"]: ALGORITHM}}
        fallback = {f"{ALGORITHM}:fallback": {"key": "fallback", "fallback": True}}
        self._upload({"fallback_keys": fallback})
        self.upload(0)

    def upload(self, *halves: int) -> None:
        """Upload half of the keys each; may be repeated."""
        for half in halves:
            names = range(half * KEYS // 2, (half + 1) * KEYS // 2)
            self._upload(
                {
                    "one_time_keys": {
                        f"{ALGORITHM}:k{number}": {"key": f"k{number}"} for number in names
                    }
                }
            )

    def catch_up(self) -> None:
        """Write at Bob's node. A node that writes has then seen all earlier writes of other nodes.
        Until then its count may include keys that another node has just given out."""
        path = f"{V3}/user/{self.user_id}/account_data/t.catch_up"
        reply = self._server.request("PUT", path, {}, token=self._token)
        assert reply.status == 200, reply.body

    def left(self) -> int:
        return int(self._upload({})["one_time_key_counts"][ALGORITHM])

    def _upload(self, keys: dict[str, Any]) -> Any:
        reply = self._server.request("POST", f"{V3}/keys/upload", keys, token=self._token)
        assert reply.status == 200, reply.body
        return reply.json


def claim(server: RunningServer, token: str, bob: Bob) -> list[str]:
    """Return the IDs of the keys that one claimer gets."""
    given = []
    for _ in range(EACH):
        reply = server.request(
            "POST",
            f"{V3}/keys/claim",
            {"one_time_keys": bob.requested, "timeout": 30_000},
            token=token,
        )
        assert reply.status == 200, reply.body
        assert reply.json["failures"] == {}
        ((keys,),) = (devices.values() for devices in reply.json["one_time_keys"].values())
        given += keys
    return given


def check_claims(servers: tuple[RunningServer, RunningServer]) -> None:
    """Fifty claimers use both, while more keys are uploaded and an upload is repeated."""
    bob = Bob(servers[0])
    tokens = [
        (server, server.register(f"claimer{number}")) for number, server in enumerate(servers)
    ]
    claimers = list(islice(cycle(tokens), CLAIMERS))
    with ThreadPoolExecutor(CLAIMERS + 1) as threads:
        claims = [
            threads.submit(claim, server, token, bob) for server, token in claimers[: CLAIMERS // 2]
        ]
        uploads = threads.submit(bob.upload, 0, 1, 0)
        claims += [
            threads.submit(claim, server, token, bob) for server, token in claimers[CLAIMERS // 2 :]
        ]
        uploads.result()
        given = [name for each in claims for name in each.result()]
    assert len(given) == CLAIMERS * EACH
    once = [name for name in given if not name.endswith(":fallback")]
    assert len(once) == len(set(once)), "a key was claimed twice"
    bob.catch_up()
    assert len(once) + bob.left() == KEYS, "a key was lost"
    while bob.left():
        (name, *_) = claim(*claimers[0], bob)
        assert name not in once
    bob.upload(0, 1)
    assert bob.left() == 0, "a claimed key does not come back"


@pytest.fixture(params=["sqlite", "postgresql"])
def config(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[SQLiteConfig | PostgresConfig]:
    if request.param == "sqlite":
        yield SQLiteConfig(str(tmp_path / "homeserver.db"))
    else:
        yield request.getfixturevalue("postgresql")


def test_concurrent_claims_of_clients_and_a_server_get_different_keys(
    tmp_path: Path, config: SQLiteConfig | PostgresConfig
) -> None:
    with two_servers(tmp_path, config) as (first, second):
        check_claims((first.server, second.server))


def test_concurrent_claims_on_two_processes_get_different_keys(
    tmp_path: Path, postgresql: PostgresConfig
) -> None:
    files = ServerFiles(tmp_path / "node", postgresql, UNLIMITED)
    try:
        check_claims((files.start(), files.start()))
    finally:
        files.end()
