"""Counts and lists of push actions, on both databases, compared with a plain computation."""

from dataclasses import dataclass
from random import Random

import pytest

from storage.account_data.account_data import AccountDataStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.events.events import EventFlag
from storage.push import event_push_actions
from storage.push.event_push_actions import (
    MAIN,
    EventPushActionStore,
    ReadPositions,
    add_outcomes,
    get_default_outcome,
)
from storage.push.push_rule_history import MAX_ENDED_ROOMS, PushRuleHistory, PushRuleHistoryStore

ALICE, BOB, CAROL = "@alice:a.test", "@bob:a.test", "@carol:a.test"
NEWS = EventFlag.NOTIFIES
CALL = EventFlag.NOTIFIES | EventFlag.HIGHLIGHTS


@dataclass(frozen=True)
class Stored:
    room_nid: int
    position: int
    sender: str
    flags: int
    thread: str | None
    redacted: bool
    outcome: int | None
    """Alice's own row."""


def some_events(random: Random, number: int) -> list[Stored]:
    events = []
    for position in range(1, number + 1):
        outcome = random.choice([None, None, None, 0, 1, 3])
        flags = random.choice([0, NEWS, NEWS, CALL]) | (
            0 if outcome is None else EventFlag.HAS_PUSH_ACTIONS
        )
        thread = random.choice([None, None, "$one", "$two"])
        sender = random.choice([ALICE, BOB, BOB, CAROL])
        own = None if sender == ALICE else outcome
        events.append(
            Stored(
                random.choice([1, 2]), position, sender, flags, thread, random.random() < 0.1, own
            )
        )
    return events


def write_events(txn: WriteTransaction, events: list[Stored]) -> None:
    txn.execute_many(
        "INSERT INTO events (event_nid, event_id, room_nid, position, depth, type, sender,"
        " origin_server_ts, flags,"
        " redacted_by, pdu, thread_root) VALUES (?, ?, ?, ?, ?, 'm', ?, 0, ?, ?, ?, ?)",
        [
            (
                each.position,
                f"${each.position}",
                each.room_nid,
                each.position,
                each.position,
                each.sender,
                each.flags | EventFlag.TIMELINE,
                1 if each.redacted else None,
                b"{}",
                each.thread,
            )
            for each in events
        ],
    )
    rows = [(ALICE, each.room_nid, each.position, each.position, each.outcome) for each in events]
    add_outcomes(txn, [(*row[:4], row[4]) for row in rows if row[4] is not None])


def outcome_of(each: Stored, attention: PushRuleHistory) -> int:
    if each.outcome is not None:
        return each.outcome
    return get_default_outcome(
        each.flags, attention.get_level_at(f"!{each.room_nid}", each.position)
    )


async def test_counts_and_lists_match_a_plain_computation(database: Database) -> None:
    random = Random(7)
    store = EventPushActionStore(database)
    events = some_events(random, 120)
    await database.write("t", write_events, events)
    for _ in range(60):
        attention = PushRuleHistory(
            {
                room: tuple(
                    (at, random.choice([0, 1, 2]))
                    for at in sorted(random.sample(range(1, 120), random.randint(0, 2)))
                )
                for room in ("!1", "!2", "")
            }
        )
        attention = PushRuleHistory(
            {room: changes for room, changes in attention.changes.items() if changes}
        )
        ignored = random.choice([[], [CAROL]])
        marks = {
            nid: ReadPositions(
                random.randint(0, 100),
                {
                    thread: random.randint(0, 120)
                    for thread in random.sample([MAIN, "$one", "$two", "$x"], 2)
                },
                random.choice([0, random.randint(0, 110)]),
            )
            for nid in (1, 2)
        }
        spans = {
            nid: attention.spans(f"!{nid}", mark.everything, 110) for nid, mark in marks.items()
        }
        counts = await store.get_counts(
            ALICE, {nid: (marks[nid], spans[nid]) for nid in marks}, ignored
        )
        for nid, mark in marks.items():
            mine: dict[str, int] = {}
            for each in events:
                if (
                    each.room_nid == nid
                    and mark.everything < each.position <= 110
                    and each.sender == ALICE
                    and each.flags & NEWS
                ):
                    mine[each.thread or MAIN] = each.position
            expected: dict[str, tuple[int, int]] = {}
            for each in events:
                thread = each.thread or MAIN
                further = 0 if thread == MAIN else mark.all_threads
                read = max(
                    mark.everything, further, mark.threads.get(thread, 0), mine.get(thread, 0)
                )
                counted = each.room_nid == nid and read < each.position <= 110 and not each.redacted
                outcome = outcome_of(each, attention)
                if counted and each.sender not in {ALICE, *ignored} and outcome:
                    before = expected.get(thread, (0, 0))
                    expected[thread] = (before[0] + 1, before[1] + (outcome == 3))
            assert {
                each.thread: (each.notifications, each.highlights) for each in counts[nid]
            } == expected

        for only in (False, True):
            limit = random.choice([3, 200])
            listed = await store.get_notified(
                ALICE, list(spans.items()), ignored, highlights_only=only, limit=limit
            )
            expected_list = [
                each.position
                for each in reversed(events)
                if marks[each.room_nid].everything < each.position <= 110
                and not each.redacted
                and each.sender not in {ALICE, *ignored}
                and outcome_of(each, attention) >= (3 if only else 1)
            ]
            assert [each.position for each in listed] == expected_list[:limit]


