"""kill -9 while files are uploaded, deleted and moved: no row without its file, no file without a
row, and nothing acknowledged is lost."""

import hashlib
import http.client
import os
import signal
import threading
import time
from collections.abc import Set
from pathlib import Path
from random import Random

import msgspec
import pytest
from twisted.internet.defer import Deferred

from storage.engine.database import SQLiteConfig
from storage.media.shared_contents import Role
from tests.helpers.media_crash_process import MILK, MOMENTS, CrashPlan, Opened
from tests.helpers.object_store import Bucket
from tests.helpers.programs import start_program
from tests.helpers.server_process import RunningServer, ServerFiles

SEED = 1447
ROUNDS = 2
UPLOADERS = 4
DOWNLOAD = "/_matrix/client/v1/media/download/"


def _killed_at(
    moment: str, config: SQLiteConfig, folder: Path, bucket: Bucket, role: Role, work: str
) -> None:
    """Run a media operation in a process that is killed at this moment, or at the end."""
    errand = CrashPlan(config, folder, bucket.config(), role, work, moment)
    with os.fdopen(os.dup(2), "wb") as errors:
        program = start_program(
            "tests.helpers.media_crash_process",
            msgspec.json.encode(errand, enc_hook=str).decode(),
            errors=errors,
        )
    assert program.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("before", "role", "work"),
    [
        ("main", "main", "upload"),
        ("main", "main", "remove"),
        ("main", "second_copy", "remove"),
        ("retired", "main", "level"),
        ("main", "retired", "level"),
    ],
    ids=["upload", "remove", "remove both", "to the store", "from the store"],
)
async def test_a_kill_at_any_moment_of_an_operation_loses_nothing(
    sqlite: SQLiteConfig,
    bucket: Bucket,
    tmp_path: Path,
    before: Role,
    role: Role,
    work: str,
    moment: str,
) -> None:
    first = Opened(sqlite, tmp_path, bucket.config(), before)
    for data in (MILK, b"other"):
        await first.upload(data)
    await first.database.close()
    _killed_at(moment, sqlite, tmp_path, bucket, role, work)

    restarted = Opened(sqlite, tmp_path, bucket.config(), role)
    used = await restarted.recover()
    assert hashlib.sha256(b"other").digest() in used
    if work == "level":
        assert len(used) == 2
        while await restarted.levelling.rebalance(10):
            pass
        assert len(bucket.names()) == (0 if role == "retired" else 2)
    for digest in used:
        opened = await restarted.contents.open(digest)
        assert opened is not None
        assert hashlib.sha256(await opened.read(0, opened.size)).digest() == digest
        opened.close()
    if role != "retired":
        assert {name.split("/")[-1][:64] for name in bucket.names()} == {
            each.hex() for each in used
        }
        assert len(bucket.names()) == len(used)
    assert {
        path.name for path in (tmp_path / "media_store" / "content").rglob("*") if path.is_file()
    } == {each.hex() for each in used}
    assert not list((tmp_path / "media_store" / "incoming").iterdir())
    await restarted.database.close()


class Uploader(threading.Thread):
    """Uploads one file after another and records what was acknowledged."""

    def __init__(self, number: int, server: RunningServer, token: str) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, str] = {}
        self._random = Random(f"{SEED} {number}")
        self._server = server
        self._token = token

    def run(self) -> None:
        connection = self._server.connect()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "text/plain"}
        try:
            while True:
                body = self._random.randbytes(self._random.choice((10, 5000, 100_000, 3_000_000)))
                connection.request("POST", "/_matrix/media/v3/upload", body, headers)
                answer = connection.getresponse()
                said = answer.read()
                assert answer.status == 200, said
                address = said.decode().split("mxc://")[1].rstrip('"}')
                self.acknowledged[address] = hashlib.sha256(body).hexdigest()
        except (OSError, http.client.HTTPException):
            return  # the server was killed


def test_repeated_kills_during_uploads_lose_nothing(bucket: Bucket, tmp_path: Path) -> None:
    database = SQLiteConfig(str(tmp_path / "homeserver.db"))
    unlimited = {"per_second": 100000, "burst_count": 100000}
    files = ServerFiles(
        tmp_path, database, {"media_object_store": bucket.section(), "rc_media_create": unlimited}
    )
    acknowledged: dict[str, str] = {}
    random = Random(SEED)
    try:
        server = files.start()
        token = server.register("alice")
        for number in range(ROUNDS):
            uploaders = [Uploader(10 * number + each, server, token) for each in range(UPLOADERS)]
            for each in uploaders:
                each.start()
            time.sleep(random.uniform(0.3, 1.2))
            while sum(len(each.acknowledged) for each in uploaders) < UPLOADERS and any(
                map(Uploader.is_alive, uploaders)
            ):
                time.sleep(0.01)
            server.kill()
            for each in uploaders:
                each.join(120)
                acknowledged.update(each.acknowledged)
            server = files.start()
        assert len(acknowledged) >= ROUNDS * UPLOADERS
        for address, digest in acknowledged.items():
            reply = server.request("GET", DOWNLOAD + address, token=token)
            assert (reply.status, hashlib.sha256(reply.body).hexdigest()) == (200, digest)
        server.stop()
    finally:
        files.end()
    opened = Opened(database, tmp_path, bucket.config(), "main")
    recovered: list[Set[bytes]] = []
    Deferred.fromCoroutine(opened.recover()).addCallbacks(
        recovered.append, lambda failure: failure.raiseException()
    )
    (used,) = recovered
    assert {bytes.fromhex(each) for each in acknowledged.values()} <= used
    assert {name.split("/")[-1][:64] for name in bucket.names()} == {each.hex() for each in used}
    assert bucket.unfinished() == []
    kept = {
        path.name for path in (tmp_path / "media_store" / "content").rglob("*") if path.is_file()
    }
    assert kept == {each.hex() for each in used}
    assert not list((tmp_path / "media_store" / "incoming").iterdir())
