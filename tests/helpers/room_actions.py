"""Client requests to rooms, each in one call.

    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    event_id = say(bob, room_id, "salom")

A call fails the test if its response is not 200. To test a refusal, send the request with the
user's own methods (`alice.post(…)`).
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any
from urllib.parse import quote, urlencode

from federation.protocol.ids import EventID
from tests.helpers.http import Answer
from tests.helpers.server import User

V3 = "/_matrix/client/v3"
_txn_ids = (f"t{number}" for number in count())


def room_path(room_id: str, *rest: str, **query: object) -> str:
    """Return a path below a room. The argument `from_` is `from` in the query; None is left out."""
    path = f"{V3}/rooms/{quote(room_id, safe='')}" + "".join(
        "/" + quote(part, safe="") for part in rest
    )
    fields = {name.rstrip("_"): value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(fields)}" if fields else path


def ok(answer: Answer) -> Any:
    """Return the JSON of a response, which must be 200."""
    assert answer.status == 200, answer.body
    return answer.json


def refused(answer: Answer) -> tuple[int, str]:
    """Return status and errcode of a response, which must be an error."""
    assert answer.status >= 400, answer.body
    assert answer.json["error"]
    return answer.status, answer.errcode


def outcome(answer: Answer) -> tuple[int, str | None]:
    """Return status and errcode of a response; the errcode of a success is None."""
    return answer.status, answer.json.get("errcode")


def create(user: User, **options: Any) -> str:
    """Create a room; return its ID."""
    return str(ok(user.post(f"{V3}/createRoom", options))["room_id"])


def membership(
    user: User, room_id: str, action: str, target: User | None = None, **more: Any
) -> Answer:
    """Change a membership: join, leave, invite, kick, ban, unban, forget."""
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
    """Send a message event."""
    return user.put(room_path(room_id, "send", type_, txn_id or next(_txn_ids)), content)


def say(user: User, room_id: str, text: str) -> EventID:
    """Send a text message; return its event ID."""
    content = {"msgtype": "m.text", "body": text}
    return EventID(ok(put_event(user, room_id, "m.room.message", content))["event_id"])


def redact(user: User, room_id: str, event_id: str, **body: Any) -> Answer:
    return user.put(room_path(room_id, "redact", event_id, next(_txn_ids)), body)


def put_state(
    user: User, room_id: str, type_: str, content: Mapping[str, Any], key: str = ""
) -> Answer:
    return user.put(room_path(room_id, "state", type_, key), content)


def set_state(
    user: User, room_id: str, type_: str, content: Mapping[str, Any], key: str = ""
) -> EventID:
    """Set a state entry; return its event ID."""
    return EventID(ok(put_state(user, room_id, type_, content, key))["event_id"])


def get_state(user: User, room_id: str, type_: str, key: str = "") -> Any:
    """Return the content of a state entry, or None if it is not set."""
    answer = user.get(room_path(room_id, "state", type_, key))
    return None if answer.status == 404 else ok(answer)


def full_state(user: User, room_id: str) -> dict[tuple[str, str], Any]:
    """Return the complete state as (type, state key) → event."""
    return {
        (event["type"], event["state_key"]): event
        for event in ok(user.get(room_path(room_id, "state")))
    }


def messages(user: User, room_id: str, dir: str = "b", **query: object) -> Any:
    """Return a page of `/messages`."""
    return ok(user.get(room_path(room_id, "messages", dir=dir, **query)))


def bodies(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the texts of the messages among the events."""
    return [
        event["content"]["body"]
        for event in events
        if event["type"] == "m.room.message" and event["content"]
    ]


def all_texts(user: User, room_id: str) -> list[str]:
    """Return the texts of the messages that the user sees, oldest first."""
    return bodies(messages(user, room_id, "b", limit=1000)["chunk"])[::-1]


def get_event(user: User, room_id: str, event_id: str) -> Any:
    """Return an event as the user sees it."""
    return ok(user.get(room_path(room_id, "event", event_id)))


def is_shown(user: User, room_id: str, event_id: str) -> bool:
    """Return whether the user can read the event."""
    return user.get(room_path(room_id, "event", event_id)).status == 200


def aggregations(user: User, room_id: str, event_id: str) -> Any:
    """Return the aggregations of an event's children."""
    return get_event(user, room_id, event_id)["unsigned"].get("m.relations", {})


def relate(
    user: User, room_id: str, target: str, rel_type: str, text: str = "child", **content: Any
) -> str:
    """Send a message that relates to another; return its event ID."""
    relation = {"rel_type": rel_type, "event_id": target}
    body = {"msgtype": "m.text", "body": text, "m.relates_to": relation, **content}
    return str(ok(put_event(user, room_id, "m.room.message", body))["event_id"])


def edit(user: User, room_id: str, target: str, text: str) -> str:
    """Edit a message. Advances the clock: of two edits of one time, the greater ID would be the
    later one."""
    user.server.clock.advance(1)
    new = {"msgtype": "m.text", "body": text}
    return relate(user, room_id, target, "m.replace", f"* {text}", **{"m.new_content": new})


def reply(user: User, room_id: str, root: str, text: str = "reply") -> str:
    """Send a message into a thread; return its event ID."""
    return relate(user, room_id, root, "m.thread", text)


def ignore(user: User, other: User) -> None:
    """Ignore one user and no others."""
    path = f"{V3}/user/{quote(user.user_id)}/account_data/m.ignored_user_list"
    ok(user.put(path, {"ignored_users": {other.user_id: {}}}))


def send_receipt(
    user: User, room_id: str, event_id: str, kind: str = "m.read", thread: str | None = None
) -> None:
    """Send a receipt: public, or with kind `m.read.private`."""
    body = {} if thread is None else {"thread_id": thread}
    ok(user.post(room_path(room_id, "receipt", kind, event_id), body))
