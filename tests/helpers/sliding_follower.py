"""A client that follows the server by sliding sync alone, and can check that it knows what a client
of /sync knows."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.helpers.server import User
from tests.helpers.sync_client import Json, Key, KnownRoom, essence

UNSTABLE = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
STABLE = "/_matrix/client/v4/sync"
EVERY_ROOM = 99

ALL_STATE = [["*", "*"]]
LAZY_STATE = [
    ["m.room.name", ""],
    ["m.room.topic", ""],
    ["m.room.member", "$LAZY"],
    ["m.room.member", "$ME"],
]
SOME_STATE = [["m.room.name", ""], ["org.example.thing", "*"], ["m.room.member", "$ME"]]
FIELDS = (
    "name",
    "avatar",
    "joined_count",
    "invited_count",
    "heroes",
    "bump_stamp",
    "notification_count",
)
STATES = (ALL_STATE, LAZY_STATE, SOME_STATE)


@dataclass
class FollowedRoom:
    """The client's knowledge of a room."""

    state: dict[Key, Json] = field(default_factory=dict)
    timeline: list[str] = field(default_factory=list)
    stripped: list[Json] | None = None
    turned_away: Json | None = None
    """Of a room that one was never in, and is not asked into any more: one's own membership,
    stripped."""
    fields: Json = field(default_factory=dict)
    """The simple members of the entries: name, avatar, counts, heroes, bump_stamp."""
    account_data: dict[str, Json] = field(default_factory=dict)
    receipts: dict[tuple[str, str, str | None], str] = field(default_factory=dict)
    typing: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Ask:
    """The choices of a request."""

    window: int
    limit: int
    state: int
    subscribed: int = 0
    """So many of the rooms that are known, with a greater limit."""
    without: frozenset[str] = frozenset()
    """Extensions that are not wanted."""


EVERYTHING = Ask(EVERY_ROOM, 3, 0)


