"""The cache of one-time key counts against a model. Commits, notifications and reads come in any
possible order, and a device gets a count no older than the last change that was seen when it asked.
"""

import tracemalloc
from collections.abc import Mapping
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from homeserver.services.encryption.one_time_key_counts import OneTimeKeyCounts
from storage.encryption.device_keys import DeviceKeyStore, KeyCounts, KeyCountsChanged, KeysClaimed
from storage.encryption.one_time_keys import KeyRequest
from storage.engine.database import SQLiteConfig
from storage.engine.streams import Change, Stage, Streams, Topic
from tests.helpers.databases import open_inline
from tests.helpers.keys import one_time_keys, upload
from tests.helpers.server import TestServer, User

ALGORITHM = "signed_curve25519"
DEVICES = (("@a", "1"), ("@a", "2"), ("@b", "1"), ("@c", "1"))
OWNERS = (*((*device, ALGORITHM) for device in DEVICES), ("@b", "1", "other"))
Answer = tuple[KeyCounts, int]


class Disk:
    """The committed counts; stands in for the key store."""

    def __init__(self) -> None:
        self.streams = Streams()
        self.head = 0
        self.left: dict[KeyRequest, list[int]] = {owner: [2] for owner in OWNERS}
        """The count at each position."""
        self.undelivered: list[tuple[int, Change | None]] = []
        """Commits by position; None if another process made it."""
        self.reading: list[tuple[Deferred[Answer], Answer]] = []

    async def get_counts(self, user_id: str, device_id: str) -> Answer:
        answer: Deferred[Answer] = Deferred()
        counts = {
            algorithm: left[-1]
            for (user, device, algorithm), left in self.left.items()
            if (user, device) == (user_id, device_id) and left[-1]
        }
        self.reading.append((answer, (KeyCounts(counts, ()), self.head)))
        return await answer

    def commit(
        self,
        changed: Mapping[KeyRequest, int],
        topic: Topic,
        detail: object,
        users: tuple[str, ...],
    ) -> None:
        self.head += 1
        for owner, left in self.left.items():
            left.append(changed.get(owner, left[-1]))
        user_id = users[0] if isinstance(detail, KeyCountsChanged) or detail is None else None
        self.undelivered.append(
            (self.head, Change(self.head, topic, user_id=user_id, detail=detail, user_ids=users))
        )

    def claim(self, owners: list[KeyRequest], *, elsewhere: bool) -> None:
        taken = [owner for owner in owners if self.left[owner][-1]]
        after = {owner: self.left[owner][-1] - 1 for owner in taken}
        self.commit(after, Topic.KEY_COUNT, KeysClaimed(taken), tuple(user for user, _, _ in taken))
        if elsewhere:
            self.undelivered[-1] = (self.head, None)

    def upload(self, owner: KeyRequest) -> None:
        after = {owner: self.left[owner][-1] + 2}
        user_id, device_id, _ = owner
        counts = {
            each[2]: after.get(each, left[-1])
            for each, left in self.left.items()
            if each[:2] == owner[:2] and after.get(each, left[-1])
        }
        self.commit(
            after, Topic.KEY_COUNT, KeyCountsChanged(device_id, KeyCounts(counts, ())), (user_id,)
        )

    def deliver(self) -> None:
        """Deliver the next commit of this process, and those of other processes before it; or a
        commit of another process."""
        position, change = self.undelivered.pop(0)
        while change is None and self.undelivered:
            position, change = self.undelivered.pop(0)
        if change is None:
            self.streams.advance_to(position)
        else:
            self.streams.advance_to(position - 1)
            self.streams.publish([change], position)


class Asking:
    """A device that requests its counts."""

    def __init__(self, disk: Disk, counts: OneTimeKeyCounts, device: tuple[str, str]) -> None:
        self._disk = disk
        self._device = device
        self._from = disk.streams.current()
        self.answered = False
        Deferred.fromCoroutine(counts.get(*device)).addCallback(self._check)

    def _check(self, counts: KeyCounts) -> None:
        of_device = [each for each in self._disk.left.items() if each[0][:2] == self._device]
        were = [
            {algorithm: left[position] for (_, _, algorithm), left in of_device if left[position]}
            for position in range(self._from, self._disk.head + 1)
        ]
        assert {ALGORITHM: 0, **counts.one_time} in [{ALGORITHM: 0, **each} for each in were]
        assert ALGORITHM in counts.one_time
        self.answered = True


