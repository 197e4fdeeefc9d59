"""Users of server processes of any implementation: their requests, each in one call.

    alice, bob = ours.register("alice"), theirs.register("bob")
    room_id = alice.create(preset="public_chat")
    until(lambda: bob.members(room_id) == …)

tests/helpers/interop_servers.py starts the servers.
"""

import http.client
import json as json_module
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from tests.helpers.keys import identity_keys, one_time_keys

T = TypeVar("T")
V3 = "/_matrix/client/v3"
PASSWORD = "wonderland"
SECONDS_TO_HEAR = 60.0
MAX_PAGES = 100


@dataclass(frozen=True, slots=True)
class Said:
    """A JSON response."""

    status: int
    json: Any


@dataclass(frozen=True, slots=True)
class Bytes:
    """A binary response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Person:
    """A signed-in user of one of the servers."""

    def __init__(self, server: "InteropServer", signed_in: Mapping[str, Any]) -> None:
        """`signed_in`: the server's response to registration or login."""
        self.server = server
        self.user_id = str(signed_in["user_id"])
        self.device_id = str(signed_in["device_id"])
        self._token = str(signed_in["access_token"])

    def ask(self, method: str, path: str, json: Any = None) -> Said:
        """Send a request; `path` is relative to `/_matrix/client/v3`."""
        return self.server.ask(
            method, V3 + path, json if json is not None or method == "GET" else {}, self._token
        )

    def ask_bytes(self, method: str, path: str, body: bytes | None = None) -> "Bytes":
        """Send a request with binary bodies to an absolute path."""
        return self.server.ask_bytes(method, path, body, self._token)

    def ask_at(self, method: str, path: str, json: Any = None) -> Said:
        """Send a request to an absolute path."""
        return self.server.ask(method, path, json, self._token)

    def ok(self, method: str, path: str, json: Any = None) -> Any:
        """Send a request that must succeed; return its JSON."""
        said = self.ask(method, path, json)
        assert said.status == 200, (method, path, said)
        return said.json

    def another_device(self) -> "Person":
        """Sign in again, on a new device."""
        who = {"type": "m.id.user", "user": self.user_id}
        body = {"type": "m.login.password", "identifier": who, "password": PASSWORD}
        return Person(self.server, self.ok("POST", "/login", body))

    def create(self, **options: Any) -> str:
        return str(self.ok("POST", "/createRoom", options)["room_id"])

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
        """Change some power levels; keep the others."""
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
        """Return the rooms of a section of an initial `/sync`."""
        rooms: dict[str, Any] = self.sync().get("rooms", {}).get(section, {})
        return rooms

    def ephemeral(self, room_id: str, type: str) -> Any:
        """Return the content of the room's ephemeral event of this type in an initial `/sync`."""
        events = self.rooms("join").get(room_id, {}).get("ephemeral", {}).get("events", [])
        return next((event["content"] for event in events if event["type"] == type), {})

    def event(self, room_id: str, event_id: str) -> Any:
        """Return an event, or None if the server does not show it."""
        said = self.ask("GET", f"/rooms/{quote(room_id, safe='')}/event/{quote(event_id, safe='')}")
        return said.json if said.status == 200 else None

    def redact(self, room_id: str, event_id: str) -> str:
        path = (
            f"/rooms/{quote(room_id, safe='')}/redact/{quote(event_id, safe='')}"
            f"/{time.monotonic_ns()}"
        )
        return str(self.ok("PUT", path, {})["event_id"])

    def bodies(self, room_id: str, limit: int = 100) -> list[str]:
        """Return the texts of one page of messages, newest first."""
        said = self.ask("GET", f"/rooms/{quote(room_id, safe='')}/messages?dir=b&limit={limit}")
        return _bodies(said.json["chunk"]) if said.status == 200 else []

    def history(self, room_id: str, limit: int = 100) -> list[Any]:
        """Return all events of a room, newest first, over all pages."""
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
        raise AssertionError("pagination does not end")

    def said(self, room_id: str) -> list[str]:
        """Return the texts of all messages in a room, newest first."""
        return _bodies(self.history(room_id))


class InteropServer:
    """A server as its clients reach it."""

    def __init__(self, name: str, client_port: int) -> None:
        self.name = name
        self._port = client_port

    @property
    def port(self) -> int:
        """The port of its client API on this machine."""
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
        """Send a request with binary bodies."""
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
        """Register an account; return the response with its `access_token`."""
        body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        said = self.ask("POST", f"{V3}/register", body)
        assert said.status == 200, said
        return said.json


def until(
    look: Callable[[], T | None],
    seconds: float = SECONDS_TO_HEAR,
    instead: Callable[[], object] = lambda: "",
) -> T:
    """Call `look` until it returns a true value, and return that. Other servers process events
    asynchronously.

    `instead` describes the state for the failure message.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            assert found, f"no result in time: {instead()}"
            return found
        time.sleep(0.1)


def _bodies(events: Sequence[Mapping[str, Any]]) -> list[str]:
    return [event["content"]["body"] for event in events if "body" in event.get("content", {})]


def create_shared_room(host: Person, guest: Person, **options: Any) -> str:
    """Create a public room with both users. Return its ID."""
    room_id = host.create(preset="public_chat", **options)
    assert guest.join(room_id, host.server.name).status == 200
    until(lambda: host.members(room_id).get(guest.user_id) == "join")
    until(
        lambda: room_id in guest.rooms("join")
    )  # Synapse shows the room once it has the complete state
    return room_id


def state_event_ids(person: Person, room_id: str) -> dict[tuple[str, str], str]:
    """Return the event IDs of the complete state."""
    events = person.ok("GET", f"/rooms/{quote(room_id)}/state")
    return {(event["type"], event["state_key"]): event["event_id"] for event in events}


def topic_of(person: Person, room_id: str) -> Any:
    """Return the topic as the person sees it."""
    return (person.state(room_id, "m.room.topic") or {}).get("topic")


def publish_keys(person: Person, seed: int, *names: str) -> dict[str, Any]:
    """Publish the keys of a device; return the keys that others must receive."""
    keys = identity_keys(person, seed)[1]
    person.ok("POST", "/keys/upload", {"device_keys": keys, "one_time_keys": one_time_keys(*names)})
    return keys
