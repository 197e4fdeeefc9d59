"""Measures uploads, downloads and thumbnails: a server on SQLite, compared with plain
twisted.web.static, and with Synapse if it is installed.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench_parts.processes import cpu_seconds, peak_memory_kb, reset_peak
from storage.engine.database import SQLiteConfig
from tests.helpers.images import picture
from tests.helpers.interop_servers import InteropServers, python_of_synapse
from tests.helpers.ports import free_port
from tests.helpers.server_process import ServerFiles

KB, MB = 1000, 1_000_000
PARALLEL = 100
PIECE = 1 << 18
UPLOAD = "/_matrix/media/v3/upload"
DOWNLOAD = "/_matrix/client/v1/media/download/"
THUMBNAIL = "/_matrix/client/v1/media/thumbnail/"
UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}
EXTRA_OPTIONS = {"max_upload_size": "2G", "rc_media_create": UNLIMITED, "rc_message": UNLIMITED}
PNG = b"\x89PNG\r\n\x1a\n"
"""The beginning of all uploads: they are declared as pictures."""
STATIC = """
import sys
from twisted.internet import reactor
from twisted.web.server import Site
from twisted.web.static import File
reactor.listenTCP(int(sys.argv[2]), Site(File(sys.argv[1])), interface="127.0.0.1")
reactor.run()
"""


@dataclass(frozen=True, slots=True)
class MeasuredServer:
    """A server to measure."""

    pid: int
    port: int
    headers: dict[str, str]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a line for each kind of work."""
    parser = argparse.ArgumentParser(prog="scripts/bench files")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    sizes = ((10 * KB, 200), (MB, 50), (64 * MB if options.quick else 1000 * MB, 1))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        servers = {"": _start_ours(stack, folder / "ours")}
        synapse = python_of_synapse()
        if synapse is None:
            sys.stderr.write("without Synapse: scripts/synapse installs it\n")
        else:
            servers["Synapse"] = _start_synapse(stack, folder / "synapse", synapse)
        static = folder / "static"
        static.mkdir()
        plain = _start_static(stack, static)
        sys.stdout.write("| work | CPU ms each | MB/s | peak MB |\n| --- | ---: | ---: | ---: |\n")
        for size, count in sizes:
            _measure_size(servers, plain, static, size, count)
        _measure_thumbnails(servers)
        for server, measured in servers.items():
            _measure_parallel(server, measured)


def _start_ours(stack: ExitStack, folder: Path) -> MeasuredServer:
    folder.mkdir()
    files = ServerFiles(folder, SQLiteConfig(str(folder / "homeserver.db")), EXTRA_OPTIONS)
    stack.callback(files.end)
    server = files.start()
    stack.callback(server.stop)
    return MeasuredServer(server.process.pid, server.ports[0], _headers(server.register("alice")))


def _start_synapse(stack: ExitStack, folder: Path, python: Path) -> MeasuredServer:
    folder.mkdir()
    town = InteropServers(folder, python)
    stack.callback(town.end)
    server = town.start_synapse(**EXTRA_OPTIONS)
    return MeasuredServer(
        server.pid, server.port, _headers(server.sign_up("alice")["access_token"])
    )


def _start_static(stack: ExitStack, folder: Path) -> MeasuredServer:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", STATIC, str(folder), str(port)])
    stack.callback(process.wait)
    stack.callback(process.terminate)
    measured = MeasuredServer(process.pid, port, {})
    _wait_for(measured)
    return measured


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Content-Type": "image/png"}


def _named(label: str, server: str) -> str:
    return f"{label}, {server}" if server else label


def _measure_size(
    servers: Mapping[str, MeasuredServer],
    plain: MeasuredServer,
    static: Path,
    size: int,
    count: int,
) -> None:
    label = f"{size // MB} MB" if size >= MB else f"{size // KB} kB"
    addresses: dict[str, list[str]] = {server: [] for server in servers}
    seed = PNG + os.urandom(16)
    for server, measured in servers.items():
        connection = measured.connect()

        def upload(number: int) -> None:
            content = seed + number.to_bytes(4, "big")
            addresses[server].append(_upload(connection, measured, content, size))  # noqa: B023

        _line(_named(f"upload, {label}", server), measured, upload, count, size)
    for server, measured in servers.items():
        connection = measured.connect()
        paths = [DOWNLOAD + address for address in addresses[server]]

        def download(number: int) -> None:
            _fetch(connection, measured, paths[number])  # noqa: B023

        _line(_named(f"download, {label}", server), measured, download, count, size)
    with (static / str(size)).open("wb") as file:
        for piece in _pieces(seed, size):
            file.write(piece)
    connection = plain.connect()
    _line(
        f"download, {label}, twisted.web.static",
        plain,
        lambda _: _fetch(connection, plain, f"/{size}"),
        count,
        size,
    )


