"""Pushes from a server process through a third-party gateway: ntfy, from Debian.

A device that ntfy serves has an address there as its pushkey; what comes for it can be fetched at
that address. And nothing comes where that server does not go.
"""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from storage.engine.database import SQLiteConfig
from tests.conftest import run_coroutine
from tests.helpers.databases import open_inline
from tests.helpers.ports import free_port
from tests.helpers.server_process import OPEN, RunningServer, ServerFiles

NOT_INSTALLED = (
    "NOTHING WAS PUSHED TO A REAL GATEWAY: ntfy is not installed here."
    " scripts/push_gateway installs it"
)
SECONDS = 60.0
V3 = "/_matrix/client/v3"

T = TypeVar("T")


class Ntfy:
    """The gateway, a process of its own."""

    def __init__(self, command: str, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        settings = folder / "server.yml"
        # it would soon answer nobody here: the test asks it often, and has the server's address
        settings.write_text('visitor-request-limit-exempt-hosts: "127.0.0.1"\n', encoding="utf-8")
        self._log = (folder / "ntfy.log").open("wb")
        self._process = subprocess.Popen(
            [
                command,
                "serve",
                "--config",
                settings,
                "--listen-http",
                f"127.0.0.1:{port}",
                "--base-url",
                self.url,
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def pushkey(self, topic: str) -> str:
        return f"{self.url}/up{topic}?up=1"

    def pushes(self, topic: str) -> list[dict[str, Any]]:
        """Return the notifications that a device got, in order."""
        with urlopen(f"{self.url}/up{topic}/json?poll=1", timeout=10) as answer:
            messages = [json.loads(line) for line in answer.read().splitlines() if line]
        return [json.loads(message["message"])["notification"] for message in messages]

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._log.close()


def until(look: Callable[[], T | None]) -> T:
    """Return the result of `look` as soon as it is true."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            found = look()
        except (URLError, OSError):
            found = None
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come")


@pytest.fixture
def ntfy(tmp_path: Path) -> Iterator[Ntfy]:
    command = shutil.which("ntfy")
    if command is None:
        pytest.skip(NOT_INSTALLED)
    made = Ntfy(command, tmp_path, free_port())
    try:
        until(lambda: urlopen(made.url + "/v1/health", timeout=5).read())
        yield made
    finally:
        made.end()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ServerFiles]:
    folder = tmp_path / "server"
    folder.mkdir()
    further = {**OPEN, "push": {"allow_plain_http": True}, "ip_range_whitelist": ["127.0.0.1"]}
    made = ServerFiles(folder, SQLiteConfig(str(folder / "homeserver.db")), further)
    yield made
    made.end()


def set_pusher(server: RunningServer, token: str, pushkey: str, url: str, **data: str) -> None:
    body = {
        "kind": "http",
        "app_id": "org.example.app",
        "pushkey": pushkey,
        "app_display_name": "App",
        "device_display_name": "Telephone",
        "lang": "uz",
        "data": {"url": f"{url}/_matrix/push/v1/notify", **data},
    }
    answer = server.request("POST", f"{V3}/pushers/set", body, token=token)
    assert answer.status == 200, answer.body


def test_pushes_arrive_and_continue_after_a_crash_and_a_rejected_pusher_is_deleted(
    ntfy: Ntfy, files: ServerFiles
) -> None:
    server = files.start()
    alice, bob = server.register("alice"), server.register("bob")
    answer = server.request(
        "POST", f"{V3}/createRoom", {"preset": "public_chat", "name": "Choyxona"}, token=bob
    )
    room_id = answer.json["room_id"]
    assert server.request("POST", f"{V3}/join/{room_id}", {}, token=alice).status == 200
    set_pusher(server, alice, ntfy.pushkey("Full"), ntfy.url)
    set_pusher(server, alice, ntfy.pushkey("Ids"), ntfy.url, format="event_id_only")
    set_pusher(server, alice, "http://elsewhere.example/upOther", ntfy.url)

    def say(text: str) -> str:
        path = f"{V3}/rooms/{room_id}/send/m.room.message/{text}"
        sent = server.request("PUT", path, {"msgtype": "m.text", "body": text}, token=bob)
        return str(sent.json["event_id"])

    first = say("salom")
    [full] = until(lambda: ntfy.pushes("Full"))
    assert (full["event_id"], full["room_name"], full["sender_display_name"]) == (
        first,
        "Choyxona",
        "bob",
    )
    assert full["content"]["body"] == "salom"
    assert full["counts"] == {"unread": 1}
    [ids] = until(lambda: ntfy.pushes("Ids"))
    assert set(ids) == {"event_id", "room_id", "prio", "counts", "devices"}

    def keys() -> list[str]:
        pushers = server.request("GET", f"{V3}/pushers", token=alice).json["pushers"]
        return [each["pushkey"] for each in pushers]

    rejecting = until(lambda: len(keys()) == 2 and keys())
    assert rejecting == [ntfy.pushkey("Full"), ntfy.pushkey("Ids")]

    server.kill()
    server = files.start()
    second = say("yana")
    until(lambda: second in [each.get("event_id") for each in ntfy.pushes("Full")])
    receipt = server.request(
        "POST", f"{V3}/rooms/{room_id}/receipt/m.read/{second}", {}, token=alice
    )
    assert receipt.status == 200
    badge = until(lambda: [each for each in ntfy.pushes("Full") if "event_id" not in each])
    assert badge[-1]["counts"] == {"unread": 0}
    assert server.stop() == 0


@contextmanager
def listening(host: str) -> Iterator[tuple[str, list[bytes]]]:
    """Listen at an address, accept every request, and yield the URL and the bodies of the
    requests."""
    came: list[bytes] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer((host, 0), Taker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{host}:{server.server_port}", came
        server.shutdown()


def errors_of_pushers(config: SQLiteConfig) -> dict[str, str | None]:
    database, found = open_inline(config), dict[str, str | None]()

    async def read() -> None:
        found.update(
            await database.read("test", lambda txn: txn.query("SELECT pushkey, error FROM pushers"))
        )

    run_coroutine(read(), None)
    run_coroutine(database.close(), None)
    return found


def test_a_gateway_at_a_denied_address_gets_no_pushes(tmp_path: Path, files: ServerFiles) -> None:
    """Users choose the address of their gateway: it must not lead into the network of the
    operator."""
    with listening("127.0.0.1") as (allowed, taken), listening("127.0.0.2") as (inside, reached):
        server = files.start()
        alice, bob = server.register("alice"), server.register("bob")
        answer = server.request("POST", f"{V3}/createRoom", {"preset": "public_chat"}, token=bob)
        room_id = answer.json["room_id"]
        assert server.request("POST", f"{V3}/join/{room_id}", {}, token=alice).status == 200
        set_pusher(server, alice, "inside", inside)
        set_pusher(server, alice, "allowed", allowed)
        for number in range(1, 3):
            content = {"msgtype": "m.text", "body": "x"}
            path = f"{V3}/rooms/{room_id}/send/m.room.message/{number}"
            assert server.request("PUT", path, content, token=bob).status == 200
        until(lambda: len(taken) == 2)
        assert server.stop() == 0
        assert reached == []
    errors = errors_of_pushers(SQLiteConfig(str(tmp_path / "server" / "homeserver.db")))
    assert errors["allowed"] is None
    assert errors["inside"] == "its address is one that this server does not contact"
