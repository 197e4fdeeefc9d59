"""Unread counts agree after random actions: in both syncs, initial and incremental, in the list of
notifications, and in the badge of an app."""

import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from storage.engine.database import Database
from tests.helpers.clocks import settle
from tests.helpers.push_gateway import PushGateway, set_pusher
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Json, sync

V3 = "/_matrix/client/v3"
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
LISTS: Final = {"all": {"ranges": [[0, 20]], "timeline_limit": 1, "required_state": []}}
DEEDS: Final = (
    *(
        "say",
        "say",
        "mention",
        "encrypt",
        "m.thread",
        "m.thread",
        "m.replace",
        "m.reference",
        "redact",
    ),
    *(
        "m.read",
        "m.read",
        "m.read.private",
        "invite",
        "join",
        "join",
        "leave",
        "forget",
        "kick",
        "ban",
        "unban",
    ),
    *("knock", "ignore", "mute", "unmute", "rename", "check", "check"),
)
Numbers = tuple[int, int]


class UnreadModel:
    """Alice, who has a pusher, with Bob and Carol in four rooms, to two of which only an invite
    leads."""

    def __init__(self, server: TestServer, gateway: PushGateway, seed: int) -> None:
        self.server, self.gateway = server, gateway
        self.chance = random.Random(seed)
        self.txn = count(1)
        self.alice, self.bob, self.carol = (
            server.register(name) for name in ("alice", "bob", "carol")
        )
        presets = ("public_chat", "public_chat", "private_chat", "private_chat")
        self.rooms = [
            str(self.bob.post(f"{V3}/createRoom", {"preset": each}).json["room_id"])
            for each in presets
        ]
        for room_id in self.rooms[:2]:
            for user in (self.alice, self.carol):
                assert user.post(f"{V3}/join/{room_id}").status == 200
        assert set_pusher(self.alice).status == 200
        settle(server)
        self.events: dict[str, list[str]] = {room_id: [] for room_id in self.rooms}
        self.since = str(sync(self.alice)["next_batch"])
        self.pos = ""
        self.received_counts: dict[str, Numbers] = {}
        """The counts of each room according to incremental syncs of `/v3/sync`."""
        self.slid: dict[str, Numbers] = {}

    def act(self) -> None:
        """Let a user try a random action; the server may refuse it."""
        deed, room_id = self.chance.choice(DEEDS), self.chance.choice(self.rooms)
        who, about = self.chance.choice((self.alice, self.bob, self.carol)), self.pick(room_id)
        own, path = f"{V3}/user/{self.alice.user_id}/account_data", f"{V3}/rooms/{room_id}"
        match deed:
            case "say":
                self.send(who, room_id, {})
            case "mention":
                everybody = self.chance.choice(({"room": True}, {"user_ids": [self.alice.user_id]}))
                self.send(who, room_id, {"m.mentions": everybody})
            case "encrypt":
                self.send(who, room_id, {}, "m.room.encrypted")
            case "m.thread" | "m.replace" | "m.reference" if about:
                self.send(who, room_id, {"m.relates_to": {"rel_type": deed, "event_id": about}})
            case "redact" if about:
                who.put(f"{path}/redact/{about}/{next(self.txn)}", {})
            case "m.read" | "m.read.private" if about:
                thread: Json = self.chance.choice(
                    ({}, {"thread_id": "main"}, {"thread_id": self.pick(room_id)})
                )
                self.alice.post(f"{path}/receipt/{deed}/{about}", thread)
            case "invite" | "kick" | "ban" | "unban":
                self.bob.post(f"{path}/{deed}", {"user_id": self.alice.user_id})
            case "join" | "knock":
                self.alice.post(f"{V3}/{deed}/{room_id}")
            case "leave" | "forget":
                self.alice.post(f"{path}/{deed}")
            case "ignore":
                whom = self.chance.choice(((), (self.bob,), (self.carol,)))
                ignored: Json = {user.user_id: {} for user in whom}
                self.alice.put(f"{own}/m.ignored_user_list", {"ignored_users": ignored})
            case "mute":
                self.alice.put(
                    f"{V3}/pushrules/global/room/{room_id}",
                    {"actions": self.chance.choice(([], ["notify"]))},
                )
            case "unmute":
                self.alice.delete(f"{V3}/pushrules/global/room/{room_id}")
            case "rename":
                name = {"displayname": str(next(self.txn))}
                assert (
                    self.alice.put(f"{V3}/profile/{self.alice.user_id}/displayname", name).status
                    == 200
                )
            case "check":
                self.check()
        settle(self.server)

    def pick(self, room_id: str) -> str | None:
        return self.chance.choice(self.events[room_id]) if self.events[room_id] else None

    def send(self, user: User, room_id: str, further: Json, type: str = "m.room.message") -> None:
        content: dict[str, Any] = {"msgtype": "m.text", "body": "x", **further}
        answer = user.put(f"{V3}/rooms/{room_id}/send/{type}/{next(self.txn)}", content)
        if answer.status == 200:
            self.events[room_id].append(answer.json["event_id"])

    def check(self) -> None:
        for _ in range(6):
            settle(self.server)
            self.server.clock.advance(1)
        settle(self.server)
        initial = sync(self.alice).get("rooms", {})
        unread = dict(_numbers(initial))
        invites = set(initial.get("invite", {}))
        response = sync(self.alice, self.since)
        self.since = response["next_batch"]
        self.received_counts.update(_numbers(response.get("rooms", {})))
        assert {room_id: self.received_counts.get(room_id, (0, 0)) for room_id in unread} == unread
        self.slide()
        assert {room_id: self.slid.get(room_id, (0, 0)) for room_id in unread} == unread
        if self.gateway.taken:
            total = sum(notifications for notifications, _ in unread.values()) + len(invites)
            assert self.gateway.taken[-1].notification["counts"].get("unread", 0) == total
        listed = self.alice.get(f"{V3}/notifications?limit=100").json["notifications"]
        assert {each["room_id"] for each in listed} <= set(unread) | invites
        assert invites <= {
            each["room_id"] for each in listed if each["event"]["type"] == "m.room.member"
        }
        for room_id, (notifications, _) in unread.items():
            # who writes has read, and yet has sent no receipt
            assert notifications <= sum(
                each["room_id"] == room_id and not each["read"] for each in listed
            )

    def slide(self) -> None:
        answer = self.alice.post(SLIDING + self.pos, {"conn_id": "it", "lists": LISTS})
        assert answer.status == 200, answer.body
        self.pos = f"?pos={answer.json['pos']}"
        for room_id, room in answer.json["rooms"].items():
            before = (0, 0) if room.get("initial") else self.slid.get(room_id, (0, 0))
            self.slid[room_id] = (
                room.get("notification_count", before[0]),
                room.get("highlight_count", before[1]),
            )


def _numbers(rooms: Json) -> Iterator[tuple[str, Numbers]]:
    for room_id, room in rooms.get("join", {}).items():
        if "unread_notifications" in room:
            found = room["unread_notifications"]
            yield room_id, (found["notification_count"], found["highlight_count"])


@pytest.mark.parametrize("seed", range(6))
def test_all_unread_counts_agree_after_random_actions(
    tmp_path: Path, database: Database, seed: int
) -> None:
    gateway = PushGateway()
    server = TestServer(
        tmp_path, database, "push: {group_unread_count_by_room: false}", web=gateway
    )
    server.app.pushers.start()
    settle(server)
    model = UnreadModel(server, gateway, seed)
    for _ in range(150):
        model.act()
    model.check()
