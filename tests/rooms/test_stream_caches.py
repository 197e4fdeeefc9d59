"""Caches that the stream keeps current: changes during a load, and writes of other nodes."""

from collections.abc import Iterable, Mapping, Sequence

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.protocol.ids import UserID
from federation.rooms.current_states import CurrentStates
from federation.rooms.erased_senders import ErasedSenders
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.memberships import Memberships
from federation.rooms.room_servers import RoomServers
from federation.rooms.timelines import TAIL_LENGTH, Timelines
from homeserver.services.push.rule_sets import RuleCompiler
from homeserver.services.push.unread_counts import Unread, UnreadCounts
from homeserver.services.push.user_rules import UserRuleCache
from homeserver.services.sliding_sync.filter_data import RoomTraitCache
from homeserver.services.streams.recent_changes import RecentChanges
from storage.accounts.erasures import ErasureStore, add_erasure
from storage.engine.database import Database
from storage.engine.streams import Change, Streams, Topic
from storage.engine.transaction import WriteTransaction
from storage.events.events import EventFlag, EventRow
from storage.events.timelines import Arrival, TimelineStore
from storage.push.event_push_actions import EventPushActionStore, ThreadCount
from storage.push.push_rule_history import PushRuleHistoryStore
from storage.rooms.memberships import MembershipRow, MembershipStore, put_memberships
from storage.rooms.partial_rooms import PartialRoom, add_partial_join
from storage.rooms.receipts import ReceiptRow, ReceiptStore
from storage.rooms.room_servers import RoomServer, RoomServerStore, count_servers
from storage.rooms.rooms import add_room
from storage.rooms.summaries import RoomSummaryStore, set_summary_fields
from tests.helpers.deferreds import result_of
from tests.helpers.rooms import RoomParts

ALICE = UserID("@alice:a.test")


def publish_changes(
    streams: Streams, changes: Sequence[Change], upto: int, *, is_elsewhere: bool
) -> None:
    """Tell of what was written, here or by another node that says what it was."""
    if is_elsewhere:
        streams.set_remote_change_source(lambda _after, _upto: changes)
        streams.advance_to(upto)
    else:
        streams.publish(changes, upto)


class SlowMemberships(MembershipStore):
    """Answers when the test calls `answer`."""

    def __init__(self) -> None:
        self.asked: list[Deferred[dict[int, MembershipRow]]] = []

    async def get_memberships_of_user(self, user_id: str) -> dict[int, MembershipRow]:
        deferred: Deferred[dict[int, MembershipRow]] = Deferred()
        self.asked.append(deferred)
        return await deferred


class SlowTimelines(TimelineStore):
    """Answers when the test calls `answer`."""

    def __init__(self) -> None:
        self.asked: list[Deferred[dict[int, list[Arrival]]]] = []

    async def get_latest(self, ranges: object, limit: int) -> dict[int, list[Arrival]]:
        deferred: Deferred[dict[int, list[Arrival]]] = Deferred()
        self.asked.append(deferred)
        return await deferred


class SlowCounts(EventPushActionStore):
    """Counts when the test calls `answer`; has no receipts."""

    def __init__(self) -> None:
        self.asked: list[Deferred[dict[int, list[ThreadCount]]]] = []

    async def get_counts(
        self, user_id: str, rooms: object, ignored: object
    ) -> dict[int, list[ThreadCount]]:
        deferred: Deferred[dict[int, list[ThreadCount]]] = Deferred()
        self.asked.append(deferred)
        return await deferred


class NoReceipts(ReceiptStore):
    """Nobody has read anything."""

    def __init__(self) -> None:
        pass

    async def get_receipts_of_user(
        self, user_id: str, room_nids: object
    ) -> dict[int, list[ReceiptRow]]:
        return {}


def membership(position: int, value: str = "join") -> MembershipRow:
    return MembershipRow(1, ALICE, value, position, ALICE, position, True, None, None, False)


