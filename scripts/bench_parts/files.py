"""Measures what files cost: a server of its own on SQLite, beside plain twisted.web.static.

scripts/bench files                     10 KB, 1 MB and 1 GB
scripts/bench files --quick             10 KB, 1 MB and 64 MB
"""

import argparse
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_parts.processes import cpu_seconds, peak_memory_kb, reset_peak
from storage.database import SQLiteConfig
from tests.helpers.images import picture
from tests.helpers.own_town import free_port
from tests.helpers.running import ServerFiles

KB, MB = 1000, 1_000_000
PARALLEL = 100
PIECE = 1 << 18
UPLOAD = "/_matrix/media/v3/upload"
DOWNLOAD = "/_matrix/client/v1/media/download/"
THUMBNAIL = "/_matrix/client/v1/media/thumbnail/"
STATIC = """
import sys
from twisted.internet import reactor
from twisted.web.server import Site
from twisted.web.static import File
reactor.listenTCP(int(sys.argv[2]), Site(File(sys.argv[1])), interface="127.0.0.1")
reactor.run()
"""


@dataclass(frozen=True, slots=True)
class Side:
    """A server that is asked."""

    pid: int
    port: int
    headers: dict[str, str]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)


def main(arguments: Sequence[str]) -> None:
    """Print a line for each kind of work."""
    parser = argparse.ArgumentParser(prog="scripts/bench files")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    sizes = ((10 * KB, 200), (MB, 50), (64 * MB if options.quick else 1000 * MB, 1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unlimited = {"per_second": 1_000_000, "burst_count": 1_000_000}
        further = {"max_upload_size": "2G", "rc_media_create": unlimited}
        files = ServerFiles(folder, SQLiteConfig(str(folder / "homeserver.db")), further)
        port = free_port()
        static = folder / "static"
        static.mkdir()
        plain = subprocess.Popen([sys.executable, "-c", STATIC, str(static), str(port)])
        try:
            server = files.start()
            headers = {"Authorization": f"Bearer {server.register('alice')}", "Content-Type": "image/png"}
            ours = Side(server.process.pid, server.ports[0], headers)
            theirs = Side(plain.pid, port, {})
            _wait_for(theirs)
            sys.stdout.write("| work | CPU ms each | MB/s | peak MB |\n| --- | ---: | ---: | ---: |\n")
            for size, count in sizes:
                _measure_size(ours, theirs, static, size, count)
            _measure_thumbnails(ours)
            _measure_parallel(ours)
            server.stop()
        finally:
            plain.terminate()
            plain.wait()
            files.end()


def _measure_size(ours: Side, theirs: Side, static: Path, size: int, count: int) -> None:
    label = f"{size // MB} MB" if size >= MB else f"{size // KB} kB"
    addresses: list[str] = []
    connection = ours.connect()
    seed = os.urandom(16)

    def upload(number: int) -> None:
        addresses.append(_upload(connection, ours, seed + number.to_bytes(4, "big"), size))

    _line(f"upload, {label}", ours, upload, count, size)
    paths = [DOWNLOAD + address for address in addresses]
    _line(f"download, {label}", ours, lambda number: _fetch(connection, ours, paths[number]), count, size)
    with (static / str(size)).open("wb") as file:
        for piece in _pieces(seed, size):
            file.write(piece)
    plain = theirs.connect()
    _line(f"download, {label}, twisted.web.static", theirs, lambda _: _fetch(plain, theirs, f"/{size}"), count, size)


def _measure_thumbnails(ours: Side) -> None:
    connection = ours.connect()
    addresses = []
    for number in range(40):
        connection.request("POST", UPLOAD, picture(1600 + number, 1200, "JPEG"), ours.headers)
        addresses.append(_address(connection.getresponse().read()))
    query = "?width=320&height=240&method=scale"
    first = time.monotonic()
    _line(
        "thumbnail of a photo of 2 megapixels, made",
        ours,
        lambda number: _fetch(connection, ours, f"{THUMBNAIL}{addresses[number]}{query}"),
        len(addresses),
        0,
    )
    sys.stdout.write(f"| thumbnails a second, one after the other | | {40 / (time.monotonic() - first):.1f} | |\n")
    _line(
        "thumbnail, kept",
        ours,
        lambda number: _fetch(connection, ours, f"{THUMBNAIL}{addresses[number]}{query}"),
        len(addresses),
        0,
    )


def _measure_parallel(ours: Side) -> None:
    """Memory with so many transfers at the same time: half of them up, half down."""
    address = _upload(ours.connect(), ours, b"parallel", 10 * MB)

    def work(number: int) -> None:
        connection = ours.connect()
        if number % 2:
            _upload(connection, ours, number.to_bytes(4, "big"), 10 * MB)
        else:
            _fetch(connection, ours, DOWNLOAD + address)

    reset_peak([ours.pid])
    threads = [threading.Thread(target=work, args=(number,)) for number in range(PARALLEL)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = PARALLEL * 10 / (time.monotonic() - began)
    sys.stdout.write(
        f"| {PARALLEL} transfers of 10 MB at once | | {rate:.0f} | {peak_memory_kb([ours.pid]) / 1024:.0f} |\n"
    )


def _line(what: str, side: Side, work: Callable[[int], None], count: int, size: int) -> None:
    reset_peak([side.pid])
    before, began = cpu_seconds(side.pid), time.monotonic()
    for number in range(count):
        work(number)
    seconds = time.monotonic() - began
    cpu = (cpu_seconds(side.pid) - before) / count * 1000
    rate = f"{count * size / MB / seconds:.0f}" if size else ""
    sys.stdout.write(f"| {what} | {cpu:.2f} | {rate} | {peak_memory_kb([side.pid]) / 1024:.0f} |\n")
    sys.stdout.flush()


def _upload(connection: http.client.HTTPConnection, side: Side, seed: bytes, size: int) -> str:
    connection.request("POST", UPLOAD, _pieces(seed, size), {**side.headers, "Content-Length": str(size)})
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"the upload was refused: {said!r}")
    return _address(said)


def _address(said: bytes) -> str:
    return said.decode().split("mxc://")[1].rstrip('"}')


def _pieces(seed: bytes, size: int) -> Iterator[bytes]:
    piece = seed + bytes(PIECE - len(seed))
    for start in range(0, size, PIECE):
        yield piece[: size - start]


def _fetch(connection: http.client.HTTPConnection, side: Side, path: str) -> None:
    connection.request("GET", path, headers=side.headers)
    answer = connection.getresponse()
    while answer.read(PIECE):
        pass
    if answer.status != 200:
        raise RuntimeError(f"{path} was refused: {answer.status}")


def _wait_for(side: Side) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            side.connect().connect()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1:])
