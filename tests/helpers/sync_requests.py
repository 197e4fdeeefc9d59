"""Requests for tests of `/sync`."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Any
from urllib.parse import quote

from tests.helpers.http import Pending
from tests.helpers.server import User

Json = dict[str, Any]
_V3 = "/_matrix/client/v3"


def sync_path(since: str | None = None, filter: Json | str | None = None, **more: object) -> str:
    """Return the path of a `/sync` request."""
    query = {} if since is None else {"since": since}
    if filter is not None:
        query["filter"] = filter if isinstance(filter, str) else json.dumps(filter)
    query.update((name, str(value)) for name, value in more.items())
    return f"{_V3}/sync?" + "&".join(f"{name}={quote(value)}" for name, value in query.items())


def sync(
    user: User, since: str | None = None, filter: Json | str | None = None, **more: object
) -> Json:
    """Send a `/sync` request that must be answered at once; return the response."""
    answer = user.get(sync_path(since, filter, **more))
    assert answer.status == 200, answer.body
    return dict(answer.json)


def token(user: User) -> str:
    """Return the current `next_batch` token."""
    return str(sync(user)["next_batch"])


def poll(user: User, since: str, filter: Json | None = None, timeout: int = 30_000) -> Pending:
    """Start a long poll."""
    return user.start("GET", sync_path(since, filter, timeout=timeout))


class Rooms:
    """Requests to rooms that must succeed."""

    def __init__(self) -> None:
        self._txn = count(1)

    def create(self, user: User, *members: User, **body: object) -> str:
        answer = user.post(f"{_V3}/createRoom", {"preset": "public_chat", **body})
        assert answer.status == 200, answer.body
        room_id = str(answer.json["room_id"])
        for member in members:
            self.join(member, room_id)
        return room_id

    def join(self, user: User, room_id: str) -> None:
        self.act(user, room_id, "join")

    def act(self, user: User, room_id: str, verb: str, target: User | None = None) -> None:
        body = {} if target is None else {"user_id": target.user_id}
        answer = user.post(f"{_V3}/rooms/{room_id}/{verb}", body)
        assert answer.status == 200, answer.body

    def say(
        self,
        user: User,
        room_id: str,
        body: str = "hello",
        type: str = "m.room.message",
        more: Json | None = None,
    ) -> str:
        return self.send(user, room_id, type, {"msgtype": "m.text", "body": body, **(more or {})})

    def send(
        self, user: User, room_id: str, type: str, content: Json, txn: str | None = None
    ) -> str:
        answer = user.put(f"{_V3}/rooms/{room_id}/send/{type}/{txn or next(self._txn)}", content)
        assert answer.status == 200, answer.body
        return str(answer.json["event_id"])

    def state(self, user: User, room_id: str, type: str, content: Json, key: str = "") -> str:
        answer = user.put(f"{_V3}/rooms/{room_id}/state/{type}/{key}", content)
        assert answer.status == 200, answer.body
        return str(answer.json["event_id"])

    def redact(self, user: User, room_id: str, event_id: str) -> str:
        answer = user.put(f"{_V3}/rooms/{room_id}/redact/{event_id}/{next(self._txn)}", {})
        assert answer.status == 200, answer.body
        return str(answer.json["event_id"])

    def read(
        self,
        user: User,
        room_id: str,
        event_id: str,
        kind: str = "m.read",
        thread: str | None = None,
    ) -> None:
        body = {} if thread is None else {"thread_id": thread}
        answer = user.post(f"{_V3}/rooms/{room_id}/receipt/{kind}/{event_id}", body)
        assert answer.status == 200, answer.body

    def type(self, user: User, room_id: str, typing: bool = True) -> None:
        answer = user.put(
            f"{_V3}/rooms/{room_id}/typing/{user.user_id}", {"typing": typing, "timeout": 10_000}
        )
        assert answer.status == 200, answer.body

    def keep(self, user: User, type: str, content: Json, room_id: str | None = None) -> None:
        where = "" if room_id is None else f"/rooms/{room_id}"
        answer = user.put(f"{_V3}/user/{user.user_id}{where}/account_data/{type}", content)
        assert answer.status == 200, answer.body


def ids(room: Json) -> list[str]:
    """Return the event IDs of a room's timeline."""
    return [event["event_id"] for event in room["timeline"]["events"]]


def bodies(room: Json) -> list[str]:
    """Return the texts of a room's timeline."""
    return [
        event["content"]["body"]
        for event in room["timeline"]["events"]
        if "body" in event["content"]
    ]


def keys(events: list[Json]) -> set[tuple[str, str]]:
    """Return the types and state keys of events."""
    return {(event["type"], event["state_key"]) for event in events}


def events_in(value: object) -> Iterator[dict[str, Any]]:
    """Return every event in a response, however deep."""
    if isinstance(value, dict):
        if "event_id" in value and "origin_server_ts" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from events_in(each)
