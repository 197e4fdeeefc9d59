"""Unread counts after random actions in a room, compared with a complete recount.

spec: client-server-api#receiving-notifications, client-server-api#marking-notifications-as-read
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeserver.services.push.push_rules import ruleset
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Json, Rooms, sync
from tests.push.literal_rules import Surroundings, evaluate

V3 = "/_matrix/client/v3"
BY_THREAD = {"room": {"timeline": {"unread_thread_notifications": True}}}
NOBODY = "@nobody:elsewhere.invalid"
NAMES = ("alice", "bob", "carol")
rooms = Rooms()
numbers = count(1)


@dataclass
class Happened:
    """An event of the room, and what it was to each member when it came."""

    event_id: str
    event: Json
    actions: dict[str, Any]
    is_news: bool
    """Whether it notifies users who have the default rules."""
    thread: str
    redacted: bool = False


@dataclass
class Person:
    user: User
    joined_at: int | None = None
    """The index in the history; None: not in the room."""
    read: dict[str, int] = field(default_factory=dict)
    """By thread ("" for all of them) up to which place."""
    ignored: set[str] = field(default_factory=set)
    rules: Json = field(default_factory=dict)
    name: str | None = None

    def look(self) -> None:
        """Note what the user's rules and name are now."""
        self.rules = self.user.get(f"{V3}/pushrules/global/").json
        self.name = self.user.get(f"{V3}/profile/{self.user.user_id}").json.get("displayname")


