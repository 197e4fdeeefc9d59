"""Requests that create spaces and read their hierarchies."""

from typing import Any
from urllib.parse import quote, urlencode

from tests.helpers.http import Answer
from tests.helpers.room_actions import create, ok, set_state
from tests.helpers.server import User

V1 = "/_matrix/client/v1"
VIA = ["example.org"]


def create_space(user: User, name: str = "space", **options: Any) -> str:
    """Create a public space; return its ID."""
    return create(
        user,
        **{"preset": "public_chat", "name": name, **options},
        creation_content={"type": "m.space"},
    )


def add_child(user: User, space: str, child: str, **content: Any) -> str:
    """Add a room to a space; return the event ID."""
    return set_state(user, space, "m.space.child", {"via": VIA, **content}, child)


def hierarchy_path(room_id: str, **query: object) -> str:
    fields = {name.rstrip("_"): value for name, value in query.items() if value is not None}
    return f"{V1}/rooms/{quote(room_id, safe='')}/hierarchy" + (
        f"?{urlencode(fields)}" if fields else ""
    )


def hierarchy(user: User, room_id: str, **query: object) -> Any:
    """Return a page of the hierarchy below a room."""
    return ok(user.get(hierarchy_path(room_id, **query)))


def rooms_below(user: User, room_id: str, **query: object) -> list[str]:
    """Return the room IDs of a page, the root first."""
    return [room["room_id"] for room in hierarchy(user, room_id, **query)["rooms"]]


def every_page(user: User, room_id: str, limit: int, **query: object) -> list[list[str]]:
    """Return the room IDs of all pages."""
    pages, from_ = [], None
    while True:
        page = hierarchy(user, room_id, limit=limit, from_=from_, **query)
        pages.append([room["room_id"] for room in page["rooms"]])
        from_ = page.get("next_batch")
        if from_ is None:
            return pages


def summary_path(room: str, **query: Any) -> str:
    path = f"{V1}/room_summary/{quote(room, safe='')}"
    return f"{path}?{urlencode(query, doseq=True)}" if query else path


def summary(user: User, room: str) -> Answer:
    return user.get(summary_path(room))
