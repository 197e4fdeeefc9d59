"""Measures in one process, without a network, what retention costs: reads without retention rules,
with rules and after a purge, and the purge itself.

Figures are microseconds of this process, with all caches warm.
"""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_parts.timing import best
from federation.protocol.ids import EventID
from federation.rooms.events import StoredEvent
from tests.helpers.databases import copy_sqlite, make_sqlite_template, open_inline
from tests.helpers.room_actions import create, join, messages, ok, say, set_state
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import sync

ROUNDS, TIMES = 15, 30
MESSAGES = 5000
DAY = 86_400
RULES = "retention: {enabled: true}\n"


def measure_visibility(label: str, server: TestServer, bob: User, room_id: str) -> None:
    """Measure the visibility filter for pages of events."""
    rooms, visibility = server.app.rooms, server.app.history.visibility
    ids = [EventID(event["event_id"]) for event in messages(bob, room_id, limit=100)["chunk"]]
    events = list(server.run(rooms.events.get_in_any_room(ids)).values())
    (own,) = server.run(rooms.memberships.of_user(bob.user_id)).values()

    def check(page: Sequence[StoredEvent]) -> None:
        step = visibility.filter(bob.user_id, own, page)
        try:
            step.send(None)
        except StopIteration:
            return
        raise AssertionError("the coroutine waited")

    for number in (1, 10, 100):
        best(
            f"visibility of {number} events, {label}",
            1000,
            partial(check, events[:number]),
            rounds=ROUNDS,
        )


def read(bob: User, path: str) -> None:
    ok(bob.get(path))


def measure_reads(label: str, bob: User, room_id: str) -> None:
    """Measure the ways to read a room."""
    since = str(sync(bob)["next_batch"])
    say(bob, room_id, "new")
    path = f"/_matrix/client/v3/rooms/{room_id}/messages?dir=b&limit="
    for name, request in (
        ("/sync of one new message", f"/_matrix/client/v3/sync?since={since}"),
        ("the first /sync, 10 events", "/_matrix/client/v3/sync"),
        ("/messages, 10 events", f"{path}10"),
        ("/messages, 100 events", f"{path}100"),
    ):
        best(f"{name}, {label}", TIMES, partial(read, bob, request), rounds=ROUNDS)


def measure(server_folder: Path, template: Path, label: str, rules: str) -> None:
    """Measure one server; with rules, measure it also after a purge."""
    server_folder.mkdir()
    server = TestServer(server_folder, open_inline(copy_sqlite(template, server_folder)), rules)
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    set_state(alice, room_id, "m.room.retention", {"max_lifetime": DAY * 1000})
    started = time.process_time()
    for number in range(MESSAGES):
        say(alice, room_id, f"message {number}, to be read and purged later")
    elapsed = (time.process_time() - started) / MESSAGES
    sys.stdout.write(f"{f'to send a message, {label}':<60} {elapsed * 1e6:>10.1f} µs\n")
    measure_visibility(label, server, bob, room_id)
    measure_reads(label, bob, room_id)
    if not rules:
        return
    server.clock.advance(DAY + 1)
    for number in range(100):
        say(alice, room_id, f"later message {number}")
    (expiry,) = server.app.retention.expiries
    started = time.process_time()
    done = sum(iter(lambda: server.run(expiry.do_step(1000)), 0))
    elapsed = (time.process_time() - started) / done
    sys.stdout.write(f"{f'to purge a message, of {done}':<60} {elapsed * 1e6:>10.1f} µs\n")
    measure_reads("after a purge", bob, room_id)
    best(
        "/messages from the beginning, after a purge",
        TIMES,
        lambda: messages(bob, room_id, "f", limit=20),
        rounds=ROUNDS,
    )


def main() -> int:
    """Measure and print everything."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        template = make_sqlite_template(folder)
        measure(folder / "without", template, "without rules", "")
        measure(folder / "with", template, "with rules", RULES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
