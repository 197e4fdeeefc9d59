"""A client that follows the server by `/sync` alone, as the specification describes. It can check
its knowledge against a new client."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.helpers.server import User

Key = tuple[str, str]
Json = dict[str, Any]
WHOLE_ROOM = 1000


@dataclass
class KnownRoom:
    """The client's data of a room."""

    section: str
    state: dict[Key, Json] = field(default_factory=dict)
    timeline: list[str] = field(default_factory=list)
    stripped: list[Json] = field(default_factory=list)
    account_data: dict[str, Json] = field(default_factory=dict)
    receipts: dict[tuple[str, str, str | None], str] = field(default_factory=dict)
    typing: set[str] = field(default_factory=set)
    unread: Json = field(default_factory=dict)
    threads: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)


class SyncClient:
    """Follows /sync."""

    def __init__(
        self,
        user: User,
        *,
        lazy: bool = False,
        state_after: bool = False,
        forks: bool = False,
        limit: int = 10,
    ) -> None:
        """`forks`: the rooms have forks. Then gaps of the timeline stay, since depth order is not
        stream order. The client also keeps state that state resolution removed, since `/sync`
        cannot express its removal."""
        self.user = user
        self.forks = forks
        self.limit = limit
        self.lazy = lazy
        self.state_after = state_after
        self.since: str | None = None
        self.rooms: dict[str, KnownRoom] = {}
        self.account_data: dict[str, Json] = {}

    def ask(self, limit: int, *, since: str | None = None, include_leave: bool = False) -> Json:
        """Send one `/sync` request; return the response without applying it."""
        answer = self.user.get(self.path(limit, since=since, include_leave=include_leave))
        assert answer.status == 200, answer.body
        return dict(answer.json)

    def path(
        self,
        limit: int,
        *,
        since: str | None = None,
        include_leave: bool = False,
        timeout: int | None = None,
    ) -> str:
        """Return the path of a request. `timeout` is in milliseconds."""
        room: Json = {
            "timeline": {"limit": limit, "unread_thread_notifications": True},
            "include_leave": include_leave,
        }
        room["state"] = {"lazy_load_members": self.lazy}
        path = f"/_matrix/client/v3/sync?filter={quote(json.dumps({'room': room}))}"
        path += f"&use_state_after={'true' if self.state_after else 'false'}"
        path += f"&since={since}" if since is not None else ""
        return path if timeout is None else f"{path}&timeout={timeout}"

    def sync(self, limit: int | None = None) -> bool:
        """Send a request and apply the response. Return whether it had changes."""
        return self.take(self.ask(limit or self.limit, since=self.since, include_leave=True))

    def take(self, answer: Json) -> bool:
        """Apply a response to the current token. Return whether it had changes."""
        former = self.since
        self.since = answer["next_batch"]
        self._take_account_data(self.account_data, answer["account_data"])
        sections: Mapping[str, Json] = answer.get("rooms", {})
        for section, rooms in sections.items():
            for room_id, update in rooms.items():
                self._take(section, room_id, update, former)
        return bool(sections) or bool(answer["account_data"]["events"])

    def catch_up(self) -> None:
        """Sync until there are no more changes."""
        for _ in range(5):
            if not self.sync():
                return
        raise AssertionError("sync does not settle")

    def forget(self, room_id: str) -> None:
        """Drop a room that the user forgot: the client made that request itself."""
        self.rooms.pop(room_id, None)

    def forget_typing(self) -> None:
        """Drop typing notifications, which the server loses at a restart."""
        for known in self.rooms.values():
            known.typing.clear()

    def check(self) -> None:
        """Check that this client knows the same as a new client, and has each timeline event
        once."""
        fresh = SyncClient(self.user, state_after=self.state_after or self.forks)
        fresh.sync(WHOLE_ROOM)
        assert self.account_data == fresh.account_data
        assert self._sections() == fresh._sections()
        for room_id, expected in fresh.rooms.items():
            known = self.rooms[room_id]
            if expected.section in ("invite", "knock"):
                assert known.stripped == expected.stripped
                continue
            whole = self._state_of(expected, known)
            if self.forks:
                assert {key: known.state.get(key) for key in whole} == whole, room_id
            else:
                assert known.state == whole, room_id
            assert (
                known.timeline == expected.timeline[-len(known.timeline) :]
                if known.timeline
                else True
            ), room_id
            if expected.section == "join":
                assert known.account_data == expected.account_data, room_id
                assert known.receipts == expected.receipts
                assert known.typing == expected.typing
                assert (known.unread, known.threads) == (expected.unread, expected.threads), room_id
                # a client keeps the heroes of a room that has a name now
                assert expected.summary.items() <= known.summary.items()

    def _sections(self) -> dict[str, str]:
        return {room_id: room.section for room_id, room in self.rooms.items()}

    def _state_of(self, expected: KnownRoom, known: KnownRoom) -> dict[Key, Json]:
        """Return the state that the client must know. With lazy loading, it need not know all
        members."""
        if not self.lazy:
            return expected.state
        return {
            key: event
            for key, event in expected.state.items()
            if key[0] != "m.room.member" or key in known.state
        }

    def _take(self, section: str, room_id: str, update: Json, former: str | None) -> None:
        known = self.rooms.get(room_id)
        if section in ("invite", "knock"):
            room = self.rooms[room_id] = KnownRoom(
                section, stripped=update[f"{section}_state"]["events"]
            )
            assert any(event["state_key"] == self.user.user_id for event in room.stripped)
            return
        is_new = known is None or known.section != "join"
        if known is None or is_new:
            known = self.rooms[room_id] = KnownRoom(section)
        known.section = section
        timeline = update["timeline"]
        assert ("state_after" in update, "state" in update) == (
            self.state_after,
            not self.state_after,
        )
        changes = list(update["state_after" if self.state_after else "state"]["events"])
        if not self.state_after:
            changes += [event for event in timeline["events"] if "state_key" in event]
        known.state.update(
            ((event["type"], event["state_key"]), essence(event)) for event in changes
        )
        if timeline["limited"] and self.forks:
            known.timeline = []
        elif timeline["limited"] and not is_new and former is not None:
            known.timeline += self._fill_gap(room_id, timeline["prev_batch"], former)
        known.timeline += [event["event_id"] for event in timeline["events"]]
        assert len(set(known.timeline)) == len(known.timeline), "an event was sent twice"
        self._take_account_data(known.account_data, update["account_data"])
        if section == "join":
            self._take_ephemeral(known, update)
            known.unread = update["unread_notifications"]
            known.threads = update.get("unread_thread_notifications", {})
            known.summary.update(update["summary"])

    def _take_ephemeral(self, known: KnownRoom, update: Json) -> None:
        for event in update["ephemeral"]["events"]:
            if event["type"] == "m.typing":
                known.typing = set(event["content"]["user_ids"])
            else:
                for event_id, kinds in event["content"].items():
                    for kind, users in kinds.items():
                        for user_id, data in users.items():
                            known.receipts[user_id, kind, data.get("thread_id")] = event_id

    def _take_account_data(self, known: dict[str, Json], update: Json) -> None:
        for event in update["events"]:
            known[event["type"]] = event["content"]

    def _fill_gap(self, room_id: str, start: str, end: str) -> list[str]:
        """Fetch the events of the gap; return their IDs, oldest first."""
        found: list[str] = []
        while True:
            answer = self.user.get(
                f"/_matrix/client/v3/rooms/{room_id}/messages?dir=b&limit=3&from={start}&to={end}"
            )
            assert answer.status == 200, answer.body
            found += [event["event_id"] for event in answer.json["chunk"]]
            if "end" not in answer.json:
                return found[::-1]
            start = answer.json["end"]


def essence(event: Json) -> Json:
    """Return the fields of a state event that two clients must agree on."""
    return {"event_id": event["event_id"], "content": event["content"], "sender": event["sender"]}
