"""Runs the scripts of tests/clients/js with matrix-js-sdk. A script can ask for actions on a
server, such as a restart."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import IO, Any

SECONDS = 300
SCRIPTS = Path(__file__).parents[1] / "clients" / "js"
MODULES = Path(__file__).parents[2] / ".cache" / "js"
NODE = MODULES / "node_modules" / ".bin" / "node"

Action = Callable[[], object]


def run_script(
    name: str,
    arguments: Sequence[str],
    seconds: float,
    actions: Sequence[Mapping[str, Action]] = (),
) -> None:
    """Run a script, which must succeed. `actions`: the actions of each server by name: `kill`,
    `stop`, …"""
    assert NODE.exists(), (
        f"matrix-js-sdk is not in {MODULES}: run scripts/node_packages, which installs it"
    )
    command = [str(NODE), str(SCRIPTS / name), *arguments]
    with subprocess.Popen(
        command,
        cwd=MODULES,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as story:
        assert story.stdin is not None
        assert story.stdout is not None
        late: list[str] = []

        def end_late() -> None:
            late.append(f"the script did not end within {seconds} s")
            story.kill()

        limit = Timer(seconds, end_late)
        limit.start()
        try:
            requests, said = _listen(story.stdout, story.stdin, actions)
            code = story.wait()
        finally:
            limit.cancel()
            story.kill()
    assert code == 0, (
        "\n".join([*said[-80:], *late])
        + "\n"
        + "\n".join(json.dumps(request) for request in requests[-20:])
    )
    assert [request for request in requests if request["status"] >= 500] == []


def _listen(
    lines: IO[str], answers: IO[str], actions: Sequence[Mapping[str, Action]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the requests of the script for actions, and its other output."""
    requests: list[dict[str, Any]] = []
    said: list[str] = []
    for line in lines:
        if not line.startswith('{"'):
            said.append(line.rstrip())
            continue
        note = json.loads(line)
        if "ask" in note:
            actions[note["server"]][note["ask"]]()
            answers.write("done\n")
            answers.flush()
        else:
            requests.append(note)
    return requests, said


def list_requests(name: str, *arguments: str) -> list[dict[str, Any]]:
    """Run a script, which must succeed and get no error of the server. Return its requests."""
    assert NODE.exists(), (
        f"matrix-js-sdk is not in {MODULES}: run scripts/node_packages, which installs it"
    )
    done = subprocess.run(
        [str(NODE), str(SCRIPTS / name), *arguments],
        cwd=MODULES,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    requests = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-4000:] + "\n".join(
        json.dumps(request) for request in requests[-20:]
    )
    assert [request for request in requests if request["status"] >= 500] == []
    return requests


def sync_forms(requests: list[dict[str, Any]]) -> set[str]:
    """Return the forms of sync that the script used."""
    paths = {request["path"] for request in requests if request["path"].endswith("/sync")}
    return {"sliding" if "msc3575" in path else "v3" for path in paths}
