"""A long file is uploaded and downloaded without being complete in memory, and without delaying
other requests.

MAHALLA_UPLOAD_MEGABYTES is its size: 2048 for the long run.
"""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from storage.engine.database import SQLiteConfig
from tests.helpers.server_process import RunningServer, ServerFiles

MEGABYTES = int(os.environ.get("MAHALLA_UPLOAD_MEGABYTES", "96"))
MOST_GROWTH = 24 << 20
"""In bytes, for buffers and memory that the allocator does not return."""
PIECE = bytes(range(256)) * 4096


def _memory(server: RunningServer, what: str) -> int:
    """Return a memory size of the process in bytes: `VmRSS` is the current size, `VmHWM` the peak
    since `_reset_peak`."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024


def _reset_peak(server: RunningServer) -> None:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def _pieces() -> Iterator[bytes]:
    for _ in range(MEGABYTES):
        yield PIECE


class Poller(threading.Thread):
    """Sends small requests in a loop and records the longest response time."""

    def __init__(self, server: RunningServer) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self.over = False
        self._connection = server.connect()

    def run(self) -> None:
        while not self.over:
            began = time.monotonic()
            self._connection.request("GET", "/_matrix/client/versions")
            self._connection.getresponse().read()
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.005)


def test_a_long_file_needs_little_memory(tmp_path: Path) -> None:
    files = ServerFiles(
        tmp_path,
        SQLiteConfig(str(tmp_path / "homeserver.db")),
        {"max_upload_size": (MEGABYTES + 1) << 20},
    )
    try:
        server = files.start()
        token = server.register("alice")
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "video/mp4"}
        connection = server.connect(600)
        connection.request("POST", "/_matrix/media/v3/upload", b"short", headers)
        connection.getresponse().read()
        _reset_peak(server)
        before = _memory(server, "VmRSS")
        asker = Poller(server)
        asker.start()
        began = time.monotonic()
        length = {**headers, "Content-Length": str(MEGABYTES << 20)}
        connection.request("POST", "/_matrix/media/v3/upload", _pieces(), length)
        answer = connection.getresponse()
        said = answer.read().decode()
        uploaded = time.monotonic()
        assert answer.status == 200, said
        address = said.split("mxc://")[1].rstrip('"}')
        connection.request("GET", f"/_matrix/client/v1/media/download/{address}", headers=headers)
        answer = connection.getresponse()
        digest = hashlib.sha256()
        while piece := answer.read(1 << 20):
            digest.update(piece)
        asker.over = True
        asker.join(60)
        growth = _memory(server, "VmHWM") - before
        sys.stdout.write(
            f"{MEGABYTES} MB: up in {uploaded - began:.1f} s, down in"
            f" {time.monotonic() - uploaded:.1f} s, "
            f"memory grew by {growth / (1 << 20):.1f} MB, others waited {asker.longest * 1000:.0f}"
            f" ms at most\n"
        )
        expected = hashlib.sha256()
        for piece in _pieces():
            expected.update(piece)
        assert digest.hexdigest() == expected.hexdigest()
        assert growth < MOST_GROWTH
        server.stop()
    finally:
        files.end()
