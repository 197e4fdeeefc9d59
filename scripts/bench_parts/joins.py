"""Measures joins of large rooms on another server: two servers on SQLite, with TLS between them.

scripts/bench joins                     rooms of 500, 5,000 and 50,000 members, partial and full
scripts/bench joins --members 500 --kinds partial
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench_parts.processes import cpu_seconds, peak_memory_kb
from tests.helpers.federated_processes import FederatedProcesses, make_large_room
from tests.helpers.ports import free_port
from tests.helpers.server_process import RunningServer

SIZES = (500, 5_000, 50_000)
KINDS = ("partial", "full")
WITHIN = 1800.0
V3 = "/_matrix/client/v3"
COMPLETE = re.compile(r"state of \S+ is (here|complete)")
"""The log line about a room whose partial state was completed."""


@dataclass(frozen=True, slots=True)
class JoinFigures:
    """The measurements of one join."""

    until_sent: float
    until_complete: float
    cpu: float
    cpu_other: float
    memory: float
    memory_other: float
    slowest: float
    """The slowest of the messages that were sent until the room was complete."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a line for each join."""
    parser = argparse.ArgumentParser(prog="scripts/bench joins")
    parser.add_argument(
        "--members", type=lambda text: [int(each) for each in text.split(",")], default=list(SIZES)
    )
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    options = parser.parse_args(arguments)
    sys.stdout.write(
        "| members | join | seconds until a message is sent | until complete "
        "| slowest message meanwhile, ms |"
        " CPU s | CPU s of the other server | peak MB | peak MB of the other server |\n"
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    for members in options.members:
        for kind in options.kinds:
            with tempfile.TemporaryDirectory() as folder:
                town = FederatedProcesses(Path(folder))
                try:
                    each = measure(town, members, partial=kind == "partial")
                finally:
                    town.end()
            sys.stdout.write(
                f"| {members:,} | {kind} | {each.until_sent:.2f} | {each.until_complete:.2f} "
                f"| {each.slowest * 1e3:.0f} |"
                f" {each.cpu:.1f} | {each.cpu_other:.1f} |"
                f" {each.memory:.0f} | {each.memory_other:.0f} |\n"
            )
            sys.stdout.flush()


def measure(town: FederatedProcesses, members: int, *, partial: bool) -> JoinFigures:
    """Join a room, send a message as soon as possible, and more until all members are known."""
    north_port, south_port = free_port(), free_port()
    north_files = town.add(north_port)
    south_files = town.add(south_port, {"federation": {"partial_state_joins": partial}})
    room_id = quote(make_large_room(north_files, north_port, members))
    north, south = north_files.start(listeners=2), south_files.start(listeners=2)
    token = south.register("bob")
    servers = (south, north)
    cpu = [cpu_seconds(server.process.pid) for server in servers]
    began = time.monotonic()
    _check(south, "POST", f"{V3}/join/{room_id}?via=localhost:{north_port}", token)
    slowest, number = 0.0, 0
    until_sent = None
    while True:
        sent = time.monotonic()
        _check(
            south,
            "PUT",
            f"{V3}/rooms/{room_id}/send/m.room.message/t{number}",
            token,
            {"body": "salom"},
        )
        number += 1
        until_sent = until_sent or time.monotonic() - began
        slowest = max(slowest, time.monotonic() - sent)
        if COMPLETE.search(log := south.log.read_text()) or not partial:
            break
        if time.monotonic() - began > WITHIN:
            raise RuntimeError(f"the room was not complete:\n{log[-3000:]}")
        time.sleep(0.05)
    until_complete = time.monotonic() - began
    answer = _check(south, "GET", f"{V3}/rooms/{room_id}/joined_members", token)
    if len(answer["joined"]) != members + 2:
        raise RuntimeError(f"{len(answer['joined'])} members of {members + 2}")
    cpu_used = [
        cpu_seconds(server.process.pid) - before
        for server, before in zip(servers, cpu, strict=True)
    ]
    peak = [peak_memory_kb([server.process.pid]) / 1024 for server in servers]
    return JoinFigures(
        until_sent=until_sent,
        until_complete=until_complete,
        cpu=cpu_used[0],
        cpu_other=cpu_used[1],
        memory=peak[0],
        memory_other=peak[1],
        slowest=slowest,
    )


def _check(
    server: RunningServer, method: str, path: str, token: str, body: object = None
) -> dict[str, dict[str, object]]:
    reply = server.request(
        method, path, {} if body is None and method != "GET" else body, token=token, seconds=WITHIN
    )
    if reply.status != 200:
        raise RuntimeError(
            f"{method} {path}: {reply.status} {reply.body[:500]!r}\n"
            f"{server.log.read_text()[-3000:]}"
        )
    answer: dict[str, dict[str, object]] = reply.json
    return answer


if __name__ == "__main__":
    main(sys.argv[1:])
