"""A PostgreSQL server for the tests: started by the first test that needs one, shared by all
workers of a run.

It listens on a Unix socket in a temporary directory, which is in memory where that has room, keeps
nothing safe (fsync off), and is ended when the run ends. With MAHALLA_TEST_POSTGRES (libpq's
"host=… user=… dbname=…") a running server is used instead; its user must be allowed to create
databases.
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
"""Set by the first process of a test run for its workers: where the server is to live."""

OWNER = "MAHALLA_TEST_POSTGRES_OWNER"
"""The process id of the first process of a test run."""

MISSING = (
    "These tests need PostgreSQL 13 or later. Install it (Debian: apt-get install postgresql), or set "
    f'{GIVEN} to a server of yours (for example "host=localhost user=me password=secret dbname=postgres").'
)

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 * 1024**3
"""So much must be free of it: the log of changes may have 1 GiB, and several tests have databases
at once."""

FORGETFUL: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
}
"""The settings for tests."""

DURABLE: Mapping[str, str] = {"autovacuum": "off"}
"""The settings for measurements: as in production, but for what would happen at some moment or
other."""

_WATCH = (
    'while [ -d "/proc/$0" ] && [ -e "$2" ]; do sleep 1; done; [ ! -e "$2" ] || kill -QUIT "$1"'
)
"""Ends the server when the test run was killed before it could."""


def prepare(*, in_memory: bool = False) -> None:
    """In the first process of a run: choose the directory; where there is room in the machine's
    memory, there. Starts nothing.

    A database for one test is some hundred small files, which most disks take ten times as long to
    write.
    """
    os.environ[DIRECTORY] = tempfile.mkdtemp(
        prefix="mahalla-postgres-", dir=memory() if in_memory else None
    )
    os.environ[OWNER] = str(os.getpid())


def memory() -> str | None:
    """A folder that is kept in memory; None where there is none, or too little room in it (as in
    most containers)."""
    if (
        MEMORY.is_dir()
        and os.access(MEMORY, os.W_OK | os.X_OK)
        and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    ):
        return str(MEMORY)
    return None


def end() -> None:
    """In the first process of a run: end the server, if there is one, and remove its directory."""
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
    """Return the connection parameters of the server's maintenance database. Start the server with
    these settings first, if it does not run."""
    given = os.environ.get(GIVEN)
    if given:
        return dict(parse_dsn(given))
    directory = Path(os.environ[DIRECTORY])
    with locked():
        if not (directory / "data" / "postmaster.pid").exists():
            _start(directory, settings)
    return {"host": str(directory), "user": "mahalla", "dbname": "postgres"}


def server_pid() -> int:
    """The process of the server that was started."""
    return int(
        (Path(os.environ[DIRECTORY]) / "data" / "postmaster.pid").read_text().split("\n", 1)[0]
    )


@contextmanager
def locked() -> Iterator[None]:
    """One worker at a time."""
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
    """The user id to run the server as, when it cannot be ours: it refuses to run as root."""
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
