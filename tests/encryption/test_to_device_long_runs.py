"""To-device messages over a long time: each arrives once and in order, whatever was evicted from
memory.

spec: client-server-api#send-to-device-messaging
"""

from collections import defaultdict
from random import Random
from typing import Any

import pytest

from homeserver.services.sync import device_sections, to_device_cache
from homeserver.services.sync.device_sections import MESSAGES_PER_RESPONSE
from tests.helpers.keys import V3
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User

AN_ANSWER = 12
assert AN_ANSWER < MESSAGES_PER_RESPONSE


class Device:
    """Keeps its token, and knows what was sent to it."""

    def __init__(self, server: TestServer, user: User, device_id: str) -> None:
        self.server, self.user, self.device_id = server, user, device_id
        self.sent: list[int] = []
        self.received = 0
        self.since = ""
        self.token = ""

    def log_in(self) -> None:
        login = {**password_auth(self.user.user_id), "device_id": self.device_id}
        self.token = self.server.post(f"{V3}/login", login).json["access_token"]
        self.sent, self.received, self.since = [], 0, ""

    def log_out(self) -> None:
        assert self.server.post(f"{V3}/logout", {}, token=self.token).status == 200

    def sync(self, *, is_lost: bool = False) -> int:
        """Return the number of new messages; the response may be lost."""
        since = f"&since={self.since}" if self.since else ""
        answer = self.server.get(f"{V3}/sync?timeout=0{since}", token=self.token).json
        numbers = [event["content"]["n"] for event in answer["to_device"]["events"]]
        assert numbers == self.sent[self.received :][:AN_ANSWER]
        if not is_lost:
            self.since = answer["next_batch"]
            self.received += len(numbers)
        return len(numbers)


@pytest.mark.parametrize("seed", range(3))
def test_each_message_arrives_once_and_in_order(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The caches are small, so that everything is evicted again and again: floors, messages, and
    devices with nothing to remove."""
    for module, name, number in (
        (to_device_cache, "MAX_DROPPED", 7),
        (to_device_cache, "MAX_MESSAGES", 150),
        (to_device_cache, "LARGE_REQUEST", 9),
        (device_sections, "MESSAGES_PER_RESPONSE", AN_ANSWER),
        (device_sections, "MAX_DEVICES", 12),
    ):
        monkeypatch.setattr(module, name, number)
    random = Random(seed)
    users = [server.register(f"user{number}") for number in range(5)]
    there = [Device(server, user, f"D{number}") for user in users for number in range(3)]
    for device in there:
        device.log_in()
    requests: list[tuple[User, int, Any]] = []
    steps = ["few", "many", "again", "sync", "lost", "new device", "minutes"]
    for number, step in enumerate(random.choices(steps, [20, 10, 3, 40, 10, 3, 4], k=500)):
        device = random.choice(there)
        match step:
            case "few" | "many":
                sender = random.choice(users)
                count = random.randint(1, 3) if step == "few" else random.randint(8, len(there))
                messages: dict[str, dict[str, Any]] = defaultdict(dict)
                for to in random.sample(there, count):
                    messages[to.user.user_id][to.device_id] = {
                        "n": number,
                        **({"of": to.device_id} if count % 2 else {}),
                    }
                    to.sent.append(number)
                messages[device.user.user_id]["NOBODY"] = {"n": number}
                requests.append((sender, number, messages))
                assert (
                    sender.put(f"{V3}/sendToDevice/m.test/{number}", {"messages": messages}).json
                    == {}
                )
            case "again" if requests:
                sender, earlier, messages = random.choice(requests)
                assert (
                    sender.put(f"{V3}/sendToDevice/m.test/{earlier}", {"messages": messages}).json
                    == {}
                )
            case "sync" | "lost":
                device.sync(is_lost=step == "lost")
            case "new device":
                device.log_out()
                messages = {device.user.user_id: {device.device_id: {"n": number}}}
                assert (
                    users[0].put(f"{V3}/sendToDevice/m.test/{number}", {"messages": messages}).json
                    == {}
                )
                device.log_in()
            case "minutes":
                server.jump(random.choice([1, 30, 400]))
    for device in there:
        while device.sync():
            pass
        assert device.received == len(device.sent)