async def test_any_number_of_threads_can_be_read_further_than_the_room(database: Database) -> None:
    events = [
        Stored(1, position, BOB, NEWS, f"${position % 3000}", False, None)
        for position in range(1, 6001)
    ]
    await database.write("t", write_events, events)
    read = ReadPositions(0, {f"${number}": 3000 for number in range(2999)})
    spans = PushRuleHistory().spans("!1", 0, 6000)
    counts = await EventPushActionStore(database).get_counts(ALICE, {1: (read, spans)}, [])
    assert sum(each.notifications for each in counts[1]) == 2999 + 2


async def test_the_oldest_of_too_many_threads_count_as_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the threads read further than the room; the main timeline is not one of them."""
    monkeypatch.setattr(event_push_actions, "_MAX_THREADS", 3)
    events = [
        Stored(1, position, BOB, NEWS, f"${position}", False, None) for position in range(2, 9)
    ]
    events += [Stored(1, position, BOB, NEWS, None, False, None) for position in (1, 9)]
    await database.write("t", write_events, events)
    read = ReadPositions(0, {MAIN: 1, **{f"${number}": number for number in (2, 3, 4, 6, 7)}})
    counts = await EventPushActionStore(database).get_counts(
        ALICE, {1: (read, PushRuleHistory().spans("!1", 0, 9))}, []
    )
    assert {each.thread: each.notifications for each in counts[1]} == {"$5": 1, "$8": 1, MAIN: 1}


async def test_the_level_at_a_position_is_the_one_set_before(database: Database) -> None:
    store = PushRuleHistoryStore(database)

    async def set_levels(position: int, **wanted: int) -> PushRuleHistory:
        named = {
            "" if room == "elsewhere" else room: attention for room, attention in wanted.items()
        }
        await database.write("t", store.set_levels, ALICE, position, named)
        return (await store.get_rules([ALICE])).get(ALICE, (None, PushRuleHistory()))[1]

    assert not (await set_levels(5, elsewhere=0)).changes, "it is the default"
    assert (await set_levels(10, elsewhere=0, muted=2)).changes == {"muted": ((10, 2),)}
    await set_levels(20, elsewhere=1, muted=2)
    history = await set_levels(30, elsewhere=1)
    assert [history.get_level_at("muted", position) for position in (10, 11, 30, 31)] == [
        0,
        2,
        2,
        1,
    ]
    assert [history.get_level_at("other", position) for position in (20, 21)] == [0, 1]
    assert (history.get_current_level("muted"), history.get_current_level("other")) == (1, 1)
    assert [(span.after, span.upto, span.level) for span in history.spans("muted", 0, 40)] == [
        (0, 10, 0),
        (10, 30, 2),
        (30, 40, 1),
    ]
    assert [span.level for span in history.spans("muted", 12, 15)] == [2]
    await database.write("t", EventPushActionStore(database).remove_user, ALICE)
    assert await store.get_rules([ALICE]) == {}


async def test_rules_come_with_their_history(database: Database) -> None:
    store, account_data = PushRuleHistoryStore(database), AccountDataStore(database)
    for user_id, type_ in ((ALICE, "m.push_rules"), (ALICE, "m.direct"), (BOB, "m.push_rules")):
        await database.write(
            "t", account_data.set_entry, user_id, None, type_, b'{"of":"%b"}' % user_id.encode()
        )
    await database.write("t", account_data.set_entry, ALICE, "!r:a.test", "m.push_rules", b"{}")
    for user_id in (ALICE, CAROL):
        await database.write("t", store.set_levels, user_id, 10, {"!muted": 2})
    rules = await store.get_rules([ALICE, BOB, CAROL, "@nobody:a.test"])
    assert {
        user_id: (content, history.get_current_level("!muted"))
        for user_id, (content, history) in rules.items()
    } == {
        ALICE: (b'{"of":"%b"}' % ALICE.encode(), 2),
        BOB: (b'{"of":"%b"}' % BOB.encode(), 0),
        CAROL: (None, 2),
    }
    assert await store.get_rules([BOB]) == {BOB: rules[BOB]}


async def test_the_history_of_rooms_that_are_no_longer_muted_is_bounded(
    database: Database,
) -> None:
    store = PushRuleHistoryStore(database)
    position, number = 0, MAX_ENDED_ROOMS + 50
    for start in range(0, number, 50):
        rooms = {f"!{room}:a.test": 2 for room in range(start, start + 50)}
        for wanted in (rooms, {}):
            position += 1
            await database.write(
                "t", store.set_levels, ALICE, position, {**wanted, "!kept:a.test": 2}
            )
    await database.write("t", store.set_levels, ALICE, position + 1, {"!kept:a.test": 2})
    _, history = (await store.get_rules([ALICE]))[ALICE]
    assert len(history.changes) == MAX_ENDED_ROOMS + 1
    assert history.get_current_level("!kept:a.test") == 2
    assert history.get_level_at(f"!{number - 1}:a.test", position) == 2
    assert history.get_level_at("!0:a.test", 2) == 0
