"""matrix-js-sdk, the SDK of Element Web: spaces, upgrades and room discovery (`js/spaces.mjs`)."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.helpers.js_scripts import MODULES, NODE, SECONDS, sync_forms
from tests.helpers.real_server import RealServer

SCRIPT = Path(__file__).parent / "js" / "spaces.mjs"


@pytest.mark.parametrize("form", ["v3", "sliding"])
def test_a_client_sees_a_space_and_its_rooms(real_server: RealServer, form: str) -> None:
    assert NODE.exists(), (
        f"matrix-js-sdk is not in {MODULES}: run scripts/node_packages, which installs it"
    )
    command = [str(NODE), str(SCRIPT), real_server.url, f"around-{form}", form]
    done = subprocess.run(
        command, cwd=MODULES, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    requests = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-4000:] + "\n".join(
        json.dumps(request) for request in requests[-20:]
    )
    assert sync_forms(requests) == {form}
    assert [request for request in requests if request["status"] >= 500] == []
