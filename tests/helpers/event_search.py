"""Searches over HTTP, after the index jobs have caught up.

begin_jobs(server)
say(alice, room, "salom")
settle(server)
assert found(bob, "salom") == [event_id]
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from tests.helpers.http import Answer
from tests.helpers.room_actions import V3, ok
from tests.helpers.server import TestServer, User


def begin_jobs(server: TestServer) -> None:
    """Start the background jobs and let them do their first steps."""
    server.app.jobs.start()
    server.clock.advance(60)


def settle(server: TestServer) -> None:
    """Let the background jobs process new events."""
    for _ in range(20):
        server.clock.advance(0.1)


async def index(server: TestServer) -> None:
    """Let the index process all events without advancing the clock."""
    await server.app.search.indexing.do_step(10_000)


def ask(user: User, term: str, next_batch: str | None = None, **criteria: Any) -> Answer:
    """Return the response of a search in room events."""
    path = f"{V3}/search" + ("" if next_batch is None else f"?next_batch={quote(next_batch)}")
    return user.post(
        path, {"search_categories": {"room_events": {"search_term": term, **criteria}}}
    )


def search(user: User, term: str, next_batch: str | None = None, **criteria: Any) -> Any:
    """Search; return the `room_events` section of a successful response."""
    return ok(ask(user, term, next_batch, **criteria))["search_categories"]["room_events"]


def ids(answer: Any) -> list[str]:
    """Return the event IDs of the results, in order."""
    return [result["result"]["event_id"] for result in answer["results"]]


def found(user: User, term: str, **criteria: Any) -> list[str]:
    """Return the event IDs of the first page, newest first."""
    return ids(search(user, term, **{"order_by": "recent", **criteria}))


def all_pages(user: User, term: str, **criteria: Any) -> Sequence[list[str]]:
    """Return the event IDs of all results by page."""
    pages: list[list[str]] = []
    token: str | None = None
    while True:
        answer = search(user, term, token, **criteria)
        pages.append(ids(answer))
        token = answer.get("next_batch")
        if token is None:
            return pages
        assert len(pages) < 100
