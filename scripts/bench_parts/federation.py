"""Measures what a message costs that goes to another server, and a join, on both sides: two servers
of ours, and two of Synapse beside.

The servers are processes that reach each other by TLS on loopback. Somebody on the first sends, one
message at a time and then by ten connections at once, and somebody on the second waits for news;
then that one joins rooms of the first, one after the other; until both servers are quiet.

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
from tests.helpers.town import Running, Town, python_of_synapse

AT_ONCE = 10
ALONE = 50
"""Messages that are sent one after the other."""
MEMBERS = 50
"""Of each of the rooms that are joined."""
SECONDS = 600.0
QUIET_SECONDS = 0.5
QUIET_SHARE = 0.02
"""Of a core, in so many seconds: then a server has nothing left to do."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one message, or one join."""

    first_ms: float
    """CPU of the server where it is sent; of a join, of that which is in the room."""
    second_ms: float
    per_second: float
    """Until the last one was there; of a join, until all members were known."""


class Reader:
    """Waits for what is said in a room, as a client does."""

    def __init__(self, person: Person, room_id: str) -> None:
        self._person = person
        self._room_id = room_id
        self._since: str = person.sync()["next_batch"]

    def read(self, bodies: set[str]) -> None:
        """Wait until all of these have come."""
        missing = set(bodies)
        deadline = time.monotonic() + SECONDS
        while missing:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(missing)} messages have not come")
            answer = self._person.sync(self._since, 10_000, room={"timeline": {"limit": 1000}})
            self._since = answer["next_batch"]
            room = answer.get("rooms", {}).get("join", {}).get(self._room_id, {})
            missing -= {
                event["content"].get("body") for event in room.get("timeline", {}).get("events", [])
            }


class Trial:
    """Two servers with a room that somebody of each is in."""

    def __init__(self, first: Running, second: Running) -> None:
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
        """Let so many messages be sent and arrive."""
        self._wait_until_quiet()
        reader = Reader(self._reader, self._room_id)
        self._count += 1
        bodies = [f"{self._count}: {number} {'x' * 60}" for number in range(messages)]
        before = self._cpu()
        started = time.monotonic()

        def say(number: int) -> None:
            self._people[number % at_once].say(self._room_id, bodies[number])

        with ThreadPoolExecutor(at_once + 1) as threads:
            reading = threads.submit(reader.read, set(bodies))
            for sent in [threads.submit(say, number) for number in range(messages)]:
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
        """Let somebody of the second server join so many rooms of the first: the two know each
        other, and not the rooms."""
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
    """Print a table of medians."""
    parser = argparse.ArgumentParser(prog="scripts/bench federation")
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--rooms", type=int, default=5, help="that are joined")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    python = python_of_synapse()
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory(prefix="mahalla-bench-") as directory:
        kinds: dict[str, Callable[[Town], Running]] = {
            "ours": lambda town: town.start_ours(
                filter_timeline_limit=1000, presence={"enabled": False}
            )
        }
        if python is None:
            sys.stderr.write(
                "Synapse is not installed (scripts/synapse): ours alone are measured\n"
            )
        else:
            kinds["Synapse"] = lambda town: town.start_synapse(
                filter_timeline_limit=1000, presence={"enabled": False}
            )
        for number in range(options.rounds):
            for kind, start in kinds.items():
                folder = Path(directory) / f"{kind}-{number}"
                folder.mkdir()
                town = Town(folder, python or Path())
                try:
                    trial = Trial(start(town), start(town))
                    costs.setdefault(f"{kind}, one at a time", []).append(trial.measure(ALONE, 1))
                    costs.setdefault(f"{kind}, ten at once", []).append(
                        trial.measure(options.messages, AT_ONCE)
                    )
                    costs.setdefault(f"{kind}, join of {MEMBERS} members", []).append(
                        trial.measure_joins(options.rooms)
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
