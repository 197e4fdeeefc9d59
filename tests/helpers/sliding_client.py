"""A client of sliding sync, for tests."""

from typing import Any

from tests.helpers.http import Pending
from tests.helpers.server import TestServer, User

UNSTABLE = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
STABLE = "/_matrix/client/v4/sync"


def a_list(
    *ranges: list[int], limit: int = 1, state: list[list[str]] | None = None, **filters: Any
) -> dict[str, Any]:
    """One list."""
    wanted: dict[str, Any] = {"timeline_limit": limit, "required_state": state or []}
    if ranges:
        wanted["ranges"] = list(ranges)
    return {**wanted, "filters": filters} if filters else wanted


class SlidingClient:
    """Remembers its `pos`, and sends what is in `body`."""

    def __init__(self, user: User, conn_id: str = "room-list", **body: Any) -> None:
        self.user = user
        self.body: dict[str, Any] = {"conn_id": conn_id, **body}
        self.pos: str | None = None

    def sync(self) -> dict[str, Any]:
        """The answer of now."""
        answer = self.user.post(self.path(), self.body)
        assert answer.status == 200, answer.body
        json: dict[str, Any] = answer.json
        self.pos = json["pos"]
        return json

    def wait(self) -> Pending:
        """A long poll."""
        return self.user.start(
            "POST", f"{self.path()}{'&' if self.pos else '?'}timeout=30000", self.body
        )

    def path(self) -> str:
        return UNSTABLE if self.pos is None else f"{UNSTABLE}?pos={self.pos}"


def act(user: User, room_id: str, action: str, **content: Any) -> None:
    """Join, leave, invite, kick, ban."""
    answer = user.post(f"/_matrix/client/v3/rooms/{room_id}/{action}", content)
    assert answer.status == 200, answer.body


def texts(room: dict[str, Any]) -> list[str]:
    """The texts of the messages in the timeline."""
    return [
        event["content"]["body"]
        for event in room.get("timeline", [])
        if event["type"] == "m.room.message"
    ]


def state_of(room: dict[str, Any]) -> set[tuple[str, str]]:
    """The keys of the state that was sent."""
    return {(event["type"], event["state_key"]) for event in room.get("required_state", [])}


def finish_poll(server: TestServer, pending: Pending) -> dict[str, Any]:
    """Return the response of a long poll that has something to send now."""
    for _ in range(3):
        server.clock.advance(0)
    answer: dict[str, Any] = pending.answer.json
    return answer
