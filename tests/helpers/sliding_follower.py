"""A client that follows the server by sliding sync alone. It can check its knowledge against a
`/sync` client."""

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
    """The client's data of a room."""

    state: dict[Key, Json] = field(default_factory=dict)
    timeline: list[str] = field(default_factory=list)
    stripped: list[Json] | None = None
    turned_away: Json | None = None
    """The stripped own membership of a room that the user was never in and is no longer invited
    to."""
    fields: Json = field(default_factory=dict)
    """The scalar fields of room entries: name, avatar, counts, heroes, bump_stamp."""
    account_data: dict[str, Json] = field(default_factory=dict)
    receipts: dict[tuple[str, str, str | None], str] = field(default_factory=dict)
    typing: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Ask:
    """The options of a request."""

    window: int
    limit: int
    state: int
    subscribed: int = 0
    """The number of known rooms to subscribe to, with a greater timeline limit."""
    without: frozenset[str] = frozenset()
    """The extensions that the request leaves out."""


EVERYTHING = Ask(EVERY_ROOM, 3, 0)


class SlidingFollower:
    """Follows sliding sync, in the stable or the unstable form."""

    def __init__(
        self, user: User, *, stable: bool = False, conn_id: str = "follower", limit: int = 3
    ) -> None:
        """`limit`: the timeline limit of `catch_up`. 0: never request timelines."""
        self.user = user
        self.limit = limit
        self.stable = stable
        self.conn_id = conn_id
        self.pos: str | None = None
        self.rooms: dict[str, FollowedRoom] = {}
        self.account_data: dict[str, Json] = {}

    def sync(self, ask: Ask) -> bool:
        """Send a request and apply the response. Return whether it had changes."""
        return self.take(self.ask(ask))

    def take(self, answer: Json) -> bool:
        """Apply a response to the current `pos`. Return whether it had changes."""
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
        """Sync all rooms until there are no more changes."""
        for _ in range(20):
            if not self.sync(Ask(EVERY_ROOM, self.limit, 0)):
                return
        raise AssertionError("sync does not settle")

    def ask(self, ask: Ask) -> Json:
        """Send a request; return the response without applying it."""
        answer = self.user.post(*self.request(ask))
        assert answer.status == 200, answer.body
        return dict(answer.json)

    def request(self, ask: Ask, timeout: int = 0) -> tuple[str, Json]:
        """Return path and body of a request. `timeout` is in milliseconds."""
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
        """Drop a room that the user forgot: the client made that request itself."""
        self.rooms.pop(room_id, None)

    def forget_typing(self) -> None:
        """Drop typing notifications, which the server loses at a restart."""
        for known in self.rooms.values():
            known.typing.clear()

    def check(self, truth: Mapping[str, KnownRoom], account_data: Mapping[str, Json]) -> None:
        """Check that this client, after `catch_up`, knows the same as a new `/sync` client and a
        new sliding sync client."""
        fresh = SlidingFollower(self.user, stable=self.stable, conn_id="fresh", limit=self.limit)
        fresh.catch_up()
        assert self.account_data == dict(account_data)
        for room_id, expected in truth.items():
            known = self.rooms.get(room_id)
            if known is None:
                # a room that the user left before the client first saw it may be missing
                assert expected.section == "leave", (room_id, expected.section)
                continue
            if expected.section in ("invite", "knock"):
                assert known.stripped == expected.stripped, room_id
                continue
            assert known.stripped is None, room_id
            if expected.section != "join":
                # the server sends such a room once, with the state requested then
                own = ("m.room.member", self.user.user_id)
                if known.turned_away is None:
                    assert known.state[own] == expected.state[own], room_id
                else:
                    assert known.turned_away["state_key"] == self.user.user_id
                    assert known.turned_away["content"] == expected.state[own]["content"], room_id
                continue
            self._check_state(room_id, known, expected)
            assert (
                known.timeline == expected.timeline[len(expected.timeline) - len(known.timeline) :]
            ), room_id
            assert known.account_data == expected.account_data, room_id
            assert known.typing == expected.typing, room_id
            self._check_receipts(room_id, known, expected)
            summary = expected.summary
            assert known.fields["joined_count"] == summary["m.joined_member_count"], room_id
            assert known.fields["invited_count"] == summary["m.invited_member_count"], room_id
            new = fresh.rooms[room_id].fields
            for name in ("name", "avatar", "bump_stamp"):
                if self.stable or name == "bump_stamp":
                    assert known.fields.get(name) == new.get(name), (room_id, name)
            if new.get("name") is None:
                assert known.fields.get("heroes", []) == new.get("heroes", []), room_id
            if not self.stable:
                unread = expected.unread["notification_count"]
                unread += sum(each["notification_count"] for each in expected.threads.values())
                assert new["notification_count"] == unread, room_id
                assert known.fields["notification_count"] == unread, room_id
        assert self.rooms.keys() <= truth.keys()

    def _check_state(self, room_id: str, known: FollowedRoom, expected: KnownRoom) -> None:
        if self.stable:
            assert known.state == expected.state, room_id
        else:  # this form cannot express that an entry is no longer set
            assert {key: known.state.get(key) for key in expected.state} == expected.state, room_id

    def _check_receipts(self, room_id: str, known: FollowedRoom, expected: KnownRoom) -> None:
        """Check that no receipt is outdated, and that all own receipts and all receipts of shown
        events are known."""
        for key, event_id in expected.receipts.items():
            if key[0] == self.user.user_id or event_id in known.timeline or key in known.receipts:
                assert known.receipts.get(key) == event_id or _is_implied(
                    key, event_id, known, expected
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
        assert len(set(room.timeline)) == len(room.timeline), "an event was sent twice"
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
    key: tuple[str, str, str | None], event_id: str, known: FollowedRoom, expected: KnownRoom
) -> bool:
    """Whether the client has a newer unthreaded receipt: the response has room for one receipt of a
    user at an event."""
    for_all = known.receipts.get((key[0], key[1], None))
    if key[2] is None or for_all not in expected.timeline or event_id not in expected.timeline:
        return False
    return expected.timeline.index(for_all) >= expected.timeline.index(event_id)
