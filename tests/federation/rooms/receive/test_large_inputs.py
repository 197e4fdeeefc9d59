"""Large inputs from another server are parsed, sorted and checked in chunks, with turns of other
work in between."""

import json
import random
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.peers.client import FederationClient
from federation.protocol.errors import MatrixError
from federation.protocol.event_signing import hash_and_sign_event
from federation.protocol.events import Event
from federation.protocol.ids import EventID, RoomID, ServerName
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.signing import SigningKey
from federation.remote.events import MAX_STATE_EVENTS, EventClient
from federation.rooms.receipt_checks import ReceivedPdu, Verdict
from federation.rooms.receive.batch import (
    Outcome,
    parse_events,
    sort_by_reference,
    sort_many_by_reference,
)
from federation.rooms.receive.outliers import Outliers
from federation.rooms.receive.state_imports import StateImports
from storage.events.events import EventStore
from storage.rooms.rooms import RoomRow
from tests.helpers.clocks import TurnCountingClock

VERSION, ROOM = ROOM_VERSIONS["11"], RoomID("!r:a.example")
KEY = SigningKey("1", b"1" * 32)


def finish(clock: Clock, work: Any) -> Any:
    found: list[Any] = []
    task = Deferred.fromCoroutine(work)
    task.addCallback(found.append)
    while not task.called:
        clock.advance(0)
    (result,) = found
    return result


def pdu(number: int, content: Mapping[str, Any]) -> dict[str, Any]:
    draft = {
        "type": "m.room.message",
        "room_id": ROOM,
        "sender": "@u:a.example",
        "content": content,
        "origin_server_ts": 1,
        "auth_events": [],
        "prev_events": [],
        "depth": number,
    }
    return dict(hash_and_sign_event(VERSION, draft, ServerName("a.example"), KEY))


def test_a_page_of_ordinary_events_is_read_at_once() -> None:
    clock = TurnCountingClock()
    page = [pdu(number, {"body": "salom"}) for number in range(100)]
    assert len(finish(clock, parse_events(VERSION, ROOM, page, clock))) == 100
    assert clock.taken == 0


def test_other_work_runs_while_a_slow_page_is_parsed() -> None:
    """Of nothing but empty objects, a hundred events of 64 KiB took nearly half a second."""
    clock = TurnCountingClock()
    good = [pdu(number, {"x": [{}] * 20_000}) for number in range(100)]
    assert len(finish(clock, parse_events(VERSION, ROOM, good, clock))) == 100
    assert clock.taken >= 20
    clock.taken = 0
    bad = [{**each, "depth": "deep"} for each in good]
    assert finish(clock, parse_events(VERSION, ROOM, bad, clock)) == {}
    assert clock.taken >= 20


def test_a_long_auth_chain_is_sorted_in_pieces() -> None:
    names = [EventID(f"${number:043}") for number in range(5000)]
    events = {
        name: cast(
            Event,
            SimpleNamespace(
                event_id=name, type="x", prev_events=names[max(0, at - 5) : at], auth_events=[]
            ),
        )
        for at, name in enumerate(names)
    }
    shuffled = list(events)
    random.Random(1).shuffle(shuffled)
    events = {name: events[name] for name in shuffled}
    clock = TurnCountingClock()
    ordered, circular = finish(clock, sort_many_by_reference(events, clock))
    assert [event.event_id for event in ordered] == names
    assert circular == []
    assert clock.taken >= 8
    assert sort_by_reference(events)[0] == ordered


def test_one_event_that_all_others_follow_is_sorted_in_pieces_too() -> None:
    """A server that invents a state chooses which events it cites. Sorting the events that all
    cite one took half a second in one go."""
    names = [EventID(f"${number:043}") for number in range(5000)]
    events = {
        name: cast(
            Event,
            SimpleNamespace(
                event_id=name, type="x", prev_events=names[:1] if at else [], auth_events=[]
            ),
        )
        for at, name in enumerate(names)
    }
    clock = TurnCountingClock()
    ordered, circular = finish(clock, sort_many_by_reference(events, clock))
    assert [event.event_id for event in ordered] == names
    assert circular == []
    assert clock.taken >= 13, (
        "to see who follows whom, to let the followers go on, to put them down"
    )


