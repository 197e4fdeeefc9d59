"""kill -9 during claims and to-device messages: a key is never claimed twice, and acknowledged
messages arrive once, in each sender's order.

Some users claim Bob's keys and write to his device, one request after another. A request without a
response is repeated: a message with the same transaction ID, so it arrives once whether it was
written or not; a claim as a new one, so the key of the lost response is lost, and no other.
"""

import threading
import time
from pathlib import Path
from random import Random
from typing import Any, Final

from storage.encryption.to_device import MIN_LOGGED
from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers.logins import password_auth
from tests.helpers.retrying_clients import CurrentServer, RetryingClient
from tests.helpers.server_process import RunningServer, ServerFiles

SEED: Final = 20240309
KILLS: Final = 4
MOST_KILLS: Final = 40
"""The machine may be so busy that the process is often killed before its first request."""
PEOPLE: Final = 3
KEYS: Final = 1000
"""The maximum of a device."""
EACH: Final = KEYS // PEOPLE // 2
"""The maximum number of claims of one user: keys are left for those whose responses were lost."""
V3: Final = "/_matrix/client/v3"
ALGORITHM: Final = "signed_curve25519"


class Person(threading.Thread):
    """Claims a key and sends a message in turn, each until there is a response."""

    def __init__(
        self, where: CurrentServer, token: str, bob: str, device: str, others: list[str]
    ) -> None:
        super().__init__(daemon=True)
        self.caller = RetryingClient(where, token)
        self.given: list[str] = []
        self.sent = 0
        self.lost = 0
        """Repeated claims: each may have cost a key."""
        self.trouble: BaseException | None = None
        self._where = where
        self._bob = bob
        self._device = device
        self._others = others
        """More devices of Bob: so many that a message to all is stored in another way than one to a
        single device."""

    def run(self) -> None:
        try:
            while not self._where.over:
                if len(self.given) < EACH:
                    self._claim()
                self._send()
        except BaseException as error:
            self.trouble = error

    def _claim(self) -> None:
        before = self.caller.repeated
        requested = {"one_time_keys": {self._bob: {self._device: ALGORITHM}}}
        said = self.caller.until_answered("POST", f"{V3}/keys/claim", requested).json
        self.given += said["one_time_keys"][self._bob][self._device]
        self.lost += self.caller.repeated - before

    def _send(self) -> None:
        # alternate between a single device and many
        devices = [self._device, *self._others] if self.sent % 2 else [self._device]
        messages = {self._bob: {device_id: {"number": self.sent} for device_id in devices}}
        self.caller.until_answered(
            "PUT", f"{V3}/sendToDevice/m.test/{self.sent}", {"messages": messages}
        )
        self.sent += 1


def received(server: RunningServer, token: str) -> dict[str, list[int]]:
    """Return all messages that arrived at Bob's device, by sender."""
    found: dict[str, list[int]] = {}
    since = ""
    events: list[Any] = [{}]
    while events:
        answer: Any = server.request(
            "GET", f"{V3}/sync?since={since}" if since else f"{V3}/sync", token=token
        ).json
        since, events = answer["next_batch"], answer["to_device"]["events"]
        for event in events:
            found.setdefault(event["sender"], []).append(event["content"]["number"])
    return found


def test_no_key_is_claimed_twice_and_no_message_is_lost(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig
) -> None:
    unlimited = {"per_second": 100_000, "burst_count": 100_000}
    limits = {
        "rc_key_requests": unlimited,
        "rc_login": {"address": unlimited, "account": unlimited, "failed_attempts": unlimited},
    }
    files = ServerFiles(tmp_path / "server", database_config, limits)
    random, where = Random(SEED), CurrentServer()
    try:
        server = files.start()
        bobs = server.register("bob")
        who = server.request("GET", f"{V3}/account/whoami", token=bobs).json
        keys = {f"{ALGORITHM}:k{number}": {"key": f"k{number}"} for number in range(KEYS)}
        assert (
            server.request("POST", f"{V3}/keys/upload", {"one_time_keys": keys}, token=bobs).status
            == 200
        )
        login = password_auth("bob")
        others = [
            server.request("POST", f"{V3}/login", login).json["device_id"]
            for _ in range(MIN_LOGGED)
        ]
        people = {
            f"@person{number}": Person(
                where, server.register(f"person{number}"), who["user_id"], who["device_id"], others
            )
            for number in range(PEOPLE)
        }
        for person in people.values():
            person.start()
        kills = 0
        while kills < KILLS or (
            kills < MOST_KILLS and sum(each.caller.repeated for each in people.values()) < KILLS
        ):
            kills += 1
            where.set_server(server)
            # soon after the start, and later
            where.wait_until_asked(
                random.randrange(1, 40) if kills % 2 else random.randrange(100, 200)
            )
            time.sleep(random.uniform(0, 0.005))
            where.set_server(None)
            server.kill()
            server = files.start()
        where.set_server(server)
        while any(each.sent <= KILLS and each.is_alive() for each in people.values()):
            time.sleep(0.01)
        where.set_server(server, over=True)
        for person in people.values():
            person.join(120)
            assert person.trouble is None, person.trouble
        given = [key for person in people.values() for key in person.given]
        assert len(given) == len(set(given)), "a key was claimed twice"
        said = server.request("POST", f"{V3}/keys/upload", {}, token=bobs).json
        left = said["one_time_key_counts"][ALGORITHM]
        assert KEYS - sum(person.lost for person in people.values()) <= len(given) + left <= KEYS
        found = {
            sender.partition(":")[0]: numbers for sender, numbers in received(server, bobs).items()
        }
        assert found == {name: list(range(person.sent)) for name, person in people.items()}
        assert sum(person.caller.repeated for person in people.values()) >= KILLS, (
            "the process was never killed during a request"
        )
        assert server.stop() == 0
    finally:
        files.end()
