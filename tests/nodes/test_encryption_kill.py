"""kill -9 in the midst of claims and of messages to devices: a key that somebody was given is given
to nobody else, and what was acknowledged arrives once, each sender's in their order.

Some people claim Bob's keys and write to his device, one request after the other. What got no
answer is asked again: a message under the same transaction id, so it comes once whether it was
written or not; a claim anew, so the key of a lost answer is lost, and no other.
"""

import threading
import time
from pathlib import Path
from random import Random
from typing import Any, Final

from storage.encryption.to_device import FEWEST_LOGGED
from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers.kills import Caller, Where
from tests.helpers.running import RunningServer, ServerFiles

SEED: Final = 20240309
KILLS: Final = 4
MOST_KILLS: Final = 40
"""Where the machine is so busy that the process is often killed before anybody has asked it for
something."""
PEOPLE: Final = 3
KEYS: Final = 1000
"""As many as a device may have."""
EACH: Final = KEYS // PEOPLE // 2
"""So many claims one person makes at most: there are keys left for those whose answers got lost."""
V3: Final = "/_matrix/client/v3"
ALGORITHM: Final = "signed_curve25519"


class Person(threading.Thread):
    """Who claims a key and sends a message in turn, each until it is answered."""

    def __init__(self, where: Where, token: str, bob: str, device: str, others: list[str]) -> None:
        super().__init__(daemon=True)
        self.caller = Caller(where, token)
        self.given: list[str] = []
        self.sent = 0
        self.lost = 0
        """Claims that were made again: each may have cost a key."""
        self.trouble: BaseException | None = None
        self._where = where
        self._bob = bob
        self._device = device
        self._others = others
        """Further devices of Bob, so many that what goes to all is kept otherwise than what goes to
        one."""

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
        wish = {"one_time_keys": {self._bob: {self._device: ALGORITHM}}}
        said = self.caller.until_answered("POST", f"{V3}/keys/claim", wish).json
        self.given += said["one_time_keys"][self._bob][self._device]
        self.lost += self.caller.repeated - before

    def _send(self) -> None:
        # in turn to one device alone, and to many at once
        devices = [self._device, *self._others] if self.sent % 2 else [self._device]
        messages = {self._bob: {device_id: {"number": self.sent} for device_id in devices}}
        self.caller.until_answered(
            "PUT", f"{V3}/sendToDevice/m.test/{self.sent}", {"messages": messages}
        )
        self.sent += 1


def received(server: RunningServer, token: str) -> dict[str, list[int]]:
    """All messages that have come to Bob's device, by sender."""
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


def test_no_key_is_given_twice_and_no_message_is_lost(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig
) -> None:
    unlimited = {"per_second": 100_000, "burst_count": 100_000}
    limits = {
        "rc_key_requests": unlimited,
        "rc_login": {"address": unlimited, "account": unlimited, "failed_attempts": unlimited},
    }
    files = ServerFiles(tmp_path / "server", database_config, limits)
    random, where = Random(SEED), Where()
    try:
        server = files.start()
        bobs = server.register("bob")
        who = server.request("GET", f"{V3}/account/whoami", token=bobs).json
        keys = {f"{ALGORITHM}:k{number}": {"key": f"k{number}"} for number in range(KEYS)}
        assert (
            server.request("POST", f"{V3}/keys/upload", {"one_time_keys": keys}, token=bobs).status
            == 200
        )
        login = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": "bob"},
            "password": "wonderland",
        }
        others = [
            server.request("POST", f"{V3}/login", login).json["device_id"]
            for _ in range(FEWEST_LOGGED)
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
            where.tell(server)
            # soon after the start, and later
            where.wait_until_asked(
                random.randrange(1, 40) if kills % 2 else random.randrange(100, 200)
            )
            time.sleep(random.uniform(0, 0.005))
            where.tell(None)
            server.kill()
            server = files.start()
        where.tell(server)
        while any(each.sent <= KILLS and each.is_alive() for each in people.values()):
            time.sleep(0.01)
        where.tell(server, over=True)
        for person in people.values():
            person.join(120)
            assert person.trouble is None, person.trouble
        given = [key for person in people.values() for key in person.given]
        assert len(given) == len(set(given)), "a key was given twice"
        said = server.request("POST", f"{V3}/keys/upload", {}, token=bobs).json
        left = said["one_time_key_counts"][ALGORITHM]
        assert KEYS - sum(person.lost for person in people.values()) <= len(given) + left <= KEYS
        found = {
            sender.partition(":")[0]: numbers for sender, numbers in received(server, bobs).items()
        }
        assert found == {name: list(range(person.sent)) for name, person in people.items()}
        assert sum(person.caller.repeated for person in people.values()) >= KILLS, (
            "the process was never killed at work"
        )
        assert server.stop() == 0
    finally:
        files.end()
