"""Cached keys under any interleaving of reads, writes and notifications between nodes: a response
has all keys and signatures that were acknowledged before the request, on any node. A law against a
model, in which a read sees the database at two moments and returns at a third, and a commit is
announced some time later."""

import os
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import Any, Final, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from federation.devices.published_keys import EncodedKeys, PublishedKeyCache
from storage.encryption.cross_signing import KeySignature
from storage.encryption.device_keys import DeviceKeysRow
from storage.encryption.published_keys import PublishedKeys, PublishedKeyStore
from storage.engine.streams import Change, Streams, Topic

USERS: Final = ("@a:here", "@b:here")

STEPS: Final = ("ask", *["moment"] * 5, "tell", "write", "look")


class Tables:
    """The committed data. Keys and signatures are numbers that grow."""

    def __init__(self) -> None:
        self.head = 0
        self.keys = dict.fromkeys(USERS, 0)
        self.positions: dict[str, int] = {}
        self.signed: dict[str, dict[str, int]] = {user: {} for user in USERS}
        self.told_keys = dict.fromkeys(USERS, 0)
        """The acknowledged or returned part."""
        self.told_signed: dict[str, dict[str, int]] = {user: {} for user in USERS}

    def signatures(self, signer: str | None) -> dict[str, list[KeySignature]]:
        made = {} if signer is None else self.signed[signer]
        return {
            target: [KeySignature(target, "", signer or "", "", str(number))]
            for target, number in made.items()
        }


class Store:
    """Reads it at moments that the test decides."""

    def __init__(
        self, tables: Tables, waiting: list[Callable[[], None]], *, is_alone: bool
    ) -> None:
        self.is_single_process = is_alone
        self._tables = tables
        self._waiting = waiting

    async def _moment(self) -> None:
        moment: Deferred[None] = Deferred()
        self._waiting.append(lambda: moment.callback(None))
        await moment

    async def get_published(self, ours: Collection[str], _others: Collection[str]) -> PublishedKeys:
        await self._moment()
        positions = {
            user: self._tables.positions[user] for user in ours if user in self._tables.positions
        }
        await self._moment()
        devices = {
            user: [DeviceKeysRow(user, "D", b"%d" % self._tables.keys[user], None)] for user in ours
        }
        await self._moment()
        return PublishedKeys(devices, positions=positions)

    async def get_positions_and_signatures(
        self, ours: Collection[str], signer: str | None
    ) -> tuple[Mapping[str, int], Mapping[str, Sequence[KeySignature]]]:
        await self._moment()
        positions = {
            user: self._tables.positions[user] for user in ours if user in self._tables.positions
        }
        await self._moment()
        signatures = self._tables.signatures(signer)
        await self._moment()
        return positions, signatures

    async def get_head(self) -> int:
        await self._moment()
        head = self._tables.head
        await self._moment()
        return head

    async def get_signed_by(self, signer: str) -> Mapping[str, Sequence[KeySignature]]:
        await self._moment()
        signatures = self._tables.signatures(signer)
        await self._moment()
        return signatures


class Node:
    """A process, with its commits and reads that were not announced yet."""

    def __init__(
        self, tables: Tables, waiting: list[Callable[[], None]], *, is_alone: bool
    ) -> None:
        self.streams = Streams()
        self.tables = tables
        self.unpublished: deque[tuple[int, list[Change], int, Callable[[], None]]] = deque()
        store = cast(PublishedKeyStore, Store(tables, waiting, is_alone=is_alone))
        self.keys = PublishedKeyCache(store=store, streams=self.streams, show=_show, capacity=4)

    def write(self, topic: Topic, user: str, target: str) -> None:
        tables = self.tables
        before = tables.head
        tables.head += 1
        if topic is Topic.DEVICE:
            number = tables.keys[user] = tables.keys[user] + 1
            tables.positions[user] = tables.head
            received, name = tables.told_keys, user
        else:
            number = tables.signed[user][target] = tables.signed[user].get(target, 0) + 1
            received, name = tables.told_signed[user], target
        change = Change(tables.head, topic, user_id=user)
        self.unpublished.append(
            (
                before,
                [change],
                tables.head,
                lambda: received.update({name: max(number, received.get(name, 0))}),
            )
        )

    def look(self) -> None:
        """Start a write that writes nothing."""
        self.unpublished.append((self.tables.head, [], self.tables.head, lambda: None))

    def publish(self) -> None:
        if self.unpublished:
            before, changes, head, acknowledge = self.unpublished.popleft()
            self.streams.advance_to(before)
            self.streams.publish(changes, head)
            acknowledge()

    async def ask(self, reader: str) -> tuple[dict[str, int], dict[str, int]]:
        """Query all users' keys as `KeyQueries` does, with the reader's signatures."""
        shown: dict[str, EncodedKeys] = {}
        for user in USERS if await self.keys.is_current(USERS) else ():
            shown |= await self.keys.get_encoded([user], reader)
        rest = [user for user in USERS if user not in shown]
        published = await self.keys.get_published(rest, (), reader) if rest else PublishedKeys()
        devices = {user: int(bytes(keys.devices)) for user, keys in shown.items()}
        devices |= {user: int(published.devices[user][0].keys) for user in rest}
        signed = {
            user: int(made[0].signature) for user, made in published.signatures.items() if made
        }
        return devices, signed


def _show(user_id: str, published: PublishedKeys) -> EncodedKeys:
    return EncodedKeys(msgspec.Raw(published.devices[user_id][0].keys), {}, 1)


@pytest.mark.parametrize("number", [1, 2], ids=["one node", "two nodes"])
@settings(max_examples=int(os.environ.get("MAHALLA_KEYS_RUNS", "800")), deadline=None)
@given(seed=st.integers(0, 2**64))
def test_a_response_has_what_was_acknowledged_before_the_request(number: int, seed: int) -> None:
    chance = Random(seed)
    tables = Tables()
    waiting: list[Callable[[], None]] = []
    nodes = [Node(tables, waiting, is_alone=number == 1) for _ in range(number)]
    asked: list[Deferred[Any]] = []

    async def ask(node: Node, reader: str) -> None:
        received, told_signed = dict(tables.told_keys), dict(tables.told_signed[reader])
        devices, signed = await node.ask(reader)
        for user in USERS:
            assert devices[user] >= received[user], (user, reader)
            assert user == reader or signed.get(user, 0) >= told_signed.get(user, 0), (user, reader)
            if (
                number > 1
            ):  # a client that learned it from a response does not need the acknowledgement
                tables.told_keys[user] = max(tables.told_keys[user], devices[user])

    for _ in range(chance.randrange(20, 300)):
        node, user, target = chance.choice(nodes), chance.choice(USERS), chance.choice(USERS)
        match chance.choice(STEPS):
            case "ask":
                asked.append(Deferred.fromCoroutine(ask(node, user)))
            case "moment" if waiting:
                # some reads take long, others are done at once
                waiting.pop(chance.choice([-1, -1, chance.randrange(len(waiting))]))()
            case "tell":
                node.publish()
            case "write":
                is_own = user == target or chance.random() < 0.3
                node.write(Topic.DEVICE if is_own else Topic.SIGNATURE, user, target)
            case "look":
                node.look()
        while node.unpublished and chance.random() < 0.4:
            node.publish()
    while waiting:
        waiting.pop()()
    failures: list[Any] = []
    for each in asked:
        each.addErrback(failures.append)
    assert not failures, failures[0].getTraceback()