def event(position: int) -> Change:
    flags = int(EventFlag.TIMELINE)
    row = EventRow(
        position,
        f"${position}",
        1,
        position,
        1,
        "a.b",
        None,
        ALICE,
        0,
        flags,
        None,
        None,
        None,
        b"{}",
        None,
    )
    return Change(position, Topic.EVENT, "!r:a.test", ALICE, row)


def test_a_membership_that_changes_while_it_is_read_is_read_again() -> None:
    streams, store = Streams(10), SlowMemberships()
    memberships = Memberships(store=store, streams=streams, capacity=10)
    found = Deferred.fromCoroutine(memberships.of_user(ALICE))
    streams.publish([Change(11, Topic.MEMBERSHIP, user_id=ALICE, detail=membership(11))], 11)
    store.asked[0].callback({})
    assert not found.called, "what was read is older than what was heard"
    store.asked[1].callback({1: membership(11)})
    assert result_of(found) == {1: membership(11)}


def test_a_write_of_another_node_invalidates_memberships() -> None:
    streams, store = Streams(10), SlowMemberships()
    memberships = Memberships(store=store, streams=streams, capacity=10)

    def read() -> None:
        asked = len(store.asked)
        deferred = Deferred.fromCoroutine(memberships.of_user(ALICE))
        assert len(store.asked) == asked + 1
        store.asked[-1].callback({})
        assert deferred.called

    read()
    streams.advance_to(11)
    read()
    streams.publish([Change(12, Topic.MEMBERSHIP, user_id=ALICE)], 12)
    read()


def test_a_timeline_that_an_event_overtakes_is_not_cached_as_complete() -> None:
    streams, store = Streams(10), SlowTimelines()
    timelines = Timelines(store=store, streams=streams, capacity=10)
    first = Deferred.fromCoroutine(timelines.get_latest({1: (0, 10)}, 5))
    streams.publish([event(11)], 11)
    store.asked[0].callback({1: [Arrival(9, 9), Arrival(8, 8)]})
    assert [arrival.position for arrival in result_of(first)[1].arrivals] == [8, 9]
    second = Deferred.fromCoroutine(timelines.get_latest({1: (0, 11)}, 5))
    store.asked[1].callback({1: [Arrival(11, 11), Arrival(9, 9), Arrival(8, 8)]})
    assert [arrival.position for arrival in result_of(second)[1].arrivals] == [8, 9, 11]
    third = Deferred.fromCoroutine(timelines.get_latest({1: (8, 11)}, 5))
    assert [arrival.position for arrival in result_of(third)[1].arrivals] == [9, 11], (
        "now it is known"
    )


def test_a_cached_timeline_is_bounded_and_knows_its_start() -> None:
    streams, store = Streams(0), SlowTimelines()
    timelines = Timelines(store=store, streams=streams, capacity=10)
    last = TAIL_LENGTH + 10
    streams.publish([event(position) for position in range(1, last + 1)], last)
    newest = Deferred.fromCoroutine(timelines.get_latest({1: (last - 3, last)}, 5))
    stretch = result_of(newest)[1]
    assert len(stretch.arrivals) == 3
    assert not stretch.limited
    limited = Deferred.fromCoroutine(timelines.get_latest({1: (0, last)}, 5))
    assert result_of(limited)[1].limited
    Deferred.fromCoroutine(timelines.get_latest({1: (5, last)}, TAIL_LENGTH + 5))
    assert len(store.asked) == 1, "so far back the database has to be asked"
    streams.advance_to(last + 5)
    Deferred.fromCoroutine(timelines.get_latest({1: (last, last + 5)}, 5))
    assert len(store.asked) == 2, "another node may have written to the room"


def test_recent_changes_before_the_start_are_unknown() -> None:
    streams = Streams(10)
    recent = RecentChanges(streams=streams)
    assert recent.rooms_since(ALICE, 9) is None
    streams.publish([event(11)], 11)
    changed = recent.rooms_since(ALICE, 10)
    assert changed is not None
    assert changed.events == {1}
    streams.advance_to(13)
    assert recent.rooms_since(ALICE, 12) is None
    changed = recent.rooms_since(ALICE, 13)
    assert changed is not None
    assert changed.events == set()


