"""matrix-js-sdk with its Rust crypto: nothing that anybody may read is unreadable, as `js/encryption.mjs` tells it."""

import json
import subprocess
from threading import Timer
from typing import IO, Any

from tests.clients.test_js_sdk import MODULES, NODE, SCRIPT
from tests.helpers.real_server import RealServer

SECONDS = 120


def test_three_people_five_devices_and_a_server_that_is_killed(real_server: RealServer) -> None:
    assert NODE.exists(), f"matrix-js-sdk is not in {MODULES}: run scripts/node_packages, which installs it"
    command = [str(NODE), str(SCRIPT.with_name("encryption.mjs")), real_server.url, "js-e2e"]
    with subprocess.Popen(
        command, cwd=MODULES, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as story:
        assert story.stdin is not None
        assert story.stdout is not None
        limit = Timer(SECONDS, story.kill)
        limit.start()
        try:
            requests, said = _listen(story.stdout, story.stdin, real_server)
            code = story.wait()
        finally:
            limit.cancel()
            story.kill()
    real_server.wait_until_ready()
    assert code == 0, "\n".join(said[-60:]) + "\n" + "\n".join(json.dumps(request) for request in requests[-20:])
    assert [request for request in requests if request["status"] >= 500] == []


def _listen(lines: IO[str], answers: IO[str], server: RealServer) -> tuple[list[dict[str, Any]], list[str]]:
    """The requests that the story made, and what else it wrote; the server is killed when it asks for that."""
    requests: list[dict[str, Any]] = []
    said: list[str] = []
    for line in lines:
        if not line.startswith('{"'):
            said.append(line.rstrip())
            continue
        note = json.loads(line)
        if note == {"ask": "kill"}:
            server.kill()
            answers.write("killed\n")
            answers.flush()
        else:
            requests.append(note)
    return requests, said