owners = st.sampled_from([*OWNERS, *OWNERS[-1:] * 3, *OWNERS[:1] * 3])
steps = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["claim", "elsewhere"]), st.lists(owners, unique=True, min_size=1)
        ),
        st.tuples(
            st.sampled_from(["upload", "ask", "ask at once", "rename"]),
            owners.map(lambda owner: [owner]),
        ),
        st.tuples(
            st.sampled_from(["hear", "hear all", "answer first", "answer last"]),
            st.just(list[KeyRequest]()),
        ),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_a_count_is_no_older_than_the_last_change_seen_before_the_request(
    steps: list[tuple[str, list[KeyRequest]]],
) -> None:
    disk = Disk()
    counts = OneTimeKeyCounts(streams=disk.streams, keys=cast("DeviceKeyStore", disk), capacity=2)
    asking: list[Asking] = []
    for step, of in [*steps, ("hear all", [])]:
        match step:
            case "claim" | "elsewhere":
                disk.claim(of, elsewhere=step == "elsewhere")
            case "upload":
                disk.upload(of[0])
            case "rename":
                disk.commit({}, Topic.DEVICE, None, (of[0][0],))
            case "ask":
                asking.append(Asking(disk, counts, of[0][:2]))
            case "ask at once":
                before = len(disk.reading)
                asking.append(Asking(disk, counts, of[0][:2]))
                for waiting, answer in disk.reading[before:]:
                    waiting.callback(answer)
                del disk.reading[before:]
            case "answer first" | "answer last":
                if disk.reading:
                    waiting, answer = disk.reading.pop(0 if step == "answer first" else -1)
                    waiting.callback(answer)
            case _:
                while disk.undelivered:
                    disk.deliver()
                    if step == "hear":
                        break
    for waiting, answer in disk.reading:
        waiting.callback(answer)
    assert all(each.answered for each in asking)
    for device in DEVICES:
        disk.reading.clear()
        last = Asking(disk, counts, device)
        for waiting, answer in disk.reading:
            waiting.callback(answer)
        assert last.answered


def test_counts_that_nobody_reads_are_evicted() -> None:
    streams = Streams()
    counts = OneTimeKeyCounts(streams=streams, keys=cast("DeviceKeyStore", None), capacity=2)
    tracemalloc.start()
    try:
        for number in range(1, 20_000):
            taken = [(f"@u{number}-{each}:example.org", "DEVICE", ALGORITHM) for each in range(2)]
            streams.publish([Change(number, Topic.KEY_COUNT, detail=KeysClaimed(taken))], number)
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    assert counts.get_cached("@u1-1:example.org", "DEVICE") is None


def test_a_claim_that_was_read_before_its_notification_is_counted_once(
    server: TestServer, sqlite: SQLiteConfig, bob: User
) -> None:
    """A commit is on the disk before the stream announces it: a reader in between has seen more
    than was announced."""
    upload(bob, one_time_keys=one_time_keys("a", "b", "c"))
    database = server.app.database
    store = DeviceKeyStore(database)
    meanwhile = open_inline(sqlite)
    received: list[Change] = []
    meanwhile.streams.subscribe(received.extend, stage=Stage.NOTIFY)
    requested = (bob.user_id, bob.device_id, "signed_curve25519")
    readers: list[OneTimeKeyCounts] = []
    for left in (2, 1, 0):
        server.run(DeviceKeyStore(meanwhile).claim_in_chunks([requested], 0))
        readers.append(OneTimeKeyCounts(streams=database.streams, keys=store, capacity=10))
        counts = server.run(readers[-1].get(bob.user_id, bob.device_id))
        assert counts.one_time == {requested[2]: left}, "it was read but not announced yet"
        database.streams.publish(received, received[-1].position)
        received.clear()
        for reader in readers:
            assert server.run(reader.get(bob.user_id, bob.device_id)).one_time == {
                requested[2]: left
            }
    server.run(meanwhile.close())
