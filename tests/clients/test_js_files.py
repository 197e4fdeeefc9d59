"""matrix-js-sdk, the SDK of Element Web: an image, plain and encrypted (`js/files.mjs`)."""

import json
import subprocess
from pathlib import Path

from tests.helpers.images import picture
from tests.helpers.js_scripts import MODULES, NODE, SECONDS
from tests.helpers.real_server import RealServer

SCRIPT = Path(__file__).parent / "js" / "files.mjs"


def test_an_image_is_uploaded_and_downloaded(real_server: RealServer, tmp_path: Path) -> None:
    assert NODE.exists(), (
        f"matrix-js-sdk is not in {MODULES}: run scripts/node_packages, which installs it"
    )
    path = tmp_path / "choy.png"
    path.write_bytes(picture(800, 600))
    command = [str(NODE), str(SCRIPT), real_server.url, "files", str(path)]
    done = subprocess.run(
        command, cwd=MODULES, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    requests = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-4000:] + "\n".join(
        json.dumps(request) for request in requests[-20:]
    )
    assert [request for request in requests if request["status"] >= 500] == []
