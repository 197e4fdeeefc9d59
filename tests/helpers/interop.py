"""This server and Synapse, as processes that reach each other by TLS with an authority of the tests' own.

    town = Town(tmp_path, python_of_synapse())
    ours, theirs = town.start_ours(), town.start_synapse()
    alice, bob = ours.register("alice"), theirs.register("bob")
    alice.ok("POST", "/createRoom", {…})

A server's name is `localhost:PORT`. `Town.end()` ends all processes, by their ids.
"""

import http.client
import json as json_module
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import yaml

from storage.database import SQLiteConfig
from tests.helpers.certificates import Authority
from tests.helpers.running import ServerFiles

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
V3 = "/_matrix/client/v3"
SECONDS_TO_START = 60.0
SECONDS_TO_HEAR = 30.0
_UNLIMITED = {"per_second": 100000, "burst_count": 100000}


def python_of_synapse() -> Path | None:
    """The interpreter of the environment that scripts/synapse makes, if it is there."""
    named = os.environ.get("MAHALLA_SYNAPSE_PYTHON")
    path = Path(named) if named else ROOT / ".cache" / "synapse" / "bin" / "python"
    return path if path.exists() else None


@dataclass(frozen=True, slots=True)
class Said:
    """An answer."""

    status: int
    json: Any


class Person:
    """Somebody who is signed in on one of the servers."""

    def __init__(self, server: "Side", user_id: str, token: str) -> None:
        self.server = server
        self.user_id = user_id
        self._token = token

    def ask(self, method: str, path: str, json: Any = None) -> Said:
        """A request; `path` is what follows `/_matrix/client/v3`."""
        return self.server.ask(method, V3 + path, json if json is not None or method == "GET" else {}, self._token)

    def ok(self, method: str, path: str, json: Any = None) -> Any:
        """The JSON of a request that must not fail."""
        said = self.ask(method, path, json)
        assert said.status == 200, (method, path, said)
        return said.json

    def create(self, **wish: Any) -> str:
        return str(self.ok("POST", "/createRoom", wish)["room_id"])

    def join(self, room: str, *via: str) -> Said:
        query = "&".join(f"server_name={quote(server)}&via={quote(server)}" for server in via)
        return self.ask("POST", f"/join/{quote(room, safe='')}?{query}")

    def knock(self, room: str, *via: str) -> Said:
        query = "&".join(f"server_name={quote(server)}&via={quote(server)}" for server in via)
        return self.ask("POST", f"/knock/{quote(room, safe='')}?{query}")

    def room(self, room_id: str, action: str, **body: Any) -> Said:
        return self.ask("POST", f"/rooms/{quote(room_id, safe='')}/{action}", body)

    def say(self, room_id: str, text: str) -> str:
        path = f"/rooms/{quote(room_id, safe='')}/send/m.room.message/{time.monotonic_ns()}"
        return str(self.ok("PUT", path, {"msgtype": "m.text", "body": text})["event_id"])

    def set_state(self, room_id: str, type: str, content: Mapping[str, Any], key: str = "") -> None:
        self.ok("PUT", f"/rooms/{quote(room_id, safe='')}/state/{type}/{quote(key, safe='')}", content)

    def state(self, room_id: str, type: str, key: str = "") -> Any:
        said = self.ask("GET", f"/rooms/{quote(room_id, safe='')}/state/{type}/{quote(key, safe='')}")
        return said.json if said.status == 200 else None

    def members(self, room_id: str) -> dict[str, str]:
        said = self.ask("GET", f"/rooms/{quote(room_id, safe='')}/members")
        if said.status != 200:
            return {}
        return {event["state_key"]: event["content"]["membership"] for event in said.json["chunk"]}

    def rooms(self, section: str) -> dict[str, Any]:
        """The rooms of a section of /sync."""
        rooms: dict[str, Any] = self.ok("GET", "/sync?timeout=0").get("rooms", {}).get(section, {})
        return rooms

    def bodies(self, room_id: str, limit: int = 100) -> list[str]:
        """What was said, the newest first."""
        said = self.ask("GET", f"/rooms/{quote(room_id, safe='')}/messages?dir=b&limit={limit}")
        events = said.json["chunk"] if said.status == 200 else []
        return [event["content"]["body"] for event in events if "body" in event.get("content", {})]


