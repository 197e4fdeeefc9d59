"""A process whose children move to-device messages out of their log and die in the middle of it.

    python -m tests.helpers.to_device_move_process sqlite '{"path": "…"}'   # the configuration of
    the database

Each input line starts a child. It has the number of steps, the function call at which the child
ends (0: none), and the seconds it lives after that call. Calls are counted instead of time, so that
slow machines stop at the same places. The rest after that call, under a millisecond, can cut
through a commit. The output for each child is its exit status, or its number of calls.
"""

import os
import signal
import sys
from typing import Final

import msgspec
from twisted.internet.defer import Deferred

from storage.encryption.to_device import LOG_RETENTION_MS, ToDeviceStore
from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers.databases import open_inline

KINDS: Final[dict[str, type[SQLiteConfig | PostgresConfig]]] = {
    "sqlite": SQLiteConfig,
    "postgres": PostgresConfig,
}


def move(config: SQLiteConfig | PostgresConfig, steps: int, end_at: int, then: float) -> int:
    """Move messages, in a child. Return the number of calls."""
    calls = 0

    def count(_frame: object, _event: str, _argument: object) -> None:
        nonlocal calls
        calls += 1
        if calls == end_at:
            sys.setprofile(None)
            signal.setitimer(signal.ITIMER_REAL, then)

    store = ToDeviceStore(database=open_inline(config))
    sys.setprofile(count)
    for _ in range(steps):
        Deferred.fromCoroutine(store.sweep(1, LOG_RETENTION_MS))
    sys.setprofile(None)
    if calls < end_at:  # fewer calls than expected: it ends after all the work
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
