"""Which events are known to have no children: never one that has any."""

from federation.protocol.ids import EventID
from homeserver.services.childless import ChildlessEvents
from storage.streams import Change, Streams, Topic

ONE, OTHER = EventID("$one"), EventID("$other")


def test_a_child_makes_its_parent_unknown() -> None:
    streams = Streams()
    childless = ChildlessEvents(streams, capacity=10)
    childless.note([ONE, OTHER], childless.heard)
    streams.publish([Change(1, Topic.RELATED, detail=ONE)], 1)
    assert childless.known == {OTHER}


def test_a_child_that_came_during_the_read_makes_nothing_known() -> None:
    streams = Streams()
    childless = ChildlessEvents(streams, capacity=10)
    heard = childless.heard
    streams.publish([Change(1, Topic.RELATED, detail=ONE)], 1)
    childless.note([ONE, OTHER], heard)
    assert not childless.known


def test_another_node_may_have_written_children() -> None:
    streams = Streams()
    childless = ChildlessEvents(streams, capacity=10)
    heard = childless.heard
    childless.note([ONE], heard)
    streams.advance_to(5)
    childless.note([OTHER], heard)
    assert not childless.known


def test_it_does_not_grow_beyond_its_capacity() -> None:
    childless = ChildlessEvents(Streams(), capacity=10)
    for number in range(100):
        childless.note([EventID(f"${number}")], childless.heard)
        assert len(childless.known) <= 10