class Side:
    """A server that runs."""

    def __init__(self, name: str, client_port: int, log: Path, process: "subprocess.Popen[bytes]") -> None:
        self.name = name
        self.log = log
        self.process = process
        self._port = client_port

    def ask(self, method: str, path: str, json: Any = None, token: str | None = None) -> Said:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            headers = {"Content-Type": "application/json"}
            if token is not None:
                headers["Authorization"] = f"Bearer {token}"
            connection.request(method, path, None if json is None else json_module.dumps(json), headers)
            answer = connection.getresponse()
            body = answer.read()
            return Said(answer.status, json_module.loads(body) if body else None)
        finally:
            connection.close()

    def register(self, name: str) -> Person:
        body = {"username": name, "password": "wonderland", "auth": {"type": "m.login.dummy"}}
        said = self.ask("POST", f"{V3}/register", body)
        assert said.status == 200, said
        return Person(self, said.json["user_id"], said.json["access_token"])

    def wait_until_ready(self) -> "Side":
        def asks() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-5000:]
            try:
                return self.ask("GET", "/_matrix/client/versions").status == 200
            except OSError:
                return False

        until(asks, SECONDS_TO_START)
        return self


def until(look: Callable[[], T | None], seconds: float = SECONDS_TO_HEAR) -> T:
    """Look again and again, until there is something to see: the other server hears of things in its own time."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            assert found, "what was waited for did not happen"
            return found
        time.sleep(0.1)


class Town:
    """Where the servers are."""

    def __init__(self, folder: Path, synapse: Path) -> None:
        self._folder = folder
        self._synapse = synapse
        self._authority = Authority(folder)
        self._ours: list[ServerFiles] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def start_ours(self, **further: Any) -> Side:
        port, client_port = free_port(), free_port()
        certificate, key = self._authority.issue("localhost")
        folder = self._folder / f"ours-{port}"
        files = ServerFiles(
            folder,
            SQLiteConfig(str(folder / "homeserver.db")),
            {
                "server_name": f"localhost:{port}",
                "tls_certificate_path": str(certificate),
                "tls_private_key_path": str(key),
                "federation_custom_ca_list": [str(self._authority.path)],
                "ip_range_whitelist": ["127.0.0.1", "::1"],
                "allow_public_rooms_over_federation": True,
                "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
                "listeners": [
                    {"port": client_port, "bind_addresses": ["127.0.0.1"], "resources": [{"names": ["client"]}]},
                    {
                        "port": port,
                        "bind_addresses": ["127.0.0.1"],
                        "tls": True,
                        "resources": [{"names": ["federation"]}],
                    },
                ],
                **further,
            },
        )
        self._ours.append(files)
        server = files.start(listeners=2)
        return Side(f"localhost:{port}", client_port, server.log, server.process).wait_until_ready()

    def start_synapse(self, **further: Any) -> Side:
        port, client_port = free_port(), free_port()
        certificate, key = self._authority.issue("localhost")
        folder = self._folder / f"synapse-{port}"
        folder.mkdir()
        config = folder / "homeserver.yaml"
        settings = {
            "server_name": f"localhost:{port}",
            "report_stats": False,
            "pid_file": str(folder / "pid"),
            "signing_key_path": str(folder / "signing.key"),
            "media_store_path": str(folder / "media"),
            "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
            "macaroon_secret_key": "m",
            "form_secret": "f",
            "tls_certificate_path": str(certificate),
            "tls_private_key_path": str(key),
            "federation_custom_ca_list": [str(self._authority.path)],
            "ip_range_blacklist": [],
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "allow_public_rooms_over_federation": True,
            "room_list_publication_rules": [{"action": "allow"}],
            "bcrypt_rounds": 4,
            # else a first /sync that is repeated is answered as it was before
            "caches": {"sync_response_cache_duration": 0},
            "rc_message": _UNLIMITED,
            "rc_registration": _UNLIMITED,
            "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
            "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
            "rc_joins_per_room": _UNLIMITED,
            "rc_room_creation": _UNLIMITED,
            "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
            "listeners": [
                {
                    "port": client_port,
                    "bind_addresses": ["127.0.0.1"],
                    "type": "http",
                    "resources": [{"names": ["client"]}],
                },
                {
                    "port": port,
                    "bind_addresses": ["127.0.0.1"],
                    "type": "http",
                    "tls": True,
                    "resources": [{"names": ["federation"]}],
                },
            ],
            **further,
        }
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        command = [str(self._synapse), "-m", "synapse.app.homeserver", "-c", str(config)]
        subprocess.run([*command, "--generate-keys"], check=True, capture_output=True, cwd=folder)
        log = folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self._started.append(process)
        return Side(f"localhost:{port}", client_port, log, process).wait_until_ready()

    def end(self) -> None:
        """Let no process outlive the tests."""
        for files in self._ours:
            files.end()
        for process in self._started:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
