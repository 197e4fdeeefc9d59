"""Runs a PostgreSQL server for the tests. The first test that needs it starts it; all workers share
it.

It listens on a Unix socket in a temporary directory (in memory if there is room), runs with fsync
off, and is stopped at the end of the run. With MAHALLA_TEST_POSTGRES (libpq's "host=… user=…
dbname=…") the tests use a running server instead; its user must be allowed to create databases.
"""

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg2
from psycopg2.extensions import parse_dsn

GIVEN = "MAHALLA_TEST_POSTGRES"
DIRECTORY = "MAHALLA_TEST_POSTGRES_DIRECTORY"
"""The directory of the server. The first process of a test run sets it for its workers."""

OWNER = "MAHALLA_TEST_POSTGRES_OWNER"
"""The process id of the first process of a test run."""

MISSING = (
    "These tests need PostgreSQL 13 or later. Install it (Debian: apt-get install postgresql), or"
    " set "
    f'{GIVEN} to a server of yours (for example "host=localhost user=me password=secret'
    f' dbname=postgres").'
)

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 * 1024**3
"""The free space that the server needs: the WAL can use 1 GiB, and several tests have databases at
the same time."""

FORGETFUL: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
}
"""Settings without durability, for tests."""

DURABLE: Mapping[str, str] = {"autovacuum": "off"}
"""Settings for benchmarks: as in production, but without background work at unpredictable times."""

_WATCH = (
    'while [ -d "/proc/$0" ] && [ -e "$2" ]; do sleep 1; done; [ ! -e "$2" ] || kill -QUIT "$1"'
)
"""A script that stops the server if the test run was killed."""


def prepare(*, in_memory: bool = False) -> None:
    """Choose the server's directory, in memory if there is room. Call it in the first process of a
    run. It starts nothing.

    A test database has some hundred small files, which most disks write ten times slower.
    """
    os.environ[DIRECTORY] = tempfile.mkdtemp(
        prefix="mahalla-postgres-", dir=memory() if in_memory else None
    )
    os.environ[OWNER] = str(os.getpid())


def memory() -> str | None:
    """Return a folder in memory, or None if there is none or too little room (as in most
    containers)."""
    if (
        MEMORY.is_dir()
        and os.access(MEMORY, os.W_OK | os.X_OK)
        and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    ):
        return str(MEMORY)
    return None


def end() -> None:
    """Stop the server if it runs, and remove its directory. Call it in the first process of a
    run."""
    directory = Path(os.environ[DIRECTORY])
    pid_file = directory / "data" / "postmaster.pid"
    if pid_file.exists():
        pid = server_pid()
        os.kill(pid, signal.SIGQUIT)
        while pid_file.exists() and _is_alive(pid):
            time.sleep(0.01)
    shutil.rmtree(directory, ignore_errors=True)
    del os.environ[DIRECTORY]


def connection_parameters(settings: Mapping[str, str] = FORGETFUL) -> dict[str, str | int]:
    """Return the connection parameters of the maintenance database. Starts the server with these
    settings if necessary."""
    given = os.environ.get(GIVEN)
    if given:
        return dict(parse_dsn(given))
    directory = Path(os.environ[DIRECTORY])
    with locked():
        if not (directory / "data" / "postmaster.pid").exists():
            _start(directory, settings)
    return {"host": str(directory), "user": "mahalla", "dbname": "postgres"}


def server_pid() -> int:
    """Return the process ID of the server."""
    return int(
        (Path(os.environ[DIRECTORY]) / "data" / "postmaster.pid").read_text().split("\n", 1)[0]
    )


@contextmanager
def locked() -> Iterator[None]:
    """Hold a lock that all workers share."""
    with open(Path(os.environ[DIRECTORY]) / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(directory: Path, chosen: Mapping[str, str]) -> None:
    binaries = _find_binaries()
    user = _unprivileged_user()
    directory.chmod(0o777)
    data = directory / "data"
    with open(directory / "log", "ab") as log:

        def start(*command: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                user=user,
                group=None if user is None else pwd.getpwuid(user).pw_gid,
                extra_groups=None if user is None else [],
            )

        made = start(
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "mahalla",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        )
        if made.wait() == 0:
            settings = {
                **chosen,
                "listen_addresses": "",
                "unix_socket_directories": str(directory),
                "max_connections": "200",
            }
            options = [
                part for name, value in settings.items() for part in ("-c", f"{name}={value}")
            ]
            server = start(str(binaries / "postgres"), "-D", str(data), *options)
            for _ in range(6000):
                if server.poll() is not None:
                    break
                try:
                    psycopg2.connect(host=str(directory), user="mahalla", dbname="postgres").close()
                except psycopg2.OperationalError:
                    time.sleep(0.02)
                else:
                    start(
                        "sh",
                        "-c",
                        _WATCH,
                        os.environ[OWNER],
                        str(server.pid),
                        str(data / "postmaster.pid"),
                    )
                    return
    raise RuntimeError(
        f"PostgreSQL did not start: {(directory / 'log').read_text(errors='replace')}"
    )


def _find_binaries() -> Path:
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    if found is None:
        raise RuntimeError(MISSING)
    return Path(found).resolve().parent


def _unprivileged_user() -> int | None:
    """Return the user ID that runs the server, or None for the current user. PostgreSQL refuses to
    run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise RuntimeError(
        "PostgreSQL cannot run as root, and there is neither a user 'postgres' nor 'nobody'"
    )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
