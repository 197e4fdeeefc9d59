"""Two server processes that federate by TLS with a test certificate authority."""

import os
import signal
import time

from tests.helpers.federated_processes import FederatedProcesses
from tests.helpers.ports import free_port
from tests.helpers.server_process import RunningServer


def test_one_server_fetches_and_republishes_the_keys_of_the_other(
    servers: FederatedProcesses,
) -> None:
    north_port, south_port = free_port(), free_port()
    north = servers.start(north_port)
    servers.start(south_port)
    (received,) = north.request("GET", f"/_matrix/key/v2/query/localhost:{south_port}").json[
        "server_keys"
    ]
    assert sorted(received["signatures"]) == sorted(
        [f"localhost:{north_port}", f"localhost:{south_port}"]
    )
    assert north.stop() == 0


def test_private_addresses_are_not_contacted_unless_allowed(servers: FederatedProcesses) -> None:
    north_port, south_port = free_port(), free_port()
    north = servers.start(north_port, {"ip_range_whitelist": []})
    servers.start(south_port)
    assert north.request("GET", f"/_matrix/key/v2/query/localhost:{south_port}").json == {
        "server_keys": []
    }
    assert "does not contact" in north.log.read_text()


def test_sighup_reloads_the_federation_policy(servers: FederatedProcesses) -> None:
    north_port, south_port = free_port(), free_port()
    north = servers.start(north_port, {"federation_domain_whitelist": []})
    servers.start(south_port)
    query = f"/_matrix/key/v2/query/localhost:{south_port}"
    assert north.request("GET", query).json == {"server_keys": []}

    config = servers.files[0].config
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
    """Send SIGHUP, and wait for this line in the log."""
    os.kill(server.process.pid, signal.SIGHUP)
    end = time.monotonic() + 60
    while line not in server.log.read_text():
        assert time.monotonic() < end, server.log.read_text()
        time.sleep(0.01)
