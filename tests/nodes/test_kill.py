"""kill -9 at any moment loses nothing that was acknowledged, and repeats nothing.

Some users send as fast as possible: messages to one room and to several, state, redactions, account
data, leaves and joins. The process is killed at random moments and restarted. A request without a
response is repeated with the same transaction ID. A watcher continues `/sync` from its token. At
the end the rooms are compared with what was acknowledged.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

from storage.engine.database import PostgresConfig, SQLiteConfig
from storage.rooms.rooms import RoomStore
from tests.helpers.databases import open_inline
from tests.helpers.retrying_clients import CurrentServer, RetryingClient
from tests.helpers.server_process import RunningServer, ServerFiles

SEED = 20240229
ROUNDS = 20
SENDERS = 4
ROOMS = 3
OPTIONS: dict[str, object] = {
    "preset": "public_chat",
    "room_version": "12",
    "power_level_content_override": {"users_default": 50},
}
CLIENT = "/_matrix/client/v3"


@dataclass
class Sent:
    """A sent message and its event ID."""

    room_id: str
    key: str
    event_id: str = ""
    redacted: bool = False


class Sender(threading.Thread):
    """A user who sends one request after another, each until there is a response."""

    def __init__(
        self, number: int, where: CurrentServer, token: str, user_id: str, rooms: list[str]
    ) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.where = where
        self.caller = RetryingClient(where, token)
        self.user_id = user_id
        self.rooms = rooms
        self.random = Random(f"{SEED} {number}")
        self.sent: list[Sent] = []
        self.redactions: list[str] = []
        self.state: dict[str, int] = {}
        self.data = 0
        self.trouble: BaseException | None = None

    def run(self) -> None:
        try:
            number = 0
            while not self.where.over:
                number += 1
                self.act(number)
        except BaseException as error:
            self.trouble = error

    def act(self, number: int) -> None:
        dice = self.random.random()
        # the first half sends to one room, the others to all
        room_id = self.rooms[0] if self.number < SENDERS // 2 else self.random.choice(self.rooms)
        path = f"{CLIENT}/rooms/{quote(room_id)}"
        if dice < 0.75:
            message = Sent(room_id, f"{self.number}-{number}")
            body = {"msgtype": "m.text", "body": message.key, "key": message.key}
            message.event_id = self.caller.until_answered(
                "PUT", f"{path}/send/m.room.message/t{number}", body
            ).json["event_id"]
            self.sent.append(message)
        elif dice < 0.82 and (whole := [message for message in self.sent if not message.redacted]):
            message = self.random.choice(whole)
            path = (
                f"{CLIENT}/rooms/{quote(message.room_id)}/redact/{quote(message.event_id)}"
                f"/r{number}"
            )
            reply = self.caller.until_answered("PUT", path, {"reason": f"{self.number}-{number}"})
            message.redacted = True
            self.redactions.append(reply.json["event_id"])
        elif dice < 0.9:
            self.caller.until_answered(
                "PUT", f"{path}/state/org.example.counter/{quote(self.user_id)}", {"n": number}
            )
            self.state[room_id] = number
        elif dice < 0.95:
            self.caller.until_answered(
                "PUT",
                f"{CLIENT}/user/{quote(self.user_id)}/account_data/org.example.n",
                {"n": number},
            )
            self.data = number
        else:
            path = f"{CLIENT}/rooms/{quote(self.rooms[-1])}"
            self.caller.until_answered("POST", f"{path}/leave", {})
            self.caller.until_answered("POST", f"{path}/join", {})


@dataclass
class Watcher:
    """A client that continues `/sync` from its last token."""

    token: str
    since: str = ""
    seen: dict[str, list[str]] = field(default_factory=dict)

    def look(self, server: RunningServer) -> None:
        since = f"&since={quote(self.since)}" if self.since else ""
        filter_ = quote('{"room":{"timeline":{"limit":100000}}}')
        answer = server.request(
            "GET", f"{CLIENT}/sync?timeout=0&filter={filter_}{since}", token=self.token
        ).json
        for room_id, room in answer.get("rooms", {}).get("join", {}).items():
            seen = self.seen.setdefault(room_id, [])
            timeline = room["timeline"]
            if self.since and timeline.get("limited"):
                seen.extend(self.gap(server, room_id, timeline["prev_batch"]))
            seen.extend(event["event_id"] for event in timeline["events"])
        self.since = answer["next_batch"]

    def gap(self, server: RunningServer, room_id: str, prev_batch: str) -> list[str]:
        """Return the events between the last token and a limited timeline."""
        found: list[str] = []
        from_: str | None = prev_batch
        while from_ is not None:
            path = (
                f"{CLIENT}/rooms/{quote(room_id)}/messages?dir=b&limit=500&from={from_}"
                f"&to={self.since}"
            )
            page = server.request("GET", path, token=self.token).json
            found.extend(event["event_id"] for event in page["chunk"])
            from_ = page.get("end")
        return found[::-1]


def whole_room(server: RunningServer, token: str, room_id: str) -> list[dict[str, Any]]:
    """Return all events of a room, oldest first."""
    events: list[dict[str, Any]] = []
    from_ = ""
    while True:
        path = f"{CLIENT}/rooms/{quote(room_id)}/messages?dir=f&limit=500{from_}"
        page = server.request("GET", path, token=token).json
        events.extend(page["chunk"])
        if "end" not in page:
            return events
        from_ = f"&from={quote(page['end'])}"


async def test_nothing_acknowledged_is_lost_and_nothing_happens_twice(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig
) -> None:
    rooms = live_through_kills(ServerFiles(tmp_path / "server", database_config))
    database = open_inline(database_config)
    store = RoomStore(database=database)
    for room in (await store.get_rooms(rooms)).values():
        head = await store.get_head(room.room_nid)
        assert len(head.extremities) == 1, "one server never forks its own rooms"
    await database.close()


def live_through_kills(files: ServerFiles) -> list[str]:
    """Run the test over HTTP. Return the room IDs after all checks that clients can make."""
    print(f"seed {SEED}")  # noqa: T201 - pytest shows it after a failure
    random = Random(SEED)
    try:
        server = files.start()
        watcher = Watcher(server.register("watcher"))
        where = CurrentServer()
        rooms = []
        for number in range(ROOMS):
            options = {"name": f"room {number}", **OPTIONS}
            rooms.append(
                server.request("POST", f"{CLIENT}/createRoom", options, token=watcher.token).json[
                    "room_id"
                ]
            )
        senders = [
            Sender(
                number,
                where,
                server.register(f"sender{number}"),
                f"@sender{number}:localhost",
                rooms,
            )
            for number in range(SENDERS)
        ]
        for sender in senders:
            for room_id in rooms:
                joined = server.request(
                    "POST", f"{CLIENT}/join/{quote(room_id)}", {}, token=sender.caller.token
                )
                assert joined.status == 200, joined.body
        watcher.look(server)
        early = Watcher(watcher.token, watcher.since)
        for sender in senders:
            sender.start()
        starts = []
        for _ in range(ROUNDS):
            where.set_server(server)
            where.wait_until_asked(random.randrange(1, 60))
            time.sleep(random.uniform(0, 0.005))
            where.set_server(None)
            server.kill()
            server = files.start()
            starts.append(server.seconds_to_start)
            watcher.look(server)
        where.set_server(server, over=True)
        for sender in senders:
            sender.join(120)
            assert sender.trouble is None, sender.trouble
            assert not sender.is_alive()
        acknowledged = sum(len(sender.sent) for sender in senders)
        print(f"acknowledged {acknowledged}, slowest start {max(starts):.2f} s")  # noqa: T201
        assert sum(sender.caller.repeated for sender in senders) >= ROUNDS // 2, (
            "the process was never killed during requests"
        )
        watcher.look(server)
        early.look(server)
        for room_id in rooms:
            check_room(server, watcher, early, senders, room_id)
        check_account_data(server, senders)
        assert server.stop() == 0
        return rooms
    finally:
        files.end()


def check_room(
    server: RunningServer, watcher: Watcher, early: Watcher, senders: list[Sender], room_id: str
) -> None:
    events = whole_room(server, watcher.token, room_id)
    ids = [event["event_id"] for event in events]
    assert len(set(ids)) == len(ids)
    # each event was seen once: by a client that followed /sync over all restarts, and by one that
    # continues from before them
    assert watcher.seen[room_id] == ids
    assert early.seen[room_id] == [
        event_id for event_id in ids if event_id in set(early.seen[room_id])
    ]
    first = ids.index(early.seen[room_id][0])
    assert early.seen[room_id] == ids[first:]
    by_id = {event["event_id"]: event for event in events}
    keys = Counter(event["content"]["key"] for event in events if "key" in event["content"])
    assert set(keys.values()) <= {1}, "a message was stored twice"
    reasons = Counter(
        event["content"]["reason"] for event in events if event["type"] == "m.room.redaction"
    )
    assert set(reasons.values()) <= {1}, "a redaction was stored twice"
    place = {event_id: number for number, event_id in enumerate(ids)}
    for sender in senders:
        mine = [message for message in sender.sent if message.room_id == room_id]
        places = [place[message.event_id] for message in mine]
        assert places == sorted(places)
        for message in mine:
            assert by_id[message.event_id]["content"].get("key") == (
                None if message.redacted else message.key
            )
        sent = {message.event_id for message in mine}
        messages = [
            e["event_id"]
            for e in events
            if e["type"] == "m.room.message" and e["sender"] == sender.user_id
        ]
        assert set(messages) == sent
        if room_id in sender.state:
            path = (
                f"{CLIENT}/rooms/{quote(room_id)}/state/org.example.counter/{quote(sender.user_id)}"
            )
            assert server.request("GET", path, token=watcher.token).json == {
                "n": sender.state[room_id]
            }
        answer = server.request(
            "PUT",
            f"{CLIENT}/rooms/{quote(room_id)}/send/m.room.message/last",
            {"body": "!"},
            token=sender.caller.token,
        )
        assert answer.status == 200, answer.body
    state = server.request(
        "GET", f"{CLIENT}/rooms/{quote(room_id)}/state", token=watcher.token
    ).json
    members = {
        e["state_key"]: e["content"]["membership"] for e in state if e["type"] == "m.room.member"
    }
    assert members == dict.fromkeys(
        ["@watcher:localhost", *(sender.user_id for sender in senders)], "join"
    )


def check_account_data(server: RunningServer, senders: list[Sender]) -> None:
    for sender in senders:
        path = f"{CLIENT}/user/{quote(sender.user_id)}/account_data/org.example.n"
        if sender.data:
            assert server.request("GET", path, token=sender.caller.token).json == {"n": sender.data}
