"""The cache of the retention of rooms, with concurrent reads."""

from twisted.internet.defer import Deferred

from federation.protocol.retention import RetentionRules
from federation.rooms.history.retention import RoomRetentionCache
from storage.engine.streams import Change, Streams, Topic
from storage.retention.room_retention import RoomRetention, RoomRetentionStore
from tests.helpers.deferreds import result_of

Rows = tuple[list[RoomRetention], int]


class SlowLifetimes(RoomRetentionStore):
    """Answers when the test calls `answer`."""

    def __init__(self) -> None:
        self.asked: list[Deferred[Rows]] = []

    async def get_since(self, position: int) -> Rows:
        deferred: Deferred[Rows] = Deferred()
        self.asked.append(deferred)
        return await deferred


def make() -> tuple[Streams, SlowLifetimes, RoomRetentionCache]:
    """The server has heard of what was set up to 10: in room 1 messages are kept for 5
    milliseconds."""
    streams, store = Streams(10), SlowLifetimes()
    lifetimes = RoomRetentionCache(
        store=store, streams=streams, rules=RetentionRules(), now_ms=lambda: 1000
    )
    loaded = Deferred.fromCoroutine(lifetimes.get([1]))
    store.asked.pop().callback(([RoomRetention(1, 5, 10)], 10))
    assert loaded.called
    return streams, store, lifetimes


def test_a_read_that_another_node_overtakes_is_repeated() -> None:
    streams, store, lifetimes = make()
    streams.advance_to(11)
    reading = Deferred.fromCoroutine(lifetimes.get([1, 2]))
    streams.advance_to(12)
    store.asked.pop().callback(([RoomRetention(1, 7, 11), RoomRetention(2, 7, 11)], 11))
    assert not reading.called
    store.asked.pop().callback(([RoomRetention(2, 7, 11), RoomRetention(1, None, 12)], 12))
    assert result_of(reading)[2] == 7
    assert result_of(Deferred.fromCoroutine(lifetimes.get_oldest_shown(1))) < 0, (
        "the room has no policy any more"
    )
    assert store.asked == []


def test_a_read_that_a_change_of_this_node_overtakes_is_repeated() -> None:
    streams, store, lifetimes = make()
    streams.advance_to(11)
    reading = Deferred.fromCoroutine(lifetimes.get_oldest_shown(1))
    streams.publish([Change(12, Topic.RETENTION, detail=RoomRetention(1, 9, 12))], 12)
    store.asked.pop().callback(([RoomRetention(1, 7, 11)], 11))
    assert not reading.called
    store.asked.pop().callback(([RoomRetention(1, 9, 12)], 12))
    assert result_of(reading) == 991


def test_a_change_of_this_node_needs_no_read() -> None:
    streams, store, lifetimes = make()
    streams.publish([Change(11, Topic.RETENTION, detail=RoomRetention(1, 9, 11))], 11)
    assert result_of(Deferred.fromCoroutine(lifetimes.get_oldest_shown(1))) == 991
    streams.publish([Change(12, Topic.RETENTION, detail=RoomRetention(1, None, 12))], 12)
    assert result_of(Deferred.fromCoroutine(lifetimes.get_oldest_shown(1))) < 0
    assert store.asked == []
