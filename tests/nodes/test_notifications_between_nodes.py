"""Notes between nodes: a change through one node wakes clients of the other at once, before its
next poll of the database."""

from collections.abc import Sequence
from random import Random
from urllib.parse import quote

import pytest
from twisted.internet.defer import succeed
from twisted.internet.task import Clock

from federation.protocol.ids import UserID
from homeserver.cluster.incoming_changes import IncomingChanges
from homeserver.cluster.node_messages import NodeMessages
from homeserver.cluster.outgoing_changes import OutgoingChanges, subtract_ranges
from homeserver.services.streams.recent_changes import RecentChanges
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventRow
from tests.helpers.node_pair import NodePair
from tests.helpers.sync_requests import Json, Rooms, bodies, poll, sync

V3 = "/_matrix/client/v3"
rooms = Rooms()
QUIET: Json = {"presence": {"types": []}}


def test_a_message_wakes_a_long_poll_on_another_node_by_its_note(nodes: NodePair) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait()
    waiting = poll(bob, sync(bob, filter=QUIET)["next_batch"], QUIET)
    rooms.say(alice, room_id, "salom")
    nodes.wait(0.15)
    assert waiting.done
    assert bodies(waiting.answer.json["rooms"]["join"][room_id]) == ["salom"]
    # a room created through one node can be read through the other
    other = rooms.create(alice)
    nodes.wait(0.15)
    assert bob_here.get(f"{V3}/rooms/{quote(other)}/messages?dir=b").status == 403
    assert nodes.there(alice).get(f"{V3}/rooms/{quote(other)}/messages?dir=b").status == 200


def test_a_note_wakes_only_affected_users(nodes: NodePair) -> None:
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
    assert (
        read["get_memberships_of_user"] - before["get_memberships_of_user"] <= 3
    )  # twenty other users would read theirs


def test_all_users_are_woken_if_no_note_names_the_affected_ones(nodes: NodePair) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait(2)
    waiting = poll(bob, sync(bob, filter=QUIET)["next_batch"], QUIET)
    nodes.end_first()  # its notes are lost, its writes are not
    rooms.say(alice, room_id, "salom")
    nodes.wait(2)
    assert waiting.done
    assert bodies(waiting.answer.json["rooms"]["join"][room_id]) == ["salom"]


def test_a_change_for_very_many_users_wakes_all(nodes: NodePair) -> None:
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


def test_many_writes_cost_few_notes(nodes: NodePair) -> None:
    alice, _ = nodes.here_and_there("alice")
    room_id = rooms.create(alice)
    nodes.wait()
    before = nodes.calls
    for number in range(50):
        rooms.say(alice, room_id, f"m{number}")
    nodes.wait(0.15)
    assert nodes.calls - before <= 2


@pytest.mark.parametrize(
    ("stretches", "received", "left"),
    [
        ([(0, 10)], [(0, 10)], []),
        ([(0, 10)], [(2, 4), (6, 9)], [(0, 2), (4, 6), (9, 10)]),
        ([(0, 10), (12, 15)], [(8, 13)], [(0, 8), (13, 15)]),
        ([(5, 6)], [(0, 5), (6, 9)], [(5, 6)]),
        ([(5, 6)], [], [(5, 6)]),
    ],
)
def test_announced_ranges_are_subtracted(
    stretches: list[tuple[int, int]], received: list[tuple[int, int]], left: list[tuple[int, int]]
) -> None:
    assert subtract_ranges(stretches, received) == left


