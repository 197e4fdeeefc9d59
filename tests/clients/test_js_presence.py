"""matrix-js-sdk, the SDK of Element Web: presence, delayed events and other requirements of calls
(`js/presence.mjs`)."""

import json
import subprocess
from pathlib import Path

from tests.helpers.js_scripts import MODULES, NODE, SECONDS
from tests.helpers.real_server import RealServer

SCRIPT = Path(__file__).parent / "js" / "presence.mjs"


def test_clients_see_presence_and_that_a_user_left_a_call(real_server: RealServer) -> None:
    assert NODE.exists(), (
        f"matrix-js-sdk is not in {MODULES}: run scripts/node_packages, which installs it"
    )
    command = [str(NODE), str(SCRIPT), real_server.url, "there"]
    done = subprocess.run(
        command, cwd=MODULES, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    requests = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-4000:] + "\n".join(
        json.dumps(request) for request in requests[-20:]
    )
    assert [request for request in requests if request["status"] >= 500] == []
