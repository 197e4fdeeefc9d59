"""Waiting events from other servers, on both databases."""

from collections.abc import Sequence

from storage.engine.database import Database
from storage.federation.inbox import InboxFull, InboxLimits, InboxStore, NewInboxRow

PEER, OTHER = "peer.example", "other.example"
JUDGE, SLOW = "judge.example", "slow.example"
ROOM, SECOND, THIRD, FOURTH, FIFTH = 1, 2, 3, 4, 5


def rows(*names: str) -> Sequence[NewInboxRow]:
    return [NewInboxRow(name, b"{}") for name in names]


async def test_events_with_the_fewest_attempts_come_first(database: Database) -> None:
    store = InboxStore(database=database)
    await store.add(ROOM, PEER, rows("$a", "$b"), 10, policy_server=None)
    await store.add(ROOM, OTHER, rows("$b", "$c"), 20, policy_server=JUDGE)  # $b is stored already
    await store.add(SECOND, PEER, rows("$d"), 30, policy_server=None)

    first, third, second = await store.get_of_room(ROOM, 10)
    assert [(row.event_id, row.origin, row.received_ts) for row in (first, third, second)] == [
        ("$a", PEER, 10),
        ("$c", OTHER, 20),
        ("$b", PEER, 10),
    ], "one of each server before a second"
    await store.record_attempt([first.inbox_nid])
    assert [row.event_id for row in await store.get_of_room(ROOM, 2)] == ["$b", "$c"]
    await store.remove([second.inbox_nid, third.inbox_nid])
    assert [(row.event_id, row.attempts) for row in await store.get_of_room(ROOM, 10)] == [
        ("$a", 1)
    ]
    assert await store.get_rooms() == [ROOM, SECOND]
    assert await store.count() == 2


async def test_each_server_has_a_quota_and_a_smaller_one_without_verdicts(
    database: Database,
) -> None:
    store = InboxStore(
        database=database,
        limits=InboxLimits(
            per_server=8,
            awaiting_verdict=5,
            awaiting_one_policy_server=3,
            awaiting_verdict_per_room=2,
        ),
    )

    async def is_full(
        room_nid: int,
        *names: str,
        judge: str | None = None,
        origin: str = PEER,
        is_naming: bool = False,
    ) -> bool:
        new = [NewInboxRow(name, b"{}", is_naming) for name in names]
        try:
            await store.add(room_nid, origin, new, 10, policy_server=judge)
        except InboxFull:
            return True
        return False

    assert not await is_full(ROOM, "$a", judge=JUDGE)
    assert not await is_full(ROOM, "$b")
    assert await is_full(ROOM, "$c"), "it waits for the verdicts that earlier events wait for"
    assert not await is_full(ROOM, "$a", "$b"), "they are stored already"
    assert not await is_full(SECOND, "$d", judge=JUDGE)
    assert await is_full(SECOND, "$e", judge=JUDGE)
    assert not await is_full(THIRD, "$f", "$g", judge=SLOW), "the quota of another policy server"
    assert await is_full(FOURTH, "$h", judge="third.example")
    assert not await is_full(ROOM, "$policy", is_naming=True), "it may end the wait of all others"
    assert not await is_full(FIFTH, "$i", "$j")
    assert await is_full(FIFTH, "$k")
    assert await is_full(FIFTH, "$another", is_naming=True)
    assert not await is_full(FIFTH, "$i", "$j"), "they are stored already"
    assert not await is_full(ROOM, "$l", judge=JUDGE, origin=OTHER)

    await store.remove([row.inbox_nid for row in await store.get_of_room(ROOM, 2)])
    assert not await is_full(ROOM, "$c")


