"""To-device messages in random histories against a list of what each device has to get: any sender,
one or many devices, either node, any token, while messages are moved, devices are deleted and
created, and nodes restart."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from federation.protocol.ids import ServerName
from homeserver.services.sync import device_sections, to_device_cache
from storage.encryption import to_device
from storage.encryption.to_device import LOG_RETENTION_MS, ToDeviceAdded
from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from storage.engine.streams import Change, Stage, Topic
from tests.helpers.databases import open_inline, silence
from tests.helpers.keys import V3
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User

PAGE = 5
"""Messages in a response, for this test."""
NAMES = ["ONE", "TWO", "THREE", "FOUR"]
BOUNDS = [
    (device_sections, "MESSAGES_PER_RESPONSE", PAGE),
    (device_sections, "DELETE_CHUNK", 4),
    (to_device, "DELETE_CHUNK", 4),
    (to_device, "MIN_LOGGED", 3),
    (to_device_cache, "LARGE_REQUEST", 4),
]
"""Small enough for short histories to reach them."""
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"


@dataclass
class Device:
    """A session of Bob's, and the messages that it has to get."""

    user: User
    sent: list[tuple[int, int]] = field(default_factory=list)
    """Position and number."""
    tokens: list[tuple[str, int]] = field(default_factory=list)
    """Tokens of /sync, and up to which message a client with each has received."""
    own_tokens: list[tuple[str, int]] = field(default_factory=list)
    """The same for the extension of sliding sync."""
    acknowledged: int = 0

    def check(self, numbers: list[int], has: int, limit: int, *, up_to_date: bool) -> int:
        """Check that these are the next messages for a client with this token. Return the position
        of the last, or 0."""
        after = max(has, self.acknowledged)
        # a node with the messages in memory may not know that the device acknowledged them at the
        # other; a client without a token is served from the database
        most = [each for each in self.sent if each[0] > (has or after)]
        least = [each for each in self.sent if each[0] > after]
        for known in range(len(most) - len(least) + 1):
            expected = most[known:][:limit]
            got = expected[: len(numbers)]
            if numbers == [number for _, number in got] and (
                len(got) == len(expected) or not up_to_date
            ):
                return got[-1][0] if got else 0
        raise AssertionError(f"{numbers} of {least} to {most}")


async def only(content: dict[str, Any]) -> AsyncIterator[object]:
    """Return the EDUs of a transaction."""
    yield {"edu_type": "m.direct_to_device", "content": content}