def test_recent_changes_are_bounded_by_the_number_of_users() -> None:
    streams = Streams()
    recent = RecentChanges(streams=streams)
    for position in range(1, 10):
        people = tuple(f"@{position}-{number}:here" for number in range(10_000))
        streams.publish([Change(position, Topic.TO_DEVICE, user_ids=people)], position)
    assert recent.users_since(Topic.TO_DEVICE, 0) is None, "of ninety thousand some are forgotten"
    assert recent.concerns_user(UserID("@9-0:here"), Topic.TO_DEVICE, 8)
    assert not recent.concerns_user(ALICE, Topic.TO_DEVICE, 8)
    assert recent.concerns_user(ALICE, Topic.TO_DEVICE, 0), "it may"


def test_a_count_that_a_receipt_overtakes_is_not_cached(sqlite_database: Database) -> None:
    streams, store = Streams(10), SlowCounts()
    parts = RoomParts(sqlite_database)
    past = PastMemberships(parts.events)
    history = PushRuleHistoryStore(sqlite_database)
    rules = UserRuleCache(
        clock=Clock(), history=history, compiler=RuleCompiler(), streams=streams, capacity=10
    )
    counts = UnreadCounts(
        outcomes=store,
        receipts=NoReceipts(),
        rooms=parts.rooms,
        past_memberships=past,
        rules=rules,
        streams=streams,
        capacity=10,
    )

    def count() -> "Deferred[Unread]":
        deferred = Deferred.fromCoroutine(counts.get_counts(ALICE, [membership(5)]))
        return deferred.addCallback(lambda found: found[1].total)

    first = count()
    receipt = ReceiptRow(1, ALICE, "m.read", "", "$10", 10, 0, 11)
    streams.publish([Change(11, Topic.RECEIPT, "!r:a.test", ALICE, receipt)], 11)
    store.asked[0].callback({1: [ThreadCount("main", 3, 0)]})
    assert result_of(first) == Unread(3, 0)
    second = count()
    store.asked[1].callback({1: []})
    assert result_of(second) == Unread(0, 0)
    assert result_of(count()) == Unread(0, 0)
    assert len(store.asked) == 2, "this one was kept"
    streams.advance_to(20)
    count()
    assert len(store.asked) == 3, "another node may have written"


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_completing_partial_state_invalidates_counts(
    sqlite_database: Database, *, is_elsewhere: bool
) -> None:
    """Messages that a part of it let pass are taken back, without a word of each; it may be another
    node that found out."""
    streams, store = Streams(10), SlowCounts()
    parts = RoomParts(sqlite_database)
    past = PastMemberships(parts.events)
    history = PushRuleHistoryStore(sqlite_database)
    rules = UserRuleCache(
        clock=Clock(), history=history, compiler=RuleCompiler(), streams=streams, capacity=10
    )
    counts = UnreadCounts(
        outcomes=store,
        receipts=NoReceipts(),
        rooms=parts.rooms,
        past_memberships=past,
        rules=rules,
        streams=streams,
        capacity=10,
    )
    first = Deferred.fromCoroutine(counts.get_counts(ALICE, [membership(5)]))
    store.asked[0].callback({1: [ThreadCount("main", 3, 0)]})
    assert result_of(first)[1].total == Unread(3, 0)
    whole = [Change(11, Topic.PARTIAL_STATE, detail=PartialRoom(1, 1, 5, "b.test", 11))]
    publish_changes(streams, whole, 11, is_elsewhere=is_elsewhere)
    second = Deferred.fromCoroutine(counts.get_counts(ALICE, [membership(5)]))
    store.asked[1].callback({1: [ThreadCount("main", 1, 0)]})
    assert result_of(second)[1].total == Unread(1, 0)