class History:
    """A room, and what happened in it."""

    def __init__(self, server: TestServer) -> None:
        number = next(numbers)
        self.people = [Person(server.register(f"{name}{number}")) for name in NAMES]
        for person in self.people:
            person.look()
        self.room = rooms.create(self.people[0].user)
        self.happened: list[Happened] = []
        self.people[0].joined_at = 0
        for person in self.people[1:]:
            self.come(person)

    # ----------------------------------------------------------------------------------------------
    # what is done

    def come(self, person: Person) -> None:
        if person.joined_at is None:
            user_id = person.user.user_id
            rooms.join(person.user, self.room)
            content = person.user.get(f"{V3}/rooms/{self.room}/state/m.room.member/{user_id}").json
            self._note(person, "", "m.room.member", content, user_id)
            person.joined_at = len(self.happened)

    def leave(self, person: Person) -> None:
        if person.joined_at is not None and person is not self.people[0]:
            rooms.act(person.user, self.room, "leave")
            person.joined_at = None
            self._note(person, "", "m.room.member", {"membership": "leave"}, person.user.user_id)

    def send(
        self, person: Person, type: str, content: Json, target: int | None, rel_type: str
    ) -> None:
        if person.joined_at is None:
            return
        known = [each for each in self.happened if each.event_id]
        if target is not None and known:
            related = known[target % len(known)]
            relation = {"rel_type": rel_type, "event_id": related.event_id}
            if rel_type == "m.annotation":
                relation["key"] = str(next(numbers))
            content = {**content, "m.relates_to": relation}
        answer = person.user.put(f"{V3}/rooms/{self.room}/send/{type}/{next(numbers)}", content)
        if (
            answer.status == 200
        ):  # a thread cannot begin at an event that is itself in one, and so on
            self._note(person, answer.json["event_id"], type, content, None)

    def topic(self, person: Person, topic: str) -> None:
        answer = person.user.put(f"{V3}/rooms/{self.room}/state/m.room.topic/", {"topic": topic})
        known = {each.event_id for each in self.happened}
        if (
            answer.status == 200 and answer.json["event_id"] not in known
        ):  # it may have been the topic before
            self._note(person, answer.json["event_id"], "m.room.topic", {"topic": topic}, "")

    def redact(self, person: Person, target: int) -> None:
        own = [
            each
            for each in self.happened
            if each.event_id and each.event["sender"] == person.user.user_id
        ]
        if person.joined_at is None or not own:
            return
        chosen = own[target % len(own)]
        redaction = rooms.redact(person.user, self.room, chosen.event_id)
        chosen.redacted = True
        content = {"redacts": chosen.event_id}
        self._note(person, redaction, "m.room.redaction", content, None)

    def read(self, person: Person, target: int, kind: str, thread: str | int | None) -> None:
        seen = [index for index, each in enumerate(self.happened) if each.event_id]
        if person.joined_at is None or not seen:
            return
        index = seen[target % len(seen)]
        thread_id = (
            self.happened[seen[thread % len(seen)]].event_id if isinstance(thread, int) else thread
        )
        body = {} if thread_id is None else {"thread_id": thread_id}
        path = f"{V3}/rooms/{self.room}/receipt/{kind}/{self.happened[index].event_id}"
        if person.user.post(path, body).status == 200:
            key = thread_id or ""
            person.read[key] = max(person.read.get(key, 0), index + 1)

    def change_rules(self, person: Person, method: str, path: str, body: Json | None) -> None:
        path = f"{V3}/pushrules/global/{path.replace('ROOM', quote(self.room))}"
        if method == "DELETE":
            person.user.delete(path)
        else:
            assert person.user.put(path, _with_room(body, self.room)).status == 200
        person.look()

    def ignore(self, person: Person, other: Person) -> None:
        if person is not other:
            person.ignored ^= {other.user.user_id}
            content: Json = {"ignored_users": {user_id: {} for user_id in person.ignored}}
            path = f"{V3}/user/{person.user.user_id}/account_data/m.ignored_user_list"
            assert person.user.put(path, content).status == 200

    def mark(self, person: Person, unread: bool) -> None:
        """That the room is marked as unread is for clients to show: no number is another by it."""
        path = f"{V3}/user/{person.user.user_id}/rooms/{self.room}/account_data/m.marked_unread"
        assert person.user.put(path, {"unread": unread}).status == 200

    # ----------------------------------------------------------------------------------------------
    # what is counted

    def check(self) -> None:
        for person in self.people:
            if person.joined_at is not None:
                joined = sync(person.user, filter=BY_THREAD)["rooms"]["join"][self.room]
                found = {
                    root: _pair(each)
                    for root, each in joined.get("unread_thread_notifications", {}).items()
                }
                assert {"main": _pair(joined["unread_notifications"]), **found} == self._recount(
                    person
                )
                for only in ("", "&only=highlight"):
                    assert list(self._listed(person, only)) == list(
                        self._notified(person, highlights=bool(only))
                    )

    def _listed(self, person: Person, only: str) -> Iterator[tuple[str, bool, bool]]:
        """The messages of the room in /notifications: (event, read, highlighted), newest first."""
        known = {each.event_id for each in self.happened}
        path = f"{V3}/notifications?limit=7{only}"
        following = path
        while True:
            answer = person.user.get(following)
            assert answer.status == 200, answer.body
            for each in answer.json["notifications"]:
                assert "notify" in each["actions"]
                if each["event"]["event_id"] in known:
                    yield each["event"]["event_id"], each["read"], is_loud(each["actions"])
            if "next_token" not in answer.json:
                return
            following = f"{path}&from={answer.json['next_token']}"

    def _notified(self, person: Person, *, highlights: bool) -> Iterator[tuple[str, bool, bool]]:
        assert person.joined_at is not None
        for index in range(len(self.happened) - 1, person.joined_at - 1, -1):
            each = self.happened[index]
            actions = each.actions.get(person.user.user_id, [])
            if (
                each.redacted
                or each.event["sender"] in person.ignored
                or "notify" not in actions
                or not each.event_id
            ):
                continue
            if is_loud(actions) or not highlights:
                read = max(person.read.get("", 0), person.read.get(each.thread, 0))
                if each.event["sender"] != person.user.user_id:
                    yield each.event_id, index < read, is_loud(actions)

    def _recount(self, person: Person) -> dict[str, tuple[int, int]]:
        user_id = person.user.user_id
        assert person.joined_at is not None
        everything = max(person.joined_at, person.read.get("", 0))
        sent = {
            each.thread: index + 1
            for index, each in enumerate(self.happened)
            if each.event["sender"] == user_id and each.is_news and index >= everything
        }
        counts = {"main": (0, 0)}
        for index, each in enumerate(self.happened):
            read = max(everything, person.read.get(each.thread, 0), sent.get(each.thread, 0))
            if index < read or each.redacted or each.event["sender"] in {user_id, *person.ignored}:
                continue
            actions = each.actions.get(user_id, [])
            if "notify" in actions:
                notifications, highlights = counts.get(each.thread, (0, 0))
                counts[each.thread] = notifications + 1, highlights + is_loud(actions)
        return counts

    def _note(
        self, sender: Person, event_id: str, type: str, content: Json, state_key: str | None
    ) -> None:
        event = {
            "type": type,
            "content": content,
            "sender": sender.user.user_id,
            "room_id": self.room,
        }
        if state_key is not None:
            event["state_key"] = state_key
        members = [person for person in self.people if person.joined_at is not None]
        joined = len(members) + (content.get("membership") == "join")
        level = 100 if sender is self.people[0] else 0
        happened = Happened(event_id, event, {}, False, self._thread_of(content))
        for person in members:
            user_id = person.user.user_id
            around = Surroundings(user_id, person.name, joined, level, {})
            happened.actions[user_id] = evaluate(person.rules, event, around)
        default = evaluate(
            ruleset(NOBODY, None), event, Surroundings(NOBODY, None, joined, level, {})
        )
        happened.is_news = "notify" in default
        self.happened.append(happened)

    def _thread_of(self, content: Json) -> str:
        known = {each.event_id: each for each in self.happened}
        for _ in range(4):
            relation = content.get("m.relates_to", {})
            if relation.get("rel_type") == "m.thread":
                return str(relation["event_id"])
            related = known.get(relation.get("event_id", ""))
            if related is None or related.redacted:
                return "main"
            content = related.event["content"]
        return "main"


