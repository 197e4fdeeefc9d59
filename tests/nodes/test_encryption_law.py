"""Keys, devices and to-device messages through either of two nodes on one PostgreSQL database: a
law against a model.

- A one-time key is claimed once, in upload order, and a fallback key if none is left.
- A key query returns the present devices on both nodes.
- A client that queries all users in `changed` knows their devices.
- To-device messages arrive once, in order, and never at a later device with the same ID.
"""

from collections.abc import Callable
from itertools import count
from typing import Any, Final
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.encrypted_rooms import ENCRYPTION_EVENT
from tests.helpers.keys import V3, identity_keys, query, upload
from tests.helpers.logins import password_auth
from tests.helpers.node_pair import PollingNodes
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import sync

ALGORITHM: Final = "signed_curve25519"
FALLBACK: Final = {f"{ALGORITHM}:fallback": {"key": "fallback", "fallback": True}}
NAMES: Final = ("ONE", "TWO")
"""Few device IDs, so that they are reused."""


class Device:
    """The expected state of a session of Bob's."""

    def __init__(self, user: User, identity: dict[str, Any], has_fallback: bool) -> None:
        self.user = user
        self.identity = identity
        self.has_fallback = has_fallback
        self.keys: list[str] = []
        """The keys that can be claimed, the oldest first."""
        self.uploads: list[list[str]] = []
        self.since: str | None = None
        self.sent: list[int] = []
        self.received: list[int] = []


class EncryptionModel:
    """Bob has devices, Alice writes to them; each step runs on one of the nodes."""

    def __init__(self, polling_nodes: PollingNodes) -> None:
        self._nodes = polling_nodes
        self._servers = (polling_nodes.first, polling_nodes.second)
        self._alice = polling_nodes.first.register(f"alice{uuid4().hex}")
        self._bob = polling_nodes.first.register(f"bob{uuid4().hex}")
        body = {"preset": "public_chat", "initial_state": [ENCRYPTION_EVENT]}
        room_id = self._alice.post(f"{V3}/createRoom", body).json["room_id"]
        assert self._bob.post(f"{V3}/join/{room_id}").status == 200
        self._devices: dict[str, Device] = {}
        self._numbers = count()
        self._given: set[str] = set()
        self._since = sync(self._alice)["next_batch"]
        self._known: dict[str, Any] = {}
        """The keys of Bob's devices that Alice's client knows."""
        self.steps: dict[str, Callable[[TestServer, str], None]] = {
            "begin": self._begin,
            "end": self._end,
            "upload": self._upload,
            "repeat": self._repeat,
            "claim": self._claim,
            "send": self._send,
            "read": self._read,
            "ask": self._ask,
            "look": self._look,
            "wait": lambda _node, _name: polling_nodes.wait(),
        }

    def check_end(self) -> None:
        """A second later everything has arrived."""
        self._nodes.wait()
        for node in self._servers:
            self._look(node, "")
            assert self._known == {
                name: device.identity["keys"] for name, device in self._devices.items()
            }
            for name, device in self._devices.items():
                answer = self._read(node, name)
                assert answer["device_one_time_keys_count"] == {ALGORITHM: len(device.keys)}
                assert device.received == device.sent

    def _begin(self, node: TestServer, name: str) -> None:
        if name in self._devices:
            return
        body = {**password_auth(self._bob.user_id), "device_id": name}
        answer = node.post(f"{V3}/login", body)
        assert answer.status == 200, answer.body
        user = User(node, answer.json)
        number = next(self._numbers)
        fallback = FALLBACK if number % 2 else {}
        identity = identity_keys(user, 1 + number % 255)[1]
        upload(user, device_keys=identity, fallback_keys=fallback)
        self._devices[name] = Device(user, identity, bool(fallback))

    def _end(self, node: TestServer, name: str) -> None:
        device = self._devices.pop(name, None)
        if device is not None:
            device.user.server = node
            assert device.user.post(f"{V3}/logout").status == 200

    def _upload(self, node: TestServer, name: str) -> None:
        if (device := self._devices.get(name)) is not None:
            device.uploads.append([f"k{next(self._numbers)}" for _ in range(3)])
            device.keys += device.uploads[-1]
            self._publish(node, device)

    def _repeat(self, node: TestServer, name: str) -> None:
        """The response was lost: the same upload is repeated, though some of its keys may be
        claimed."""
        if (device := self._devices.get(name)) is not None and device.uploads:
            self._publish(node, device)

    def _publish(self, node: TestServer, device: Device) -> None:
        device.user.server = node
        keys = {f"{ALGORITHM}:{key}": {"key": key} for key in device.uploads[-1]}
        assert upload(device.user, one_time_keys=keys) == {ALGORITHM: len(device.keys)}

    def _claim(self, node: TestServer, name: str) -> None:
        self._alice.server = node
        requested = {self._bob.user_id: {name: ALGORITHM}}
        answer = self._alice.post(f"{V3}/keys/claim", {"one_time_keys": requested})
        assert answer.status == 200, answer.body
        claimed = answer.json["one_time_keys"].get(self._bob.user_id, {}).get(name)
        device = self._devices.get(name)
        if device is None:
            assert claimed is None
        elif device.keys:
            assert claimed.keys() == {f"{ALGORITHM}:{device.keys[0]}"}
            assert device.keys[0] not in self._given
            self._given.add(device.keys.pop(0))
        elif device.has_fallback:
            assert claimed == FALLBACK
        else:
            assert claimed is None

    def _send(self, node: TestServer, name: str) -> None:
        self._alice.server = node
        number = next(self._numbers)
        messages = {self._bob.user_id: {name: {"n": number}}}
        path = f"{V3}/sendToDevice/m.test/{number}"
        for _ in range(2):  # the second time, the response to the first was lost
            assert self._alice.put(path, {"messages": messages}).status == 200
        if (device := self._devices.get(name)) is not None:
            device.sent.append(number)

    def _read(self, node: TestServer, name: str) -> Any:
        device = self._devices.get(name)
        if device is None:
            return None
        device.user.server = node
        answer = sync(device.user, device.since)
        device.since = answer["next_batch"]
        device.received += [event["content"]["n"] for event in answer["to_device"]["events"]]
        assert device.received == device.sent[: len(device.received)]
        return answer

    def _ask(self, node: TestServer, _name: str) -> None:
        self._alice.server = node
        found = query(self._alice, self._bob)["device_keys"][self._bob.user_id]
        published = {name: device.identity["keys"] for name, device in self._devices.items()}
        assert {name: keys["keys"] for name, keys in found.items()} == published
        self._known = published

    def _look(self, node: TestServer, name: str) -> None:
        """Alice's client reads `changed` from one node, and queries the other."""
        self._alice.server = node
        answer = sync(self._alice, self._since)
        self._since = answer["next_batch"]
        if self._bob.user_id in answer.get("device_lists", {}).get("changed", ()):
            self._ask(self._servers[node is self._nodes.first], name)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_keys_devices_and_messages_agree_on_both_nodes(
    polling_nodes: PollingNodes, data: st.DataObject
) -> None:
    model = EncryptionModel(polling_nodes)
    steps = st.tuples(st.sampled_from(sorted(model.steps)), st.booleans(), st.sampled_from(NAMES))
    for step, is_second, name in data.draw(st.lists(steps, min_size=15, max_size=40)):
        model.steps[step](polling_nodes.second if is_second else polling_nodes.first, name)
    model.check_end()
