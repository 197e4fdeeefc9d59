"""matrix-js-sdk with its Rust crypto: users can decrypt everything that they may read
(`js/encryption.mjs`, `js/encryption_key_sharing.mjs`, and `js/encryption_federation.mjs` between
two servers). Servers are killed at random times. A failing script prints its MAHALLA_JS_SEED; this
environment variable reproduces the times."""

from pathlib import Path

import pytest

from tests.helpers.js_scripts import run_script
from tests.helpers.real_server import RealServer
from tests.helpers.server_pair import two_servers

SECONDS = 600


def test_three_users_on_five_devices_decrypt_everything_after_a_kill(
    real_server: RealServer,
) -> None:
    run_script("encryption.mjs", [real_server.url, "js-e2e"], SECONDS, [{"kill": real_server.kill}])
    real_server.wait_until_ready()


def test_verification_codes_shared_history_and_a_dehydrated_device_work(
    real_server: RealServer,
) -> None:
    run_script("encryption_key_sharing.mjs", [real_server.url, "js-sharing"], SECONDS)


@pytest.mark.parametrize("script", ["encryption", "encryption_key_sharing"])
def test_encryption_survives_repeated_kills_of_the_server(
    real_server: RealServer, script: str
) -> None:
    run_script(
        f"{script}.mjs",
        [real_server.url, f"js-killed-{script}", "kills"],
        SECONDS,
        [{"kill": real_server.kill}],
    )
    real_server.wait_until_ready()


def test_encryption_survives_outages_between_two_servers(tmp_path: Path) -> None:
    with two_servers(tmp_path) as servers:
        actions = [
            {"kill": each.kill_and_start, "stop": each.kill, "start": each.start}
            for each in servers
        ]
        run_script(
            "encryption_federation.mjs",
            [*(each.url for each in servers), "js-federation"],
            SECONDS,
            actions,
        )