def is_loud(actions: Any) -> bool:
    """Whether actions highlight."""
    tweaks = [action for action in actions if isinstance(action, dict)]
    return any(each["set_tweak"] == "highlight" and each.get("value", True) for each in tweaks)


def _pair(unread: Json) -> tuple[int, int]:
    return unread["notification_count"], unread["highlight_count"]


def _with_room(body: Any, room: str) -> Any:
    if isinstance(body, dict):
        return {key: _with_room(value, room) for key, value in body.items()}
    if isinstance(body, list):
        return [_with_room(each, room) for each in body]
    return room if body == "ROOM" else body


LOUD: Final = ["notify", {"set_tweak": "highlight"}]
IN_ROOM: Final = {"kind": "event_match", "key": "room_id", "pattern": "ROOM"}
CHANGES: Final[list[tuple[str, str, Json | None]]] = [
    ("PUT", "override/ROOM", {"actions": [], "conditions": [IN_ROOM]}),
    ("DELETE", "override/ROOM", None),
    ("PUT", "room/ROOM", {"actions": []}),
    ("PUT", "room/ROOM", {"actions": ["notify"]}),
    ("PUT", "room/ROOM", {"actions": LOUD}),
    ("DELETE", "room/ROOM", None),
    ("PUT", "content/tea", {"actions": LOUD, "pattern": "tea"}),
    ("DELETE", "content/tea", None),
    (
        "PUT",
        "underride/named",
        {"actions": LOUD, "conditions": [{"kind": "contains_display_name"}]},
    ),
    (
        "PUT",
        "override/few",
        {"actions": LOUD, "conditions": [IN_ROOM, {"kind": "room_member_count", "is": "<3"}]},
    ),
    ("DELETE", "override/few", None),
    ("PUT", "override/.m.rule.master/enabled", {"enabled": True}),
    ("PUT", "override/.m.rule.master/enabled", {"enabled": False}),
    ("PUT", "underride/.m.rule.message/actions", {"actions": []}),
    ("PUT", "underride/.m.rule.message/actions", {"actions": ["notify"]}),
    ("PUT", "override/.m.rule.suppress_notices/enabled", {"enabled": False}),
    ("PUT", "override/.m.rule.reaction/actions", {"actions": ["notify"]}),
    ("PUT", "override/.m.rule.is_user_mention/enabled", {"enabled": False}),
    ("PUT", "override/.m.rule.is_room_mention/actions", {"actions": ["notify"]}),
]
who = st.integers(0, 2)
somewhere = st.integers(0, 40)
bodies = st.sampled_from(["hello", "tea?", "Tea", "steam", "alice1 carol"])
messages = st.tuples(
    st.just("send"),
    who,
    st.sampled_from(["m.room.message", "m.room.message", "m.room.encrypted", "m.reaction"]),
    bodies,
    st.sampled_from(["m.text", "m.text", "m.notice"]),
    st.sampled_from([None, None, 0, 1, 2, "room"]),
    st.one_of(st.none(), somewhere),
    st.sampled_from(["m.thread", "m.thread", "m.replace", "m.annotation", "m.reference"]),
)
deeds = st.one_of(
    messages,
    messages,
    messages,
    st.tuples(
        st.just("read"),
        who,
        somewhere,
        st.sampled_from(["m.read", "m.read.private"]),
        st.one_of(st.sampled_from([None, "main"]), somewhere),
    ),
    st.tuples(st.just("rules"), who, st.sampled_from(CHANGES)),
    st.tuples(st.just("redact"), who, somewhere),
    st.tuples(st.sampled_from(["leave", "come", "come"]), who),
    st.tuples(st.just("ignore"), who, who),
    st.tuples(st.just("mark"), who, st.booleans()),
    st.tuples(st.just("topic"), who, bodies),
    st.tuples(st.just("check")),
)


def do(history: History, deed: Any) -> None:
    if deed[0] == "check":
        history.check()
        return
    person = history.people[deed[1]]
    match deed[0]:
        case "send":
            _, _, type, body, msgtype, mention, target, rel_type = deed
            content: Json = {"msgtype": msgtype, "body": body}
            if mention is not None:
                content["m.mentions"] = (
                    {"room": True}
                    if mention == "room"
                    else {"user_ids": [history.people[mention].user.user_id]}
                )
            history.send(person, type, content, target, rel_type)
        case "read":
            history.read(person, *deed[2:])
        case "rules":
            history.change_rules(person, *deed[2])
        case "redact":
            history.redact(person, deed[2])
        case "leave":
            history.leave(person)
        case "come":
            history.come(person)
        case "ignore":
            history.ignore(person, history.people[deed[2]])
        case "topic":
            history.topic(person, deed[2])
        case "mark":
            history.mark(person, deed[2])


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(happens=st.lists(deeds, min_size=4, max_size=30))
def test_counts_equal_a_recount(server: TestServer, happens: list[Any]) -> None:
    history = History(server)
    for deed in happens:
        do(history, deed)
    history.check()