def test_events_on_a_cycle_or_depending_on_one_have_no_place() -> None:
    cited = {
        "$a": ["$b"],
        "$b": ["$a"],
        "$c": ["$b", "$d"],
        "$d": [],
        "$e": ["$d", "$elsewhere"],
        "$f": ["$f"],
    }
    made = {
        EventID(name): SimpleNamespace(
            event_id=name, type="m.room.create" if name == "$e" else "x", prev_events=names
        )
        for name, names in cited.items()
    }
    for event in made.values():
        event.auth_events = []
    ordered, circular = sort_by_reference(cast(Mapping[EventID, Event], made))
    assert [event.event_id for event in ordered] == ["$d", "$e"]
    assert [event.event_id for event in circular] == ["$a", "$b", "$c", "$f"]


class Kept:
    """Keeps whatever comes, in the place of `Outliers`."""

    def __init__(self) -> None:
        self.depths: list[int] = []

    async def add(self, _room: RoomRow, candidates: Sequence[ReceivedPdu]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for each in candidates:
            try:
                depth = each.read().depth
            except MatrixError as error:
                outcomes.append(Outcome(None, Verdict.DROP, error))
                continue
            self.depths.append(depth)
            outcomes.append(Outcome(EventID(f"${depth}"), Verdict.ACCEPT))
        return outcomes


def test_a_long_state_is_sorted_in_pieces() -> None:
    clock, kept = TurnCountingClock(), Kept()
    imports = StateImports(outliers=cast(Outliers, kept), store=cast(EventStore, None), clock=clock)
    one = pdu(0, {"body": "x"})
    depths = list(range(45_000))
    random.Random(1).shuffle(depths)
    room = RoomRow(1, ROOM, "11", 0)
    received = [msgspec.Raw(msgspec.json.encode({**one, "depth": depth})) for depth in depths]
    outcomes = finish(clock, imports.store(room, received))
    assert kept.depths == sorted(depths)
    assert [outcome.event_id for outcome in outcomes] == [f"${depth}" for depth in depths]
    assert clock.taken >= 2 + sum(len(memoryview(each)) for each in received) // (4 << 20)


@pytest.mark.parametrize("depth", [-(10**400), 10**400, 2**70, 1.5, True, None, "deep"])
@pytest.mark.parametrize("is_read", [True, False])
def test_an_event_with_an_impossible_depth_is_skipped(depth: object, is_read: bool) -> None:
    clock, kept = TurnCountingClock(), Kept()
    imports = StateImports(outliers=cast(Outliers, kept), store=cast(EventStore, None), clock=clock)
    one = pdu(1, {"body": "x"})
    bad: Any = {**one, "depth": depth}
    received = (
        [bad, one] if is_read else [msgspec.Raw(json.dumps(each).encode()) for each in (bad, one)]
    )
    outcomes = finish(clock, imports.store(RoomRow(1, ROOM, "11", 0), received))
    assert [outcome.event_id for outcome in outcomes] == [None, "$1"]


def test_a_long_list_of_ids_is_checked_in_pieces() -> None:
    ids = [f"${number:043}" for number in range(MAX_STATE_EVENTS)]

    class Answers:
        async def get_as(self, form: type[Any], *_: object, **__: object) -> Any:
            return form([*ids, "no id"][1:], ids[:10])

    clock = TurnCountingClock()
    remote = EventClient(requests=cast(FederationClient, Answers()), clock=clock)
    received = finish(
        clock,
        remote.get_state_ids(
            ServerName("a.example"), ROOM, EventID("$x"), seconds=10, max_bytes=1 << 30
        ),
    )
    assert received.state == ids[1:]
    assert received.auth_chain == ids[:10]
    assert clock.taken >= 20