async def test_servers_share_a_total_quota_and_outside_servers_a_small_part(
    database: Database,
) -> None:
    store = InboxStore(
        database=database,
        limits=InboxLimits(
            per_server=6,
            bytes_per_server=60,
            total=9,
            total_bytes=100,
            per_server_when_half_full=2,
            per_outside_server=2,
            outside_total=3,
            outside_total_bytes=25,
        ),
    )

    async def is_full(*names: str, origin: str, is_outside: bool = False, size: int = 1) -> bool:
        new = [NewInboxRow(name, b"x" * size) for name in names]
        try:
            await store.add(ROOM, origin, new, 10, policy_server=None, is_outside=is_outside)
        except InboxFull:
            return True
        return False

    assert await is_full("$o1", "$o2", "$o3", origin="a.outside", is_outside=True)
    assert await is_full("$o1", origin="a.outside", is_outside=True, size=26)
    assert not await is_full("$o1", "$o2", origin="a.outside", is_outside=True)
    assert await is_full("$o3", "$o4", origin="b.outside", is_outside=True), (
        "together they have three"
    )
    assert not await is_full("$o3", origin="b.outside", is_outside=True)

    assert await is_full("$big", origin=OTHER, size=61)
    assert not await is_full("$a", "$b", "$c", "$d", origin=PEER)
    assert await is_full("$e", "$f", origin=PEER), "more than half is used, so each server gets two"
    assert not await is_full("$e", "$f", origin=OTHER)
    assert not await is_full("$g", "$h", origin="third.example")
    assert not await is_full("$i", origin="fourth.example")
    assert await is_full("$j", origin="fifth.example")
    assert await store.count() == 12

    names = [(row.event_id, row.is_outside) for row in await store.get_of_room(ROOM, 2)]
    assert names == [("$a", False), ("$e", False), ("$o1", True), ("$o3", True)]


async def test_a_copy_from_a_server_in_the_room_replaces_one_from_outside(
    database: Database,
) -> None:
    store = InboxStore(database=database)
    await store.add(
        ROOM, OTHER, [NewInboxRow("$a", b"forged")], 10, policy_server=None, is_outside=True
    )
    await store.add(ROOM, PEER, [NewInboxRow("$a", b"true")], 10, policy_server=None)
    await store.add(
        ROOM, OTHER, [NewInboxRow("$a", b"forged")], 10, policy_server=None, is_outside=True
    )

    assert [(row.origin, row.pdu) for row in await store.get_of_room(ROOM, 10)] == [(PEER, b"true")]


async def test_servers_of_one_domain_share_a_quota(database: Database) -> None:
    store = InboxStore(
        database=database,
        limits=InboxLimits(
            per_domain=3, per_outside_domain=2, total=8, per_domain_when_half_full=1
        ),
    )

    async def is_full(origin: str, name: str, is_outside: bool = False) -> bool:
        domain = ".".join(origin.split(".")[-2:])
        try:
            await store.add(
                ROOM,
                origin,
                rows(name),
                10,
                policy_server=None,
                is_outside=is_outside,
                domain=domain,
            )
        except InboxFull:
            return True
        return False

    for outside, most in ((True, 2), (False, 3)):
        found = [
            await is_full(f"h{at}.evil.example", f"${outside}{at}", outside)
            for at in range(most + 1)
        ]
        assert found == [False] * most + [True]
    assert not await is_full(OTHER, "$other")
    assert not await is_full("a.third.example", "$third"), "the first beyond half of the total"
    assert await is_full("b.third.example", "$fourth")


async def test_a_copy_from_the_senders_own_server_replaces_others(
    database: Database,
) -> None:
    store = InboxStore(database=database)
    await store.add(
        ROOM, OTHER, [NewInboxRow("$a", b"{}"), NewInboxRow("$b", b"{}")], 10, policy_server=None
    )
    await store.add(
        ROOM, PEER, [NewInboxRow("$a", b'{"true":1}', is_own=True)], 20, policy_server=None
    )
    await store.add(ROOM, OTHER, [NewInboxRow("$a", b"{}")], 30, policy_server=None)
    await store.add(
        ROOM,
        PEER,
        [NewInboxRow("$b", b'{"true":1}', is_own=True)],
        40,
        policy_server=None,
        is_outside=True,
    )

    found = {row.event_id: (row.origin, row.pdu) for row in await store.get_of_room(ROOM, 10)}
    assert found == {"$a": (PEER, b'{"true":1}'), "$b": (OTHER, b"{}")}
