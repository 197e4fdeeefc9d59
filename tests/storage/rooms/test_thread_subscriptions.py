"""Subscriptions to threads by position, and conflicts between automatic subscriptions and a user's
choice."""

from storage.engine.database import Database
from storage.engine.streams import Change, Stage, Topic
from storage.rooms.thread_subscriptions import ThreadSubscriptionRow, ThreadSubscriptionStore

ALICE = "@alice:example.org"
ROOM = "!room:example.org"


async def test_each_thread_is_listed_once_with_its_latest_change(database: Database) -> None:
    store = ThreadSubscriptionStore(database)
    received: list[Change] = []
    database.streams.subscribe(received.extend, stage=Stage.NOTIFY)
    start = database.streams.current()
    await store.subscribe(ALICE, ROOM, "$a")
    await store.subscribe(ALICE, ROOM, "$a")
    await store.subscribe(ALICE, ROOM, "$b")
    await store.subscribe("@bob:example.org", ROOM, "$a")
    await store.unsubscribe(ALICE, ROOM, "$a")
    await store.unsubscribe(ALICE, ROOM, "$a")
    await store.unsubscribe(ALICE, ROOM, "$never")
    assert [(change.topic, change.user_id) for change in received] == [
        (Topic.THREAD_SUBSCRIPTION, ALICE),
        (Topic.THREAD_SUBSCRIPTION, ALICE),
        (Topic.THREAD_SUBSCRIPTION, "@bob:example.org"),
        (Topic.THREAD_SUBSCRIPTION, ALICE),
    ]
    head = database.streams.current()
    rows = await store.get_changes(ALICE, start, head, 10)
    assert rows == [
        ThreadSubscriptionRow(ROOM, "$a", False, False, received[3].position),
        ThreadSubscriptionRow(ROOM, "$b", True, False, received[1].position),
    ]
    assert await store.get_changes(ALICE, start, head, 1) == rows[:1]
    assert await store.get_changes(ALICE, start, received[1].position, 10) == rows[1:]
    assert await store.get_changes(ALICE, received[1].position, head, 10) == rows[:1]
    await database.write("t", store.remove_user, ALICE)
    assert await store.get_changes(ALICE, 0, head, 10) == []
    assert await store.get_subscription("@bob:example.org", ROOM, "$a") is not None


async def test_an_automatic_subscription_does_not_undo_a_later_unsubscribe(
    database: Database,
) -> None:
    store = ThreadSubscriptionStore(database)

    async def now() -> tuple[bool, bool]:
        row = await store.get_subscription(ALICE, ROOM, "$a")
        assert row is not None
        return row.subscribed, row.automatic

    assert await store.subscribe_automatically(ALICE, ROOM, "$a", None)
    assert await now() == (True, True)
    await store.subscribe(ALICE, ROOM, "$a")
    assert await store.subscribe_automatically(ALICE, ROOM, "$a", 10**9)
    assert await now() == (True, False)
    await store.unsubscribe(ALICE, ROOM, "$a")
    ended = database.streams.current()
    assert not await store.subscribe_automatically(ALICE, ROOM, "$a", ended)
    assert not await store.subscribe_automatically(ALICE, ROOM, "$a", None)
    assert await now() == (False, False)
    assert await store.subscribe_automatically(ALICE, ROOM, "$a", ended + 1)
    assert await now() == (True, True)
