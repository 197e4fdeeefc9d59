"""matrix-js-sdk, the SDK of Element Web: spaces, upgrades and room discovery (`js/spaces.mjs`)."""

import pytest

from tests.helpers.js_scripts import run_script, used_sync_modes
from tests.helpers.real_server import RealServer

SECONDS = 300


@pytest.mark.parametrize("sync_mode", ["v3", "sliding"])
def test_a_client_sees_a_space_and_its_rooms(real_server: RealServer, sync_mode: str) -> None:
    prefix = f"js-spaces-{sync_mode}"
    requests = run_script("spaces.mjs", [real_server.url, prefix, sync_mode], SECONDS)
    assert used_sync_modes(requests) == {sync_mode}