class World:
    """Two nodes, Alice who sends, Bob who has devices, and a remote user."""

    def __init__(self, folder: Path, databases: list[Database]) -> None:
        self.folder, self.databases = folder, databases
        self.seed = 10
        self.here = 0
        self.positions: dict[tuple[str, int], list[int]] = {}
        self.now = 1_700_000_000.0
        for database in databases:
            database.streams.subscribe(self._on_changes, Topic.TO_DEVICE, stage=Stage.NOTIFY)
        self.nodes = [self._start(0), self._start(1)]
        self.number = 0

    def _start(self, at: int) -> TestServer:
        self.seed += 1
        return TestServer(self.folder, self.databases[at], seed=self.seed, now=self.now)

    def _on_changes(self, changes: Any) -> None:
        for change in changes:
            if isinstance(change, Change) and isinstance(change.detail, ToDeviceAdded):
                for index, (_, device_id, _) in enumerate(change.detail.recipients):
                    number = int(
                        change.detail.contents[index].partition(b'"n":')[2].partition(b"}")[0]
                    )
                    self.positions.setdefault((device_id, number), []).append(
                        change.detail.first + index
                    )

    def begin(self) -> None:
        """Create new users."""
        self.alice = self.nodes[0].register(f"alice{uuid4().hex}")
        self.bob = self.nodes[0].register(f"bob{uuid4().hex}")
        self.carol = self.nodes[0].register(f"carol{uuid4().hex}")
        self.positions.clear()
        self.devices = {name: self._log_in(name) for name in NAMES}
        self.last: tuple[str, Any] | None = None
        self.catch_up(1)

    def catch_up(self, at: int) -> None:
        self.nodes[at].run(self.databases[at].catch_up())

    def _log_in(self, name: str) -> Device:
        login = {**password_auth(self.bob.user_id), "device_id": name}
        return Device(
            User(self.nodes[self.here], self.nodes[self.here].post(f"{V3}/login", login).json)
        )

    def _expect(self, name: str, number: int) -> None:
        if name in self.devices:
            positions = self.positions.pop((name, number))
            self.devices[name].sent.append((positions.pop(0), number))
            if positions:
                self.positions[name, number] = positions

    def _messages(self, names: list[str]) -> tuple[dict[str, Any], list[tuple[str, int]]]:
        """Messages by device, and the expected numbers by device."""
        messages: dict[str, Any] = {}
        expected: list[tuple[str, int]] = []
        for name in dict.fromkeys(names):
            self.number += 1
            messages[name] = {"n": self.number}
            expected += [
                (each, self.number)
                for each in ([*self.devices, self.bob.device_id] if name == "*" else [name])
            ]
        return messages, expected

    def send(self, names: list[str], others: bool, far: bool) -> None:
        messages, expected = self._messages(names)
        body: dict[str, Any] = {"messages": {self.bob.user_id: messages}}
        if others:
            body["messages"] = {self.carol.user_id: {"*": {"n": -1}}, **body["messages"]}
        if far:
            body["messages"]["@far:elsewhere.example"] = {"FAR": {"n": -2}}
        path = f"{V3}/sendToDevice/m.test/{uuid4().hex}"
        self.alice.server = self.nodes[self.here]
        answer = self.alice.put(path, body)
        assert answer.status == 200, answer.body
        self.last = path, body
        for name, number in expected:
            self._expect(name, number)

    def receive(self, names: list[str]) -> None:
        messages, expected = self._messages(names)
        edu = {
            "sender": "@far:elsewhere.example",
            "type": "m.test",
            "message_id": uuid4().hex,
            "messages": {self.bob.user_id: messages},
        }
        for at in (self.here, 1 - self.here, self.here):
            edus = self.nodes[at].app.federation_sender.edus
            self.nodes[at].run(edus.receive(ServerName("elsewhere.example"), only(edu)))
        for name, number in expected:
            self._expect(name, number)

    def repeat(self) -> None:
        if self.last is not None:
            self.alice.server = self.nodes[self.here]
            assert self.alice.put(*self.last).status == 200

    def sync(self, name: str, which: int, up_to_date: bool) -> None:
        """Sync with one of the last tokens, or with none."""
        if name not in self.devices:
            return
        device = self.devices[name]
        if up_to_date:
            self.catch_up(self.here)
        device.user.server = self.nodes[self.here]
        token, has = ("", 0) if which >= len(device.tokens) else device.tokens[-1 - which]
        answer = device.user.get(f"{V3}/sync?timeout=0" + (f"&since={token}" if token else ""))
        assert answer.status == 200, answer.body
        numbers = [event["content"]["n"] for event in answer.json["to_device"]["events"]]
        reached = device.check(numbers, has, PAGE, up_to_date=up_to_date)
        # a node that is behind may not know the token's position: then it answers as without a
        # token
        next_batch = answer.json["next_batch"]
        position = int(next_batch.partition("~")[2] or next_batch[1:].partition("_")[0])
        missed = [
            each
            for each in device.sent
            if max(has, reached, device.acknowledged) < each[0] <= position
        ]
        assert not missed, "the token is from after a message that was not sent"
        device.acknowledged = max(device.acknowledged, has)
        device.tokens.append((next_batch, position))

    def slide(self, name: str, which: int, up_to_date: bool, limit: int) -> None:
        if name not in self.devices:
            return
        device = self.devices[name]
        if up_to_date:
            self.catch_up(self.here)
        device.user.server = self.nodes[self.here]
        token, has = ("", 0) if which >= len(device.own_tokens) else device.own_tokens[-1 - which]
        wanted = {"enabled": True, "limit": limit, **({"since": token} if token else {})}
        answer = device.user.post(
            SLIDING, {"conn_id": uuid4().hex, "extensions": {"to_device": wanted}}
        )
        assert answer.status == 200, answer.body
        found = answer.json["extensions"]["to_device"]
        numbers = [event["content"]["n"] for event in found["events"]]
        reached = device.check(numbers, has, min(limit, PAGE), up_to_date=up_to_date)
        position = int(found["next_batch"])
        missed = [
            each
            for each in device.sent
            if max(has, reached, device.acknowledged) < each[0] <= position
        ]
        assert not missed, "the token is from after a message that was not sent"
        device.acknowledged = max(device.acknowledged, has)
        device.own_tokens.append((found["next_batch"], position))

    def go(self, name: str, comes_again: bool, there: bool) -> None:
        """`there`: on the other node, without notice to this one yet."""
        here, self.here = self.here, 1 - self.here if there else self.here
        device = self.devices.pop(name, None)
        if device is not None:
            device.user.server = self.nodes[self.here]
            assert device.user.post(f"{V3}/logout").status == 200
        if comes_again:
            self.devices[name] = self._log_in(name)
        self.here = here

    def sweep(self, limit: int, later: bool) -> None:
        if later:
            self.now += LOG_RETENTION_MS / 1000 + 1
            for node in self.nodes:
                node.clock.advance(max(0.0, self.now - node.clock.seconds()))
        node = self.nodes[self.here]
        node.run(node.app.accounts.stores.to_device.sweep(limit, int(self.now * 1000)))

    def lost(self) -> int:
        """Return stored messages that no device waits for and that were not acknowledged."""
        sql = (
            "SELECT count(*) FROM to_device_messages AS m WHERE NOT EXISTS "
            "(SELECT 1 FROM devices AS d WHERE d.device_nid = m.device_nid)"
        )
        (row,) = self.nodes[0].run(self.databases[0].read("count", lambda txn: txn.query(sql)))
        return int(row[0])

    def restart(self) -> None:
        silence(self.databases[self.here].streams)
        self.nodes[self.here] = self._start(self.here)


