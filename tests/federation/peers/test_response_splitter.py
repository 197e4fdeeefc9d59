"""The splitter of large responses: it finds their events, and bounds the cost of everything
else."""

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from federation.peers import response_splitter
from federation.peers.response_splitter import (
    BYTES_PER_TURN,
    MAX_EVENT_BYTES,
    MAX_OTHER_VALUES,
    MAX_REST_BYTES,
    SplitResponse,
    split_lists,
)
from tests.helpers.clocks import TurnCountingClock

FIELDS = ("pdus", "auth_chain")


def split(body: bytes, most: int = 1000) -> tuple[dict[str, list[Any]] | Exception, int]:
    """Return the parsed result, or the error, and the number of turns that other work had."""
    clock = TurnCountingClock()
    task = Deferred.fromCoroutine(split_lists(body, FIELDS, most, clock))
    while not task.called:
        clock.advance(0)
    try:
        found = succeeded(task)
    except ValueError as error:
        return error, clock.taken
    return {
        field: [msgspec.json.decode(each) for each in events]
        for field, events in found.lists.items()
    }, clock.taken


def succeeded(task: Deferred[SplitResponse]) -> SplitResponse:
    """The result of what is done. Raises what it raised."""
    found: list[SplitResponse] = []
    failed: list[Failure] = []
    task.addCallbacks(found.append, failed.append)
    for failure in failed:
        failure.raiseException()
    return found[0]


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize("indent", [0, 2])
def test_events_are_split_whatever_they_contain(indent: int) -> None:
    said = {
        "origin": {"pdus": [{"no": 1}]},
        "pdus": [
            {"body": 'a "quoted" {thing} ] \\', "\\": [], "": {}},
            {"unicode": "so\u2018z \U0001f642", "numbers": [1, -2.5, None, True]},
            nested(3),
            nested(40),
        ],
        "auth_chain": [{}],
    }

    body = msgspec.json.format(msgspec.json.encode(said), indent=indent)

    assert split(body)[0] == {"pdus": said["pdus"], "auth_chain": said["auth_chain"]}


@pytest.mark.parametrize(
    ("body", "pdus"),
    [
        (b"{}", []),
        (b' { "pdus" : [ ] } ', []),
        (b'{"pdus":{"a":{}},"auth_chain":7}', []),
        (b'{"pdus":[1,"x{",[{}],{"a":1},null]}', [{"a": 1}]),
        (b'{"pdus":[{"a":1}],"pdus":[{"a":2}]}', [{"a": 1}, {"a": 2}]),
    ],
)
def test_values_that_are_no_events_are_skipped(body: bytes, pdus: list[Any]) -> None:
    assert split(body)[0] == {"pdus": pdus, "auth_chain": []}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"7",
        b"{",
        b"}",
        b"{}{}",
        b'{"pdus":[{}',
        b'{"pdus":[{]}',
        b'{"pdus":["',
        b'{"pdus":["' + b'\\"' * 100,
        b'{"pdus":' + b"[" * 1000,
        b'{"pdus":' + b'[{"a":' * 1000,
        b'{"pdus":[{"a":"' + b"x" * MAX_EVENT_BYTES + b'"}]}',
    ],
)
def test_a_malformed_response_is_refused(body: bytes) -> None:
    assert isinstance(split(body)[0], ValueError)


@pytest.mark.parametrize("each", [b"{},", b'"",', b"[],"])
def test_the_number_of_events_is_bounded(each: bytes) -> None:
    assert isinstance(
        split(b'{"pdus":[' + each * (10 + MAX_OTHER_VALUES) + b"{}]}", most=10)[0], ValueError
    )
    assert not isinstance(split(b'{"pdus":[' + each * 9 + b"{}]}", most=10)[0], ValueError)


def test_the_reactor_runs_while_a_response_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    event = b'{"body":"' + b"x" * 60_000 + b'"},'

    assert split(b'{"pdus":[' + event * 200 + b"{}]}")[1] >= len(event) * 200 // BYTES_PER_TURN - 1
    monkeypatch.setattr(response_splitter, "BYTES_PER_TURN", 1 << 30)
    assert split(b'{"pdus":[' + event * 200 + b"{}]}")[1] == 0


def test_values_beside_the_lists_are_returned_and_bounded() -> None:
    body = b' {"a":[1,{"pdus":[3]}],"pdus":[{"b":2},7],"c":"]","auth_chain":[ ] ,"d":{"e":[]}} '

    rest = succeeded(Deferred.fromCoroutine(split_lists(body, FIELDS, 10, Clock()))).rest

    assert msgspec.json.decode(rest) == {
        "a": [1, {"pdus": [3]}],
        "pdus": [],
        "c": "]",
        "auth_chain": [],
        "d": {"e": []},
    }
    assert isinstance(
        split(b'{"pdus":[{}],"a":' + b'"x", "a":' * (MAX_REST_BYTES // 9) + b"1}")[0], ValueError
    )
    assert isinstance(split(b'{"pdus":[{}]' + b" " * MAX_REST_BYTES + b"}")[0], ValueError)
