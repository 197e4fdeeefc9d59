"""Measures messages and joins between two servers, on both sides: first two of ours, then two
Synapse servers.

The servers are processes that reach each other over TLS on loopback. A user on the first server
sends messages, one at a time and then over ten connections, and a user on the second server waits
for them. Then the user on the second server joins rooms of the first server, one after another.
Each measurement ends when both servers use almost no CPU any more, or after a time limit.

scripts/bench federation [--messages 500] [--rooms 5] [--rounds 3]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench_parts import processes
from tests.helpers.interop import Person, until
from tests.helpers.interop_servers import InteropProcess, InteropServers, python_of_synapse

AT_ONCE = 10
ALONE = 50
"""Messages that are sent one after another."""
MEMBERS = 50
"""The number of members of each room to join."""
SECONDS = 600.0
QUIET_SECONDS = 0.5
QUIET_SHARE = 0.02
"""The share of a core in `QUIET_SECONDS` below which a server counts as quiet."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The costs of one message, or of one join."""

    first_ms: float
    """CPU of the sending server; for a join, of the resident server."""
    second_ms: float
    per_second: float
    """Operations a second, until the last message arrived; for a join, until all members were
    known."""


class Reader:
    """Waits for messages in a room, as a client does."""

    def __init__(self, person: Person, room_id: str) -> None:
        self._person = person
        self._room_id = room_id
        self._since: str = person.sync()["next_batch"]

    def read(self, bodies: set[str]) -> None:
        """Wait until all of these messages have arrived."""
        missing = set(bodies)
        deadline = time.monotonic() + SECONDS
        while missing:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(missing)} messages have not arrived")
            answer = self._person.sync(self._since, 10_000, room={"timeline": {"limit": 1000}})
            self._since = answer["next_batch"]
            room = answer.get("rooms", {}).get("join", {}).get(self._room_id, {})
            missing -= {
                event["content"].get("body") for event in room.get("timeline", {}).get("events", [])
            }


class ServerPair:
    """Two servers, and a room with a user of each."""

    def __init__(self, first: InteropProcess, second: InteropProcess) -> None:
        self._servers = (first, second)
        self._people = [first.register(f"user{number}") for number in range(AT_ONCE)]
        self._reader = second.register("reader")
        self._room_id = self._people[0].create(preset="public_chat", name="Both")
        for person in self._people[1:]:
            assert person.join(self._room_id).status == 200
        assert self._reader.join(self._room_id, first.name).status == 200
        until(lambda: len(self._reader.members(self._room_id)) == AT_ONCE + 1, 60)
        self._count = 0

    def measure(self, messages: int, at_once: int) -> Cost:
        """Send messages, and measure until all have arrived."""
        self._wait_until_quiet()
        reader = Reader(self._reader, self._room_id)
        self._count += 1
        bodies = [f"{self._count}: {number} {'x' * 60}" for number in range(messages)]
        before = self._cpu()
        started = time.monotonic()

        def send(number: int) -> None:
            self._people[number % at_once].say(self._room_id, bodies[number])

        with ThreadPoolExecutor(at_once + 1) as threads:
            reading = threads.submit(reader.read, set(bodies))
            for sent in [threads.submit(send, number) for number in range(messages)]:
                sent.result()
            reading.result()
        took = time.monotonic() - started
        self._wait_until_quiet()
        used = [
            (after - then) * 1000 / messages
            for after, then in zip(self._cpu(), before, strict=True)
        ]
        return Cost(used[0], used[1], messages / took)

    def measure_joins(self, count: int) -> Cost:
        """Measure joins of a user of the second server to rooms of the first. The servers know each
        other, but not the rooms."""
        people = [
            *self._people,
            *(self._servers[0].register(f"member{number}") for number in range(MEMBERS - AT_ONCE)),
        ]
        rooms = [
            people[0].create(preset="public_chat", name=f"Room {number}") for number in range(count)
        ]
        for room_id in rooms:
            for person in people[1:]:
                assert person.join(room_id).status == 200
        self._wait_until_quiet()
        before = self._cpu()
        started = time.monotonic()
        for room_id in rooms:
            assert self._reader.join(room_id, self._servers[0].name).status == 200
            until(partial(self._knows_all, room_id), 60)
        took = time.monotonic() - started
        self._wait_until_quiet()
        used = [
            (after - then) * 1000 / count for after, then in zip(self._cpu(), before, strict=True)
        ]
        return Cost(used[0], used[1], count / took)

    def _knows_all(self, room_id: str) -> bool:
        return list(self._reader.members(room_id).values()).count("join") == MEMBERS + 1

    def _cpu(self) -> list[float]:
        return [processes.cpu_seconds(server.pid) for server in self._servers]

    def _wait_until_quiet(self) -> None:
        for _ in range(60):
            before = sum(self._cpu())
            time.sleep(QUIET_SECONDS)
            if sum(self._cpu()) - before < QUIET_SECONDS * QUIET_SHARE:
                return


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a table of medians."""
    parser = argparse.ArgumentParser(prog="scripts/bench federation")
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--rooms", type=int, default=5, help="rooms to join")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    python = python_of_synapse()
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory(prefix="mahalla-bench-") as directory:
        kinds: dict[str, Callable[[InteropServers], InteropProcess]] = {
            "ours": lambda town: town.start_ours(
                filter_timeline_limit=1000, presence={"enabled": False}
            )
        }
        if python is None:
            sys.stderr.write(
                "Synapse is not installed (scripts/synapse): measuring only our servers\n"
            )
        else:
            kinds["Synapse"] = lambda town: town.start_synapse(
                filter_timeline_limit=1000, presence={"enabled": False}
            )
        for number in range(options.rounds):
            for kind, start in kinds.items():
                folder = Path(directory) / f"{kind}-{number}"
                folder.mkdir()
                town = InteropServers(folder, python or Path())
                try:
                    pair = ServerPair(start(town), start(town))
                    costs.setdefault(f"{kind}, one at a time", []).append(pair.measure(ALONE, 1))
                    costs.setdefault(f"{kind}, ten at once", []).append(
                        pair.measure(options.messages, AT_ONCE)
                    )
                    costs.setdefault(f"{kind}, join of {MEMBERS} members", []).append(
                        pair.measure_joins(options.rooms)
                    )
                finally:
                    town.end()
                sys.stderr.write(f"round {number + 1}: {kind}\n")
    show(costs)


def show(costs: dict[str, list[Cost]]) -> None:
    sys.stdout.write(
        "| servers | first, CPU ms | second, CPU ms | per second |\n| --- | ---: | ---: | ---: |\n"
    )
    for name, each in costs.items():
        figures = [
            median(cost.first_ms for cost in each),
            median(cost.second_ms for cost in each),
            median(cost.per_second for cost in each),
        ]
        sys.stdout.write(
            f"| {name} | " + " | ".join(f"{figure:.3g}" for figure in figures) + " |\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
