"""Actions of users in rooms over HTTP, each call in a line.

    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    event_id = say(bob, room_id, "salom")

A call whose answer is not 200 fails the test; to see a refusal, ask the user directly
(`alice.post(…)`).
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any
from urllib.parse import quote, urlencode

from tests.helpers.http import Answer
from tests.helpers.server import User

V3 = "/_matrix/client/v3"
_txn_ids = (f"t{number}" for number in count())


def room_path(room_id: str, *rest: str, **query: object) -> str:
    """The path of something in a room; `from_` is `from` in the query, None is left out."""
    path = f"{V3}/rooms/{quote(room_id, safe='')}" + "".join(
        "/" + quote(part, safe="") for part in rest
    )
    fields = {name.rstrip("_"): value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(fields)}" if fields else path


def ok(answer: Answer) -> Any:
    """The answer's JSON, of a request that must not fail."""
    assert answer.status == 200, answer.body
    return answer.json


def refused(answer: Answer) -> tuple[int, str]:
    """Status and errcode, of a request that must fail."""
    assert answer.status >= 400, answer.body
    assert answer.json["error"]
    return answer.status, answer.errcode


def create(user: User, **wish: Any) -> str:
    """A new room; its id."""
    return str(ok(user.post(f"{V3}/createRoom", wish))["room_id"])


def membership(
    user: User, room_id: str, action: str, target: User | None = None, **more: Any
) -> Answer:
    """Join, leave, invite, kick, ban, unban, forget."""
    body = {} if target is None else {"user_id": target.user_id}
    return user.post(room_path(room_id, action), {**body, **more})


def join(user: User, room_id: str) -> None:
    ok(membership(user, room_id, "join"))


def leave(user: User, room_id: str) -> None:
    ok(membership(user, room_id, "leave"))


def invite(user: User, room_id: str, target: User) -> None:
    ok(membership(user, room_id, "invite", target))


def put_event(
    user: User, room_id: str, type_: str, content: Mapping[str, Any], txn_id: str | None = None
) -> Answer:
    """Send an event that is no state."""
    return user.put(room_path(room_id, "send", type_, txn_id or next(_txn_ids)), content)


def say(user: User, room_id: str, text: str) -> str:
    """A message; its event id."""
    return str(
        ok(put_event(user, room_id, "m.room.message", {"msgtype": "m.text", "body": text}))[
            "event_id"
        ]
    )


def redact(user: User, room_id: str, event_id: str, **body: Any) -> Answer:
    return user.put(room_path(room_id, "redact", event_id, next(_txn_ids)), body)


def put_state(
    user: User, room_id: str, type_: str, content: Mapping[str, Any], key: str = ""
) -> Answer:
    return user.put(room_path(room_id, "state", type_, key), content)


def set_state(
    user: User, room_id: str, type_: str, content: Mapping[str, Any], key: str = ""
) -> str:
    """Set a state entry; the event id."""
    return str(ok(put_state(user, room_id, type_, content, key))["event_id"])


def get_state(user: User, room_id: str, type_: str, key: str = "") -> Any:
    """The content of a state entry, None where there is none."""
    answer = user.get(room_path(room_id, "state", type_, key))
    return None if answer.status == 404 else ok(answer)


def whole_state(user: User, room_id: str) -> dict[tuple[str, str], Any]:
    """The whole state as (type, state key) → event."""
    return {
        (event["type"], event["state_key"]): event
        for event in ok(user.get(room_path(room_id, "state")))
    }


def messages(user: User, room_id: str, dir: str = "b", **query: object) -> Any:
    """A page of the timeline."""
    return ok(user.get(room_path(room_id, "messages", dir=dir, **query)))


def bodies(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of the messages among the events."""
    return [
        event["content"]["body"]
        for event in events
        if event["type"] == "m.room.message" and event["content"]
    ]


def everything_said(user: User, room_id: str) -> list[str]:
    """The texts of the messages that the user sees, oldest first."""
    return bodies(messages(user, room_id, "b", limit=1000)["chunk"])[::-1]
