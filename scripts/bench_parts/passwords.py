"""Measures passwords: hashing and checking by cost (the option `bcrypt_rounds`, also for Argon2id),
complete logins, and the number of checks per second with as many threads as a server has.

CPU is that of the process in the best round. Memory is what Argon2id uses for one hash, as
requested.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import bcrypt

from bench_parts.client import PASSWORD
from bench_parts.timing import MILLISECOND, best
from homeserver.commands.setup import HASHING_THREADS
from homeserver.services.login.passwords import Passwords
from tests.helpers.databases import copy_sqlite, make_sqlite_template, open_inline
from tests.helpers.server import TestServer

T = TypeVar("T")
COSTS = (4, 10, 11, 12, 13, 14)
MANY = 60


class InlineHashing:
    """Runs the work in the calling thread."""

    async def run(self, work: Callable[[], T], client: str = "") -> T:
        return work()


def finish(coroutine: object) -> object:
    """Return the result of a coroutine that never waits."""
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    except StopIteration as done:
        return done.value
    raise AssertionError("the coroutine waited")


def _hash(passwords: Passwords) -> object:
    return finish(passwords.hash(PASSWORD))


def _check(passwords: Passwords, stored: str) -> object:
    return finish(passwords.verify(PASSWORD, stored))


def measure_hashes() -> None:
    """Measure hashing and checking by cost."""
    for rounds in COSTS:
        passwords = Passwords(threads=InlineHashing(), rounds=rounds)
        stored = str(finish(passwords.hash(PASSWORD)))
        label = f"bcrypt_rounds {rounds} ({stored.split('$')[3]})"
        best(f"{label}: hash", 5, partial(_hash, passwords), unit=MILLISECOND)
        best(f"{label}: check", 5, partial(_check, passwords, stored), unit=MILLISECOND)
    passwords = Passwords(threads=InlineHashing())
    best(
        "check for an unknown user name",
        5,
        lambda: finish(passwords.verify(PASSWORD, None)),
        unit=MILLISECOND,
    )
    imported = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(12)).decode()
    best(
        "bcrypt of 12 rounds, of an imported account",
        2,
        lambda: bcrypt.checkpw(PASSWORD.encode(), imported.encode()),
        unit=MILLISECOND,
    )
    stored = str(finish(passwords.hash(PASSWORD)))
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        started = time.perf_counter()
        list(pool.map(lambda _: finish(passwords.verify(PASSWORD, stored)), range(MANY)))
        rate = MANY / (time.perf_counter() - started)
    sys.stdout.write(f"{f'checked in a second by {HASHING_THREADS} threads':<60} {rate:>8.1f}\n")


def measure_sign_ins() -> None:
    """Measure complete login requests by cost."""
    for rounds in (4, 12):
        with TemporaryDirectory() as name:
            folder = Path(name)
            template = make_sqlite_template(folder)
            (folder / "server").mkdir()
            database = open_inline(copy_sqlite(template, folder / "server"))
            server = TestServer(folder / "server", database, f"bcrypt_rounds: {rounds}\n")
            server.register("alice", PASSWORD)
            identifier = {"type": "m.id.user", "user": "alice"}
            body: dict[str, object] = {
                "type": "m.login.password",
                "identifier": identifier,
                "password": PASSWORD,
                "device_id": "BENCH",
            }

            def sign_in(server: TestServer = server, body: dict[str, object] = body) -> None:
                answer = server.post("/_matrix/client/v3/login", body)
                assert answer.status == 200, answer.body

            best(f"POST /login, bcrypt_rounds {rounds}", 10, sign_in, unit=MILLISECOND)


def main() -> int:
    """Measure and print everything."""
    measure_hashes()
    measure_sign_ins()
    return 0


if __name__ == "__main__":
    sys.exit(main())
