"""Two servers as operators run them, each with its own name, TLS and an authority of their own
between them."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.own_town import OwnTown
from tests.helpers.ports import free_port
from tests.helpers.running import RunningServer


@pytest.fixture
def town(tmp_path: Path) -> Iterator[OwnTown]:
    town = OwnTown(tmp_path)
    yield town
    town.end()


def test_one_asks_the_other_for_its_keys_and_tells_them(town: OwnTown) -> None:
    north_port, south_port = free_port(), free_port()
    north = town.start(north_port)
    town.start(south_port)
    (told,) = north.request("GET", f"/_matrix/key/v2/query/localhost:{south_port}").json[
        "server_keys"
    ]
    assert sorted(told["signatures"]) == sorted(
        [f"localhost:{north_port}", f"localhost:{south_port}"]
    )
    assert north.stop() == 0


def test_without_leave_for_private_addresses_nobody_there_is_asked(town: OwnTown) -> None:
    north_port, south_port = free_port(), free_port()
    north = town.start(north_port, {"ip_range_whitelist": []})
    town.start(south_port)
    assert north.request("GET", f"/_matrix/key/v2/query/localhost:{south_port}").json == {
        "server_keys": []
    }
    assert "does not contact" in north.log.read_text()


def test_the_policy_is_read_again_when_the_operator_says_so(town: OwnTown) -> None:
    north_port, south_port = free_port(), free_port()
    north = town.start(north_port, {"federation_domain_whitelist": []})
    town.start(south_port)
    query = f"/_matrix/key/v2/query/localhost:{south_port}"
    assert north.request("GET", query).json == {"server_keys": []}

    config = town.files[0].config
    written = config.read_text()
    config.write_text("federation_domain_whitelist: 5\n")
    hang_up(north, "was not reloaded")
    config.write_text(
        written.replace(
            "federation_domain_whitelist: []", 'federation_domain_whitelist: ["localhost:*"]'
        )
    )
    hang_up(north, "reloaded the configuration")
    assert len(north.request("GET", query).json["server_keys"]) == 1


def hang_up(server: RunningServer, line: str) -> None:
    """SIGHUP, and wait until the log has this line."""
    os.kill(server.process.pid, signal.SIGHUP)
    end = time.monotonic() + 60
    while line not in server.log.read_text():
        assert time.monotonic() < end, server.log.read_text()
        time.sleep(0.01)