class Pair:
    """The streams of two nodes that write in turn. The first sends notes of its writes to the
    second: soon, late, or never."""

    def __init__(self, random: Random, *, is_sure: bool) -> None:
        """`is_sure`: all notes arrive soon."""
        self.random = random
        self.is_sure = is_sure
        self.clock = Clock()
        self.here, self.there = Streams(), Streams()
        notes, other_notes = NodeMessages(self.clock), NodeMessages(self.clock)
        OutgoingChanges(streams=self.here, messages=notes)
        self.others = IncomingChanges(streams=self.there, clock=self.clock, messages=other_notes)
        self.recent = RecentChanges(streams=self.there, incoming_changes=self.others)
        self.all_changes = Streams()
        self.truth = RecentChanges(streams=self.all_changes)
        self.longest = 0
        other_notes.connect(lambda _bodies: succeed(None))

        async def send(bodies: Sequence[str]) -> None:
            for body in bodies:
                self.longest = max(self.longest, len(body.encode()))
                if is_sure or random.random() < 0.9:
                    delay = 0.0 if is_sure else random.choice((0.0, 0.05, 0.3, 2.0))
                    self.clock.callLater(delay, other_notes.receive, 1, body)

        notes.connect(send)

    def changes(self, count: int) -> list[Change]:
        head = max(self.here.current(), self.there.current())
        made = []
        for number in range(count):
            position, user = (
                head + 1 + number // 2,
                f"@{'x' * self.random.choice([1, 240])}{number}:example.org",
            )
            detail: object = EventRow(
                1,
                "$e",
                self.random.randrange(9),
                position,
                1,
                "m.room.message",
                None,
                user,
                0,
                0,
                None,
                None,
                None,
                b"",
            )
            topic = Topic.EVENT
            if self.random.random() < 0.5:
                topic, detail = Topic.ACCOUNT_DATA, None
            made.append(Change(position, topic, None, user, detail))
        return made

    def write(self, node: Streams, other: Streams) -> None:
        changes = self.changes(
            self.random.choice([1, 1, 2, 5, 5, 40, 300 if self.is_sure else 1500])
        )
        node.advance_to(other.current())
        node.publish(changes, changes[-1].position)
        self.all_changes.publish(changes, changes[-1].position)


@pytest.mark.parametrize("seed", range(20))
def test_caches_never_contradict_the_writes_of_another_node(seed: int) -> None:
    """This holds if notes are late or lost. A note is also short enough for PostgreSQL."""
    pair = Pair(Random(seed), is_sure=bool(seed % 2))
    for _ in range(120):
        what = pair.random.randrange(4)
        if what < 2:
            pair.write(pair.here, pair.there)
        elif what == 2:
            pair.write(pair.there, pair.here)
        pair.clock.advance(pair.random.choice([0.0, 0.03, 0.2]))
        if pair.random.random() < 0.7:
            pair.there.advance_to(pair.here.current())
        if pair.is_sure:
            pair.there.advance_to(pair.here.current())
            for _ in range(2):
                pair.clock.advance(0.03)
        upto = pair.there.current()
        if upto < pair.here.current():
            continue
        for position in range(max(0, upto - 60), upto + 1, 7):
            found, true = (
                each.rooms_since(UserID("@x0:example.org"), position)
                for each in (pair.recent, pair.truth)
            )
            assert found == true or (found is None and not pair.is_sure)
            user = UserID(f"@{'x' * 240}1:example.org")
            if not pair.recent.concerns_user(user, Topic.ACCOUNT_DATA, position):
                assert not pair.truth.concerns_user(user, Topic.ACCOUNT_DATA, position)
    assert pair.longest < 7_900
    pair.there.advance_to(pair.here.current())
    pair.clock.advance(0.1)
    pair.clock.advance(1.0)
    assert (
        pair.recent.rooms_since(UserID("@x0:example.org"), pair.there.current()) is not None
    )  # missing notes time out


def test_a_note_about_missing_positions_does_not_describe_later_changes() -> None:
    """This happens if the database lost its latest commits and reuses their positions, or if the
    note was forged."""
    clock, streams = Clock(), Streams(10)
    notes = NodeMessages(clock)
    others = IncomingChanges(streams=streams, clock=clock, messages=notes)
    recent = RecentChanges(streams=streams, incoming_changes=others)
    notes.receive(2, '[["written",[[[10,1000]],[]]]]')
    assert streams.get_remote_changes(10, 11) == []
    clock.advance(31.0)
    assert streams.get_remote_changes(10, 12) is None
    streams.advance_to(12)
    clock.advance(1.0)
    assert recent.rooms_since(UserID("@alice:example.org"), 11) is None
