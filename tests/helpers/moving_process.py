"""A process that moves messages to devices out of their log, in children that end in the middle of
it.

    python -m tests.helpers.moving_process sqlite '{"path": "…"}'   # the configuration of the
    database

Each line of its input makes a child: how many steps that takes, at which call of a function it is
to end (0: it is not), and how many seconds after that. Where it ends is counted in calls, not in
time, so that a slow machine ends it at the same places; what is left after that call, less than a
millisecond, may cut through a commit. Told for each is the status with which it ended, or how many
calls there were.
"""

import os
import signal
import sys
from typing import Final

import msgspec
from twisted.internet.defer import Deferred

from storage.encryption.to_device import LOGGED_MS, ToDeviceStore
from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers.databases import open_inline

KINDS: Final[dict[str, type[SQLiteConfig | PostgresConfig]]] = {
    "sqlite": SQLiteConfig,
    "postgres": PostgresConfig,
}


def move(config: SQLiteConfig | PostgresConfig, steps: int, end_at: int, then: float) -> int:
    """In a child; the calls that there were."""
    calls = 0

    def count(_frame: object, _event: str, _argument: object) -> None:
        nonlocal calls
        calls += 1
        if calls == end_at:
            sys.setprofile(None)
            signal.setitimer(signal.ITIMER_REAL, then)

    store = ToDeviceStore(open_inline(config))
    sys.setprofile(count)
    for _ in range(steps):
        Deferred.fromCoroutine(store.sweep(1, LOGGED_MS))
    sys.setprofile(None)
    if calls < end_at:  # fewer than were expected: it ends with all of it done
        signal.setitimer(signal.ITIMER_REAL, then)
    while end_at:
        signal.pause()
    return calls


def main() -> None:
    kind, text = sys.argv[1:]
    config = msgspec.json.decode(text, type=KINDS[kind])
    for line in sys.stdin:
        steps, end_at, then = line.split()
        child = os.fork()
        if not child:
            os.write(1, b"%d\n" % move(config, int(steps), int(end_at), float(then)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if int(end_at):
            os.write(1, b"%d\n" % status)


if __name__ == "__main__":
    main()