def _measure_thumbnails(servers: Mapping[str, MeasuredServer]) -> None:
    """Measure thumbnails. Synapse makes them at the upload, our server at the first request, so the
    upload and the first thumbnail are measured together."""
    pictures = [picture(1600 + number, 1200, "JPEG") for number in range(40)]
    for server, measured in servers.items():
        connection = measured.connect()
        files: list[str] = []

        def first(number: int) -> None:
            headers = {**measured.headers, "Content-Type": "image/jpeg"}  # noqa: B023
            connection.request("POST", UPLOAD, pictures[number], headers)  # noqa: B023
            files.append(THUMBNAIL + _address(connection.getresponse().read()))  # noqa: B023
            _fetch(connection, measured, f"{files[-1]}?width=320&height=240&method=scale")  # noqa: B023

        def further(number: int) -> None:
            path = f"{files[number]}?width=640&height=480&method=scale"  # noqa: B023
            _fetch(connection, measured, path)  # noqa: B023

        _line(
            _named("photo of 2 megapixels, uploaded, and its thumbnail", server),
            measured,
            first,
            len(pictures),
            0,
        )
        if not server:
            seconds = _line(
                "thumbnail of it in another size, made", measured, further, len(files), 0
            )
            sys.stdout.write(f"| the same, sequential, a second | | {40 / seconds:.1f} | |\n")
        _line(_named("thumbnail, stored", server), measured, further, len(files), 0)


def _measure_parallel(server: str, measured: MeasuredServer) -> None:
    """Measure memory with many concurrent transfers: half are uploads, half downloads."""
    address = _upload(measured.connect(), measured, b"parallel", 10 * MB)

    def work(number: int) -> None:
        connection = measured.connect()
        if number % 2:
            _upload(connection, measured, number.to_bytes(4, "big"), 10 * MB)
        else:
            _fetch(connection, measured, DOWNLOAD + address)

    reset_peak([measured.pid])
    threads = [threading.Thread(target=work, args=(number,)) for number in range(PARALLEL)]
    before, began = cpu_seconds(measured.pid), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = PARALLEL * 10 / (time.monotonic() - began)
    cpu = (cpu_seconds(measured.pid) - before) / PARALLEL * 1000
    label = _named(f"{PARALLEL} transfers of 10 MB at once", server)
    sys.stdout.write(
        f"| {label} | {cpu:.2f} | {rate:.0f} | {peak_memory_kb([measured.pid]) / 1024:.0f} |\n"
    )


def _line(
    label: str, measured: MeasuredServer, work: Callable[[int], None], count: int, size: int
) -> float:
    """Measure the work and print a line. Return its duration in seconds."""
    reset_peak([measured.pid])
    before, began = cpu_seconds(measured.pid), time.monotonic()
    for number in range(count):
        work(number)
    seconds = time.monotonic() - began
    cpu = (cpu_seconds(measured.pid) - before) / count * 1000
    rate = f"{count * size / MB / seconds:.0f}" if size else ""
    sys.stdout.write(
        f"| {label} | {cpu:.2f} | {rate} | {peak_memory_kb([measured.pid]) / 1024:.0f} |\n"
    )
    sys.stdout.flush()
    return seconds


def _upload(
    connection: http.client.HTTPConnection, measured: MeasuredServer, seed: bytes, size: int
) -> str:
    connection.request(
        "POST", UPLOAD, _pieces(seed, size), {**measured.headers, "Content-Length": str(size)}
    )
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"the upload was refused: {body!r}")
    return _address(body)


def _address(body: bytes) -> str:
    return body.decode().split("mxc://")[1].rstrip('"}')


def _pieces(seed: bytes, size: int) -> Iterator[bytes]:
    piece = seed + bytes(PIECE - len(seed))
    for start in range(0, size, PIECE):
        yield piece[: size - start]


def _fetch(connection: http.client.HTTPConnection, measured: MeasuredServer, path: str) -> None:
    connection.request("GET", path, headers=measured.headers)
    answer = connection.getresponse()
    while answer.read(PIECE):
        pass
    if answer.status != 200:
        raise RuntimeError(f"{path} was refused: {answer.status}")


def _wait_for(measured: MeasuredServer) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            measured.connect().connect()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1:])