@pytest.mark.parametrize("is_elsewhere", [False, True])
async def test_completing_partial_state_invalidates_room_properties(
    database: Database, *, is_elsewhere: bool
) -> None:
    room, _ = await database.write("t", add_room, "!r:a.test", "11", 1)
    streams = Streams(10)
    traits = RoomTraitCache(store=RoomSummaryStore(database), streams=streams, capacity=10)
    assert (await traits.of_rooms([room.room_nid]))[room.room_nid].name is None
    await database.write(
        "t",
        set_summary_fields,
        room.room_nid,
        {"name": "Yozgi", "encryption": "m.megolm.v1.aes-sha2"},
    )
    whole = [Change(11, Topic.PARTIAL_STATE, detail=PartialRoom(room.room_nid, 1, 5, "b.test", 11))]
    publish_changes(streams, whole, 11, is_elsewhere=is_elsewhere)
    found = (await traits.of_rooms([room.room_nid]))[room.room_nid]
    assert (found.name, found.encryption) == ("Yozgi", "m.megolm.v1.aes-sha2")


async def test_erasures_by_another_node_are_noticed(database: Database) -> None:
    parts = RoomParts(database)
    streams = Streams(0)
    states = CurrentStates(timelines=parts.timelines, events=parts.events, trees=parts.trees)
    erased = ErasedSenders(
        store=ErasureStore(database), streams=streams, states=states, events=parts.events
    )
    assert await erased.get() == {}
    await database.write("t", add_erasure, ALICE)
    position = database.streams.current()
    streams.advance_to(position)
    assert await erased.get() == {ALICE: position}
    await database.write("t", add_erasure, ALICE)
    streams.advance_to(database.streams.current())
    assert await erased.get() == {ALICE: position}, "the first time counts"


class CountedServers(RoomServerStore):
    """Counts what it is asked."""

    asked = 0

    async def get_servers(self, room_nids: Iterable[int]) -> Mapping[int, list[RoomServer]]:
        self.asked += 1
        return await super().get_servers(room_nids)

    async def has_any(self) -> bool:
        self.asked += 1
        return await super().has_any()


@pytest.mark.parametrize("how", ["heard", "elsewhere", "partly"])
async def test_without_remote_servers_no_room_is_queried(database: Database, how: str) -> None:
    streams, store = Streams(10), CountedServers(database)
    servers = RoomServers(
        store=store,
        memberships=Memberships(store=MembershipStore(database), streams=streams, capacity=10),
        streams=streams,
        capacity=10,
    )
    for room_nid in (1, 2, 3):
        assert await servers.in_room(room_nid) == {}
    assert await servers.of_user(ALICE) == set()
    assert (servers.peek(4), store.asked) == ({}, 1)

    streams.publish([Change(11, Topic.MEMBERSHIP, user_id=ALICE, detail=membership(11))], 11)
    assert (servers.peek(4), store.asked) == ({}, 1), "one of ours is no other server"

    def come(txn: WriteTransaction) -> None:
        if how == "partly":
            add_partial_join(txn, 1, 5, 12, "b.test", ["b.test"])
        else:
            count_servers(txn, 1, {"b.test": 1}, {"b.test": 12})
        put_memberships(txn, [replace(membership(11), user_id=ALICE)])

    await database.write("come", come)
    joined = replace(membership(12), user_id="@bob:b.test", is_local=False)
    if how == "heard":
        streams.publish([Change(12, Topic.MEMBERSHIP, user_id=joined.user_id, detail=joined)], 12)
    elif how == "elsewhere":
        streams.advance_to(12)
    else:
        streams.publish([Change(12, Topic.PARTIAL_STATE, "!r:a.test")], 12)
    assert servers.peek(1) is None
    assert await servers.in_room(1) == {"b.test": 12}
    assert await servers.of_user(ALICE) == {"b.test"}
    assert not await servers.is_alone()
