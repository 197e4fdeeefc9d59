"""What is written through one process is heard of at another as soon as that says so, not only when it asks."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest

from homeserver.node_notes import LONGEST_BODY
from homeserver.written import Concerned, Written, without
from storage.database import PostgresConfig
from tests.helpers.calling_nodes import CallingNodes
from tests.helpers.syncing import Json, Rooms, bodies, poll, sync

V3 = "/_matrix/client/v3"
rooms = Rooms()
QUIET: Json = {"presence": {"types": []}}


@pytest.fixture
def nodes(tmp_path: Path, postgresql: PostgresConfig) -> Iterator[CallingNodes]:
    made = CallingNodes(tmp_path, postgresql)
    yield made
    made.close()


def test_a_message_wakes_who_waits_at_another_node_without_its_asking(nodes: CallingNodes) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait()
    waiting = poll(bob, sync(bob, filter=QUIET)["next_batch"], QUIET)
    rooms.say(alice, room_id, "salom")
    nodes.wait(0.15)
    assert waiting.done
    assert bodies(waiting.answer.json["rooms"]["join"][room_id]) == ["salom"]
    # a room that was made through one node can be read through the other
    other = rooms.create(alice)
    nodes.wait(0.15)
    assert bob_here.get(f"{V3}/rooms/{quote(other)}/messages?dir=b").status == 403
    assert nodes.there(alice).get(f"{V3}/rooms/{quote(other)}/messages?dir=b").status == 200


def test_only_those_are_woken_whom_it_concerns(nodes: CallingNodes) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    others = [nodes.there(nodes.servers[0].register(f"other{number}")) for number in range(20)]
    for other in others:
        rooms.create(nodes.here(other))
    nodes.wait(2)
    waiting = [poll(each, sync(each, filter=QUIET)["next_batch"], QUIET) for each in (bob, *others)]
    nodes.wait(2)
    before = dict(nodes.counters[1].reads)
    rooms.say(alice, room_id, "salom")
    nodes.wait(2)
    assert [each.done for each in waiting] == [True] + [False] * 20
    read = nodes.counters[1].reads
    assert read["get_memberships_of_user"] - before["get_memberships_of_user"] <= 3  # twenty others would read theirs


def test_everybody_is_woken_where_nobody_says_whom_it_concerns(nodes: CallingNodes) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait(2)
    waiting = poll(bob, sync(bob, filter=QUIET)["next_batch"], QUIET)
    nodes.end_first()  # its words are lost, what it writes is not
    rooms.say(alice, room_id, "salom")
    nodes.wait(2)
    assert waiting.done
    assert bodies(waiting.answer.json["rooms"]["join"][room_id]) == ["salom"]


def test_what_concerns_very_many_wakes_everybody(nodes: CallingNodes) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    ids = [rooms.create(alice, bob_here) for _ in range(3)]
    nodes.wait(2)
    waiting = poll(bob, sync(bob, filter=QUIET)["next_batch"], QUIET)
    for number in range(30):
        rooms.keep(alice, "org.example.long", {"n": number})
        nodes.servers[0].register("x" * 200 + str(number))
    rooms.say(alice, ids[0], "salom")
    nodes.wait(0.3)
    assert waiting.done


def test_many_writes_cost_few_calls(nodes: CallingNodes) -> None:
    alice, _ = nodes.here_and_there("alice")
    room_id = rooms.create(alice)
    nodes.wait()
    before = nodes.calls
    for number in range(50):
        rooms.say(alice, room_id, f"m{number}")
    nodes.wait(0.15)
    assert nodes.calls - before <= 2


@pytest.mark.parametrize(
    ("stretches", "told", "left"),
    [
        ([(0, 10)], [(0, 10)], []),
        ([(0, 10)], [(2, 4), (6, 9)], [(0, 2), (4, 6), (9, 10)]),
        ([(0, 10), (12, 15)], [(8, 13)], [(0, 8), (13, 15)]),
        ([(5, 6)], [(0, 5), (6, 9)], [(5, 6)]),
        ([(5, 6)], [], [(5, 6)]),
    ],
)
def test_what_is_left_of_stretches(
    stretches: list[tuple[int, int]], told: list[tuple[int, int]], left: list[tuple[int, int]]
) -> None:
    assert without(stretches, told) == left


def test_what_is_told_is_bounded() -> None:
    written = Written()
    for number in range(0, 3000, 3):
        concerned = Concerned(rooms={number: None}, users={f"@user{number}:example.org": None})
        written = written.with_more(number, number + 2, concerned)
        assert len(msgspec.json.encode(written)) < LONGEST_BODY
    assert written.is_for_all
    assert written.upto == 2999
