"""kill -9 during uploads to key backups: every key whose upload was acknowledged is there, with the
right count and etag.

Some users back keys up as clients do: a few at a time, some in several rooms, some better ones that
replace stored ones, and worse ones that change nothing. An upload without a response is repeated. A
client trusts `etag` and `count` to know whether its backup is complete. So each response is
compared with the expected value, whether the upload before the kill was written or not, and so is
the state after each start.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers.retrying_clients import CurrentServer, RetryingClient
from tests.helpers.server_process import RunningServer, ServerFiles

SEED = 20240307
KILLS = 4
MOST_KILLS = 40
"""The machine may be so busy that the process is often killed before its first request."""
PEOPLE = 3
KEYS = "/_matrix/client/v3/room_keys"
DEFINITION = {
    "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
    "auth_data": {"public_key": "abc", "signatures": {}},
}
WORST = 40

Session = tuple[str, str]
"""Room and session."""


class Uploader(threading.Thread):
    """A user who sends one upload after another, each until there is a response."""

    def __init__(self, number: int, where: CurrentServer, token: str) -> None:
        super().__init__(daemon=True)
        self.caller = RetryingClient(where, token)
        self.kept: dict[Session, int] = {}
        """Acknowledged: the first message index of a session's key."""
        self.etag = 0
        self.answered = 0
        self.under_way: dict[Session, int] = {}
        """The current upload; it may be written or not until there is a response."""
        self.trouble: BaseException | None = None
        self._where = where
        self._random = Random(f"{SEED} {number}")
        self._made = 0

    def run(self) -> None:
        try:
            while not self._where.over:
                self._upload()
        except BaseException as error:
            self.trouble = error

    def _upload(self) -> None:
        self.under_way = {
            self._session(): self._random.randint(0, WORST)
            for _ in range(self._random.randint(1, 4))
        }
        rooms: dict[str, Any] = {}
        for (room_id, session_id), first in self.under_way.items():
            rooms.setdefault(room_id, {"sessions": {}})["sessions"][session_id] = key(first)
        said = self.caller.until_answered("PUT", f"{KEYS}/keys?version=1", {"rooms": rooms}).json
        after = self.merged()
        self.etag += after != self.kept
        self.kept = after
        self.answered += 1
        assert said == {"etag": str(self.etag), "count": len(self.kept)}

    def _session(self) -> Session:
        if self.kept and self._random.random() < 0.3:
            return self._random.choice(list(self.kept))
        self._made += 1
        return f"!room{self._made % 3}:localhost", f"session{self._made}"

    def merged(self) -> dict[Session, int]:
        """Return the backup after the current upload is written too."""
        better = {
            session: first
            for session, first in self.under_way.items()
            if session not in self.kept or first < self.kept[session]
        }
        return self.kept | better


def key(first: int) -> dict[str, Any]:
    return {
        "first_message_index": first,
        "forwarded_count": 0,
        "is_verified": True,
        "session_data": {"ephemeral": "e", "ciphertext": f"c{first}" * 100, "mac": "m"},
    }


def check_backup(server: RunningServer, person: Uploader) -> None:
    """Check, while the server is down, that the backup is as acknowledged, with or without the
    current upload."""
    said = server.request("GET", f"{KEYS}/version", token=person.caller.token).json
    found = server.request("GET", f"{KEYS}/keys?version=1", token=person.caller.token).json["rooms"]
    sessions = {
        (room_id, session_id): content
        for room_id, room in found.items()
        for session_id, content in room["sessions"].items()
    }
    firsts = {session: content["first_message_index"] for session, content in sessions.items()}
    possible: Mapping[str, dict[Session, int]] = {
        str(person.etag): person.kept,
        str(person.etag + (person.merged() != person.kept)): person.merged(),
    }
    assert possible[said["etag"]] == firsts, "a key is missing that the server acknowledged"
    assert said["count"] == len(firsts)
    assert {session: key(first) for session, first in firsts.items()} == sessions


def test_no_acknowledged_key_is_lost(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig
) -> None:
    files = ServerFiles(tmp_path / "server", database_config)
    random, where = Random(SEED), CurrentServer()
    try:
        server = files.start()
        people = [
            Uploader(number, where, server.register(f"person{number}")) for number in range(PEOPLE)
        ]
        for person in people:
            made = server.request("POST", f"{KEYS}/version", DEFINITION, token=person.caller.token)
            assert made.json == {"version": "1"}
            person.start()
        kills = 0
        while kills < KILLS or (
            kills < MOST_KILLS and sum(person.caller.repeated for person in people) < KILLS
        ):
            kills += 1
            where.set_server(server)
            where.wait_until_asked(random.randrange(1, 40))
            time.sleep(random.uniform(0, 0.005))
            where.set_server(None)
            server.kill()
            server = files.start()
            for person in people:
                check_backup(server, person)
        where.set_server(server)
        while any(person.answered <= KILLS and person.is_alive() for person in people):
            time.sleep(0.01)
        where.set_server(server, over=True)
        for person in people:
            person.join(120)
            assert person.trouble is None, person.trouble
            person.under_way = {}
            check_backup(server, person)
            assert person.answered > KILLS
        assert sum(person.caller.repeated for person in people) >= KILLS, (
            "the process was never killed during a request"
        )
        assert server.stop() == 0
    finally:
        files.end()
