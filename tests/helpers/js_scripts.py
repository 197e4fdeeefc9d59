"""Runs the scripts of tests/clients/js with matrix-js-sdk. A script can ask for actions on a
server, such as a restart."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import IO, Any

SCRIPTS = Path(__file__).parents[1] / "clients" / "js"
MODULES = Path(__file__).parents[2] / ".cache" / "js"
NODE = MODULES / "node_modules" / ".bin" / "node"

Action = Callable[[], object]


def script_command(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a script; its working directory must be `MODULES`."""
    assert NODE.exists(), (
        f"matrix-js-sdk is not in {MODULES}: run scripts/node_packages, which installs it"
    )
    return [str(NODE), str(SCRIPTS / name), *arguments]


def run_script(
    name: str,
    arguments: Sequence[str],
    seconds: float,
    actions: Sequence[Mapping[str, Action]] = (),
) -> list[dict[str, Any]]:
    """Run a script, which must succeed without a response of status 500 or above. Return its
    requests. `actions`: the actions of each server by name: `kill`, `stop`, …"""
    with subprocess.Popen(
        script_command(name, *arguments),
        cwd=MODULES,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as script:
        assert script.stdin is not None
        assert script.stdout is not None
        errors: list[str] = []

        def kill_at_timeout() -> None:
            errors.append(f"the script did not end within {seconds} s")
            script.kill()

        timer = Timer(seconds, kill_at_timeout)
        timer.start()
        try:
            requests, output = _process_output(script.stdout, script.stdin, actions)
            code = script.wait()
        finally:
            timer.cancel()
            script.kill()
    assert code == 0, "\n".join(
        [*output[-80:], *errors, *(json.dumps(request) for request in requests[-20:])]
    )
    assert [request for request in requests if request["status"] >= 500] == []
    return requests


def _process_output(
    stdout: IO[str], stdin: IO[str], actions: Sequence[Mapping[str, Action]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run the actions that the script asks for, until its output ends. Return its logged requests,
    and its other output."""
    requests: list[dict[str, Any]] = []
    output: list[str] = []
    for line in stdout:
        if not line.startswith('{"'):
            output.append(line.rstrip())
            continue
        entry = json.loads(line)
        if "action" in entry:
            actions[entry["server"]][entry["action"]]()
            stdin.write("done\n")
            stdin.flush()
        else:
            requests.append(entry)
    return requests, output


def used_sync_modes(requests: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the sync modes of the logged requests: `v3` (/sync) and `sliding`."""
    paths = {request["path"] for request in requests if request["path"].endswith("/sync")}
    return {"sliding" if "msc3575" in path else "v3" for path in paths}
