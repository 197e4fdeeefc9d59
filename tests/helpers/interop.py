"""People on servers that run as processes, whatever servers they are: what they do and see, each in
a line.

    alice, bob = ours.register("alice"), theirs.register("bob")
    room_id = alice.create(preset="public_chat")
    until(lambda: bob.members(room_id) == …)

How the servers are started: tests/helpers/town.py.
"""

import http.client
import json as json_module
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

T = TypeVar("T")
V3 = "/_matrix/client/v3"
PASSWORD = "wonderland"
SECONDS_TO_HEAR = 60.0
MAX_PAGES = 100


@dataclass(frozen=True, slots=True)
class Said:
    """An answer."""

    status: int
    json: Any


@dataclass(frozen=True, slots=True)
class Bytes:
    """An answer that is no JSON. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Person:
    """Somebody who is signed in on one of the servers."""

    def __init__(self, server: "Side", signed_in: Mapping[str, Any]) -> None:
        """`signed_in`: the server's answer to the registration or login."""
        self.server = server
        self.user_id = str(signed_in["user_id"])
        self.device_id = str(signed_in["device_id"])
        self._token = str(signed_in["access_token"])

    def ask(self, method: str, path: str, json: Any = None) -> Said:
        """A request; `path` is what follows `/_matrix/client/v3`."""
        return self.server.ask(
            method, V3 + path, json if json is not None or method == "GET" else {}, self._token
        )

    def ask_bytes(self, method: str, path: str, body: bytes | None = None) -> "Bytes":
        """A request to a whole path, for what is no JSON: pictures."""
        return self.server.ask_bytes(method, path, body, self._token)

    def ask_at(self, method: str, path: str, json: Any = None) -> Said:
        """A request to a whole path."""
        return self.server.ask(method, path, json, self._token)

    def ok(self, method: str, path: str, json: Any = None) -> Any:
        """The JSON of a request that must not fail."""
        said = self.ask(method, path, json)
        assert said.status == 200, (method, path, said)
        return said.json

    def another_device(self) -> "Person":
        """The same, signed in once more."""
        who = {"type": "m.id.user", "user": self.user_id}
        body = {"type": "m.login.password", "identifier": who, "password": PASSWORD}
        return Person(self.server, self.ok("POST", "/login", body))

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
        self.ok(
            "PUT", f"/rooms/{quote(room_id, safe='')}/state/{type}/{quote(key, safe='')}", content
        )

    def state(self, room_id: str, type: str, key: str = "") -> Any:
        said = self.ask(
            "GET", f"/rooms/{quote(room_id, safe='')}/state/{type}/{quote(key, safe='')}"
        )
        return said.json if said.status == 200 else None

    def members(self, room_id: str) -> dict[str, str]:
        said = self.ask("GET", f"/rooms/{quote(room_id, safe='')}/members")
        if said.status != 200:
            return {}
        return {event["state_key"]: event["content"]["membership"] for event in said.json["chunk"]}

    def set_levels(self, room_id: str, **levels: Any) -> None:
        """Change the power levels, the rest as they are."""
        self.set_state(
            room_id, "m.room.power_levels", {**self.state(room_id, "m.room.power_levels"), **levels}
        )

    def sync(self, since: str | None = None, timeout: int = 0, **filter: Any) -> Any:
        query = f"?timeout={timeout}" + (f"&since={quote(since)}" if since is not None else "")
        return self.ok(
            "GET",
            f"/sync{query}" + (f"&filter={quote(json_module.dumps(filter))}" if filter else ""),
        )

    def rooms(self, section: str) -> dict[str, Any]:
        """The rooms of a section of /sync."""
        rooms: dict[str, Any] = self.sync().get("rooms", {}).get(section, {})
        return rooms

    def told(self, room_id: str, type: str) -> Any:
        """The content of the ephemeral event of this type that /sync has of a room now."""
        events = self.rooms("join").get(room_id, {}).get("ephemeral", {}).get("events", [])
        return next((event["content"] for event in events if event["type"] == type), {})

    def event(self, room_id: str, event_id: str) -> Any:
        """An event, None where the server does not show it."""
        said = self.ask("GET", f"/rooms/{quote(room_id, safe='')}/event/{quote(event_id, safe='')}")
        return said.json if said.status == 200 else None

    def redact(self, room_id: str, event_id: str) -> str:
        path = f"/rooms/{quote(room_id, safe='')}/redact/{quote(event_id, safe='')}/{time.monotonic_ns()}"
        return str(self.ok("PUT", path, {})["event_id"])

    def bodies(self, room_id: str, limit: int = 100) -> list[str]:
        """The texts of the latest messages, newest first: one page."""
        said = self.ask("GET", f"/rooms/{quote(room_id, safe='')}/messages?dir=b&limit={limit}")
        return _bodies(said.json["chunk"]) if said.status == 200 else []

    def history(self, room_id: str, limit: int = 100) -> list[Any]:
        """All events of a room, the newest first, page by page to its beginning."""
        path, found, from_ = (
            f"/rooms/{quote(room_id, safe='')}/messages?dir=b&limit={limit}",
            [],
            "",
        )
        for _ in range(MAX_PAGES):
            page = self.ok("GET", path + from_)
            found += page["chunk"]
            if "end" not in page or (
                page["chunk"] and page["chunk"][-1]["type"] == "m.room.create"
            ):
                return found
            from_ = f"&from={quote(page['end'])}"
        raise AssertionError("the pages have no end")

    def said(self, room_id: str) -> list[str]:
        """All that was ever said in a room, the newest first."""
        return _bodies(self.history(room_id))


class Side:
    """A server, as its people reach it."""

    def __init__(self, name: str, client_port: int) -> None:
        self.name = name
        self._port = client_port

    @property
    def port(self) -> int:
        """The port of the client API on this machine."""
        return self._port

    def ask(self, method: str, path: str, json: Any = None, token: str | None = None) -> Said:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            headers = {"Content-Type": "application/json"}
            if token is not None:
                headers["Authorization"] = f"Bearer {token}"
            connection.request(
                method, path, None if json is None else json_module.dumps(json), headers
            )
            answer = connection.getresponse()
            body = answer.read()
            return Said(answer.status, json_module.loads(body) if body else None)
        finally:
            connection.close()

    def ask_bytes(self, method: str, path: str, body: bytes | None, token: str) -> Bytes:
        """A request whose bodies are pictures."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "image/png"}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            lines = {name.lower(): value for name, value in answer.getheaders()}
            return Bytes(answer.status, lines, answer.read())
        finally:
            connection.close()

    def register(self, name: str) -> Person:
        return Person(self, self.sign_up(name))

    def sign_up(self, name: str) -> Any:
        """A new account; what the server answers, with its `access_token`."""
        body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        said = self.ask("POST", f"{V3}/register", body)
        assert said.status == 200, said
        return said.json


def until(
    look: Callable[[], T | None],
    seconds: float = SECONDS_TO_HEAR,
    instead: Callable[[], object] = lambda: "",
) -> T:
    """Look again and again, until there is something to see: the other server hears of things in
    its own time.

    `instead` says what there was to see, where that did not come.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            assert found, f"what was waited for did not happen: {instead()}"
            return found
        time.sleep(0.1)


def _bodies(events: Sequence[Mapping[str, Any]]) -> list[str]:
    return [event["content"]["body"] for event in events if "body" in event.get("content", {})]