class SlidingFollower:
    """Follows sliding sync, in one of its two forms."""

    def __init__(
        self, user: User, *, stable: bool = False, conn_id: str = "follower", limit: int = 3
    ) -> None:
        """`limit`: what it asks for of timelines when it catches up; 0: it never asks for any."""
        self.user = user
        self.limit = limit
        self.stable = stable
        self.conn_id = conn_id
        self.pos: str | None = None
        self.rooms: dict[str, FollowedRoom] = {}
        self.account_data: dict[str, Json] = {}

    def sync(self, ask: Ask) -> bool:
        """Hear what is new; whether there was anything."""
        return self.take(self.ask(ask))

    def take(self, answer: Json) -> bool:
        """Take an answer to the present `pos` in; whether there was anything new in it."""
        self.pos = answer["pos"]
        for room_id, entry in answer["rooms"].items():
            self._take(room_id, entry)
        extensions = answer["extensions"]
        account_data = extensions.get("account_data", {"global": [], "rooms": {}})
        for event in account_data["global"]:
            self.account_data[event["type"]] = event["content"]
        for room_id, events in account_data["rooms"].items():
            self._room(room_id).account_data.update(
                (event["type"], event["content"]) for event in events
            )
        receipts = extensions.get("receipts", {"rooms": {}})["rooms"]
        for room_id, event in receipts.items():
            self._take_receipts(self._room(room_id), event["content"])
        for room_id, event in extensions.get("typing", {"rooms": {}})["rooms"].items():
            self._room(room_id).typing = set(event["content"]["user_ids"])
        return any(
            map(bool, (answer["rooms"], account_data["global"], account_data["rooms"], receipts))
        )

    def catch_up(self) -> None:
        """Look at every room until nothing is new."""
        for _ in range(20):
            if not self.sync(Ask(EVERY_ROOM, self.limit, 0)):
                return
        raise AssertionError("there is always something new")

    def ask(self, ask: Ask) -> Json:
        """One request, without taking its answer in."""
        answer = self.user.post(*self.request(ask))
        assert answer.status == 200, answer.body
        return dict(answer.json)

    def request(self, ask: Ask, timeout: int = 0) -> tuple[str, Json]:
        """Path and body of a request; `timeout` in milliseconds."""
        if not self.limit:
            ask = replace(ask, limit=0, subscribed=0)
        state: Any = STATES[ask.state]
        if self.stable:
            state = {
                "include": [
                    {
                        key: value
                        for key, value in zip(("type", "state_key"), pair, strict=True)
                        if value != "*"
                    }
                    for pair in self._pairs(ask.state)
                ],
                "lazy_members": ["m.room.member", "$LAZY"] in state,
            }
        wanted: Json = {"timeline_limit": ask.limit, "required_state": state}
        window = {"range": [0, ask.window]} if self.stable else {"ranges": [[0, ask.window]]}
        body: Json = {
            "conn_id": self.conn_id,
            "lists": {"all": {**wanted, **window}},
            "room_subscriptions": {
                room_id: {**wanted, "timeline_limit": ask.limit + 5}
                for room_id in sorted(self.rooms)[: ask.subscribed]
            },
            "extensions": {
                name: {"enabled": True}
                for name in ("account_data", "receipts", "typing", "e2ee")
                if name not in ask.without
            },
        }
        if self.stable:
            return STABLE, {
                **body,
                "timeout": timeout,
                **({} if self.pos is None else {"pos": self.pos}),
            }
        return f"{UNSTABLE}?timeout={timeout}" + (
            "" if self.pos is None else f"&pos={self.pos}"
        ), body

    def forget(self, room_id: str) -> None:
        """Clients know themselves what they forgot."""
        self.rooms.pop(room_id, None)

    def forget_typing(self) -> None:
        """Clear who types, as after a restart of the server, which does not know it."""
        for known in self.rooms.values():
            known.typing.clear()

    def check(self, truth: Mapping[str, KnownRoom], account_data: Mapping[str, Json]) -> None:
        """Check that this client, having caught up, knows what a new client of /sync sees, and what
        a new one of its own kind sees."""
        fresh = SlidingFollower(self.user, stable=self.stable, conn_id="fresh", limit=self.limit)
        fresh.catch_up()
        assert self.account_data == dict(account_data)
        for room_id, told in truth.items():
            known = self.rooms.get(room_id)
            if known is None:
                # who left by themselves before the client first saw the room need not know of it
                assert told.section == "leave", (room_id, told.section)
                continue
            if told.section in ("invite", "knock"):
                assert known.stripped == told.stripped, room_id
                continue
            assert known.stripped is None, room_id
            if told.section != "join":
                # such a room is sent once, with the state that was requested then
                own = ("m.room.member", self.user.user_id)
                if known.turned_away is None:
                    assert known.state[own] == told.state[own], room_id
                else:
                    assert known.turned_away["state_key"] == self.user.user_id
                    assert known.turned_away["content"] == told.state[own]["content"], room_id
                continue
            self._check_state(room_id, known, told)
            assert known.timeline == told.timeline[len(told.timeline) - len(known.timeline) :], (
                room_id
            )
            assert known.account_data == told.account_data, room_id
            assert known.typing == told.typing, room_id
            self._check_receipts(room_id, known, told)
            summary = told.summary
            assert known.fields["joined_count"] == summary["m.joined_member_count"], room_id
            assert known.fields["invited_count"] == summary["m.invited_member_count"], room_id
            new = fresh.rooms[room_id].fields
            for name in ("name", "avatar", "bump_stamp"):
                if self.stable or name == "bump_stamp":
                    assert known.fields.get(name) == new.get(name), (room_id, name)
            if new.get("name") is None:
                assert known.fields.get("heroes", []) == new.get("heroes", []), room_id
            if not self.stable:
                unread = told.unread["notification_count"]
                unread += sum(each["notification_count"] for each in told.threads.values())
                assert new["notification_count"] == unread, room_id
                assert known.fields["notification_count"] == unread, room_id
        assert self.rooms.keys() <= truth.keys()

    def _check_state(self, room_id: str, known: FollowedRoom, told: KnownRoom) -> None:
        if self.stable:
            assert known.state == told.state, room_id
        else:  # in this form a removed entry cannot be sent
            assert {key: known.state.get(key) for key in told.state} == told.state, room_id

    def _check_receipts(self, room_id: str, known: FollowedRoom, told: KnownRoom) -> None:
        """Nothing that is out of date; all of one's own, and all of the events that are shown."""
        for key, event_id in told.receipts.items():
            if key[0] == self.user.user_id or event_id in known.timeline or key in known.receipts:
                assert known.receipts.get(key) == event_id or _is_implied(
                    key, event_id, known, told
                ), (room_id, key)

    def _pairs(self, state: int) -> list[list[str]]:
        return [
            [type, self.user.user_id if key == "$ME" else key]
            for type, key in STATES[state]
            if key != "$LAZY"
        ]

    def _room(self, room_id: str) -> FollowedRoom:
        assert room_id in self.rooms, room_id
        return self.rooms[room_id]

    def _take(self, room_id: str, entry: Json) -> None:
        if entry.get("initial") or room_id not in self.rooms:
            assert entry.get("initial"), room_id
            self.rooms[room_id] = FollowedRoom()
        room = self.rooms[room_id]
        room.stripped = entry.get("stripped_state", entry.get("invite_state"))
        if entry.get("membership") in ("leave", "ban") and room.stripped is not None:
            (room.turned_away,) = room.stripped
            room.stripped = None
        timeline = entry.get("timeline", [])
        assert all("room_id" not in event for event in timeline)
        ids = [event["event_id"] for event in timeline]
        grown = entry.get("expanded_timeline", entry.get("unstable_expanded_timeline"))
        if entry.get("initial") or entry.get("limited") or grown:
            room.timeline = ids
        else:
            room.timeline += ids
        assert len(set(room.timeline)) == len(room.timeline), "an event was told twice"
        assert entry.get("num_live", 0) <= len(timeline)
        for event in entry.get("required_state", []):
            key = (event["type"], event["state_key"])
            if "event_id" in event:
                room.state[key] = essence(event)
            else:
                assert self.stable
                room.state.pop(key, None)
        room.fields.update((name, entry[name]) for name in FIELDS if name in entry)

    def _take_receipts(self, room: FollowedRoom, content: Json) -> None:
        for event_id, kinds in content.items():
            for kind, users in kinds.items():
                for user_id, data in users.items():
                    room.receipts[user_id, kind, data.get("thread_id")] = event_id


def _is_implied(
    key: tuple[str, str, str | None], event_id: str, known: FollowedRoom, told: KnownRoom
) -> bool:
    """Whether the client knows a receipt for all threads that says more: in the form there is room
    for one of a user's at an event."""
    for_all = known.receipts.get((key[0], key[1], None))
    if key[2] is None or for_all not in told.timeline or event_id not in told.timeline:
        return False
    return told.timeline.index(for_all) >= told.timeline.index(event_id)