@pytest.fixture
def world(tmp_path: Path, database_config: SQLiteConfig | PostgresConfig) -> Iterator[World]:
    databases = [open_inline(database_config), open_inline(database_config)]
    yield World(tmp_path, databases)
    for database in databases:
        Deferred.fromCoroutine(database.close())


NAME = st.sampled_from(NAMES)
STEPS = st.one_of(
    st.tuples(
        st.just("send"),
        st.lists(st.sampled_from([*NAMES, "*", "NONE"]), min_size=1, max_size=5),
        st.booleans(),
        st.booleans(),
    ),
    st.tuples(st.just("send"), st.just(["*"]), st.booleans(), st.just(False)),
    st.tuples(
        st.just("receive"), st.lists(st.sampled_from([*NAMES, "*", "NONE"]), min_size=1, max_size=5)
    ),
    st.tuples(st.just("repeat")),
    st.tuples(st.just("sync"), NAME, st.integers(0, 4), st.booleans()),
    st.tuples(st.just("sync"), NAME, st.just(0), st.just(True)),
    st.tuples(st.just("slide"), NAME, st.integers(0, 3), st.booleans(), st.integers(1, 8)),
    st.tuples(st.just("go"), NAME, st.booleans(), st.booleans()),
    st.tuples(st.just("sweep"), st.integers(1, 40), st.booleans()),
    st.tuples(st.just("restart")),
    st.tuples(st.just("elsewhere")),
)


@pytest.mark.parametrize("kept", [3, 40])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=20, max_size=60))
def test_every_device_gets_each_message_once_in_order(
    world: World, monkeypatch: pytest.MonkeyPatch, kept: int, steps: list[tuple[Any, ...]]
) -> None:
    """`kept`: messages in a node's memory."""
    for module, name, value in (*BOUNDS, (to_device_cache, "MAX_MESSAGES", kept)):
        monkeypatch.setattr(module, name, value)
    world.begin()
    for name, *args in [*steps, ("elsewhere",)]:
        if name == "elsewhere":
            world.here = 1 - world.here
        else:
            getattr(world, name)(*args)
    for name, device in world.devices.items():
        for _ in range(len(device.sent) // PAGE + 2):
            world.sync(name, 0, True)
        assert [each for each in device.sent if each[0] > device.acknowledged] == []
        world.sweep(1000, False)
        world.sync(name, 1000, True)
    for _ in range(2):
        world.sweep(1000, True)
    assert world.lost() == 0, "every stored message has a device"
