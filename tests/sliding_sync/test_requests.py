"""Sliding sync: valid and invalid requests."""

from typing import Any

import pytest

from tests.helpers.room_actions import create
from tests.helpers.server import TestServer
from tests.helpers.sliding_client import STABLE, UNSTABLE, a_list


@pytest.mark.parametrize(
    "body",
    [
        {"lists": {f"l{number}": a_list([0, 1]) for number in range(101)}},
        {"room_subscriptions": {f"!r{number}:x": {"timeline_limit": 1} for number in range(101)}},
        {"lists": {"x" * 65: a_list([0, 1])}},
        {"lists": {"a": a_list([3, 1])}},
        {"lists": {"a": a_list([-1, 1])}},
        {"lists": {"a": a_list([0, 1], state=[["\0", ""]])}},
        {"lists": {"a": {"ranges": [[0, 1]], "timeline_limit": "many"}}},
        {"conn_id": "\0"},
        {"conn_id": "x" * 256},
        {"extensions": {"to_device": {"enabled": True, "since": "x"}}},
    ],
)
def test_invalid_requests_are_refused(server: TestServer, body: dict[str, object]) -> None:
    alice = server.register("alice")
    answer = alice.post(UNSTABLE, body)
    assert answer.status == 400
    assert answer.errcode in ("M_INVALID_PARAM", "M_BAD_JSON")


@pytest.mark.parametrize("key", ["\0", "", "a b", "ä", "a/b", "x" * 256])
@pytest.mark.parametrize("form", [UNSTABLE, STABLE])
def test_keys_of_lists_are_opaque_identifiers(server: TestServer, form: str, key: str) -> None:
    alice = server.register("alice")
    answer = alice.post(
        form,
        {"lists": {key: {"timeline_limit": 1, "required_state": {} if form == STABLE else []}}},
    )
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")


def test_a_list_may_have_a_long_key_in_the_accepted_form(server: TestServer) -> None:
    key = "all.rooms_~-" + "x" * 200
    answer = server.register("alice").post(STABLE, {"lists": {key: {"timeline_limit": 1}}})
    assert list(answer.json["lists"]) == [key]


@pytest.mark.parametrize(
    ("state", "status"), [("offline", 200), (None, 200), ("busy", 400), ("", 400)]
)
def test_set_presence_has_three_values(server: TestServer, state: str | None, status: int) -> None:
    answer = server.register("alice").post(STABLE, {"set_presence": state})
    assert answer.status == status
    if status == 400:
        assert answer.errcode == "M_INVALID_PARAM"


def test_unknown_fields_and_nulls_are_ignored(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    body: dict[str, Any] = {
        "txn_id": "t",
        "conn_id": None,
        "lists": {
            "a": {
                **a_list([0, 1]),
                "sort": ["by_recency"],
                "filters": None,
                "bump_event_types": ["x"],
            }
        },
        "room_subscriptions": {"!nowhere:example.org": {"timeline_limit": 1, "required_state": []}},
        "extensions": {"org.example": {"enabled": True}, "typing": {"enabled": False}},
        "unsubscribe_rooms": [],
    }
    answer = alice.post(UNSTABLE, body).json
    assert list(answer["rooms"]) == [room_id]
    assert answer["txn_id"] == "t"
    assert answer["extensions"] == {}
