"""The cache of events without relations never contains an event that has some."""

from types import SimpleNamespace
from typing import cast

from federation.protocol.ids import EventID
from federation.rooms.events import NO_TRANSACTION, StoredEvent
from homeserver.services.rooms.no_relations_cache import NoRelationsCache
from storage.engine.streams import Change, Streams, Topic

ONE, OTHER = EventID("$one"), EventID("$other")


def test_a_new_relation_removes_its_parent() -> None:
    streams = Streams()
    childless = NoRelationsCache(streams=streams, capacity=10)
    childless.add([ONE, OTHER], childless.version)
    streams.publish([Change(1, Topic.RELATION, detail=ONE)], 1)
    assert childless.event_ids == {OTHER}


def test_a_relation_during_the_read_prevents_caching() -> None:
    streams = Streams()
    childless = NoRelationsCache(streams=streams, capacity=10)
    version_before = childless.version
    streams.publish([Change(1, Topic.RELATION, detail=ONE)], 1)
    childless.add([ONE, OTHER], version_before)
    assert not childless.event_ids


def test_a_write_of_another_node_clears_the_cache() -> None:
    streams = Streams()
    childless = NoRelationsCache(streams=streams, capacity=10)
    version_before = childless.version
    childless.add([ONE], version_before)
    streams.advance_to(5)
    childless.add([OTHER], version_before)
    assert not childless.event_ids


def test_the_cache_does_not_exceed_its_capacity() -> None:
    childless = NoRelationsCache(streams=Streams(), capacity=10)
    for number in range(100):
        childless.add([EventID(f"${number}")], childless.version)
        assert len(childless.event_ids) <= 10


def stored(event_id: str, position: int, sent: tuple[str, str] | None) -> StoredEvent:
    """An event, as far as it matters here."""
    return cast(
        StoredEvent,
        SimpleNamespace(event=SimpleNamespace(event_id=event_id), position=position, sent=sent),
    )


def test_new_events_without_announced_relations_have_none() -> None:
    childless = NoRelationsCache(streams=(streams := Streams(4)), capacity=10)
    sent = ("DEVICE", "txn")
    new = [stored(ONE, 5, sent), stored(OTHER, 6, sent)]
    assert all(map(childless.is_new_without_relations, new))
    # from before the start; from another server; of which that is not known
    assert not any(
        map(
            childless.is_new_without_relations,
            [stored(ONE, 4, sent), stored(ONE, 5, NO_TRANSACTION), stored(ONE, 5, None)],
        )
    )
    streams.publish([Change(7, Topic.RELATION, detail=ONE)], 7)
    assert list(map(childless.is_new_without_relations, new)) == [False, True]
    streams.advance_to(9)  # another node wrote
    assert not any(map(childless.is_new_without_relations, new))
    assert childless.is_new_without_relations(stored(OTHER, 10, sent))


def test_announced_parents_above_the_capacity_are_not_taken_for_childless() -> None:
    childless = NoRelationsCache(streams=(streams := Streams()), capacity=10)
    new = [stored(f"${number}", number, ("DEVICE", "txn")) for number in range(1, 30)]
    for number in range(1, 25):
        streams.publish([Change(40 + number, Topic.RELATION, detail=f"${number}")], 40 + number)
        assert not any(map(childless.is_new_without_relations, new[:number]))
