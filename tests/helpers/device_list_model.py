"""A server, its users, and a model of the device lists that each client has to know."""

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from homeserver.services.sync.device_sections import MESSAGES_PER_RESPONSE
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.server import TestServer

V3 = "/_matrix/client/v3"
NAMES = ("alice", "bob", "carol", "dave")
ROOMS = 3
Action = tuple[str, int, int]


class DeviceListModel:
    """The server, its users, and what each of them should know."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.config = copy_sqlite(template, folder)
        self.database = open_inline(self.config)
        self.server = TestServer(folder, self.database)
        self.people = [self.server.register(name) for name in NAMES]
        self.owner = self.server.register("owner")
        self.rooms = [
            str(self.owner.post(f"{V3}/createRoom", {"preset": "public_chat"}).json["room_id"])
            for _ in range(ROOMS)
        ]
        self.joined: set[tuple[int, int]] = set()
        self.encrypted: set[int] = set()
        self.count = 0
        self.since: list[str] = []
        self.known: list[set[str]] = [set() for _ in NAMES]
        """The device lists that each client tracks."""
        self.is_whole = [True for _ in NAMES]
        """Whether the last response of each user ended at the current position."""
        self.devices: list[set[str]] = [set() for _ in NAMES]
        """The users whose devices changed, of which each user has to learn if they share a room."""
        for who in range(len(NAMES)):
            self.since.append(self._sync(who)["next_batch"])

    def do(self, action: Action) -> None:
        name, who, where = action
        self.count += 1
        getattr(self, f"_do_{name}")(who, where)

    def close(self) -> None:
        Deferred.fromCoroutine(self.database.close())

    def sharing(self, who: int) -> set[str]:
        """Return the users who share an encrypted room with a user, by the model."""
        rooms = {where for where in self.encrypted if (who, where) in self.joined}
        others = {
            self.people[other].user_id
            for other, where in self.joined
            if where in rooms and other != who
        }
        return others | ({self.owner.user_id} if rooms else set())

    def check(self, who: int) -> None:
        """Check a sync and /keys/changes of a user."""
        before, changed, left = set(self.known[who]), set[str](), set[str]()
        answers = []
        while True:
            lists, is_last = self.look(who)
            answers.append(lists)
            changed |= set(lists["changed"])
            left |= set(lists["left"])
            if is_last:
                break
        now, received = self.sharing(who), (NAMES[who], before, answers)
        assert self.known[who] == now, (received, now)
        assert not self.devices[who] & now, (received, now)
        assert changed <= now | left | {self.people[who].user_id}, (received, now)
        if len(answers) == 1 and self.is_whole[who]:
            assert left == before - now, (received, now)
        self.is_whole[who] = True

    def look(self, who: int) -> tuple[Any, bool]:
        """Process one response: return its lists and whether it ends at the current position. The
        client follows it and queries keys at once."""
        answer = self._sync(who, self.since[who])
        lists = answer["device_lists"]
        changed, left = set(lists["changed"]), set(lists["left"])
        assert not changed & left
        changes = (
            self.people[who]
            .get(f"{V3}/keys/changes?from={self.since[who]}&to={answer['next_batch']}")
            .json
        )
        assert changes == lists
        self.known[who] = (self.known[who] | changed - {self.people[who].user_id}) - left
        self.devices[who] -= changed | left
        self.since[who] = answer["next_batch"]
        return lists, len(answer["to_device"]["events"]) < MESSAGES_PER_RESPONSE

    def _sync(self, who: int, since: str | None = None) -> Any:
        answer = self.people[who].get(f"{V3}/sync" + ("" if since is None else f"?since={since}"))
        assert answer.status == 200, answer.body
        return answer.json

    def _do_sync(self, who: int, _where: int) -> None:
        self.check(who)

    def _do_look(self, who: int, _where: int) -> None:
        _, self.is_whole[who] = self.look(who)

    def _do_join(self, who: int, where: int) -> None:
        assert self.people[who].post(f"{V3}/join/{self.rooms[where]}").status == 200
        self.joined.add((who, where))

    def _do_leave(self, who: int, where: int) -> None:
        self.people[who].post(f"{V3}/rooms/{self.rooms[where]}/leave")
        self.joined.discard((who, where))

    def _do_kick(self, who: int, where: int) -> None:
        self.owner.post(
            f"{V3}/rooms/{self.rooms[where]}/kick", {"user_id": self.people[who].user_id}
        )
        self.joined.discard((who, where))

    def _do_forget(self, who: int, where: int) -> None:
        self._do_leave(who, where)
        self.people[who].post(f"{V3}/rooms/{self.rooms[where]}/forget")

    def _do_encrypt(self, _who: int, where: int) -> None:
        content = {"algorithm": "m.megolm.v1.aes-sha2", "rotation_period_msgs": self.count}
        assert (
            self.owner.put(
                f"{V3}/rooms/{self.rooms[where]}/state/m.room.encryption/", content
            ).status
            == 200
        )
        self.encrypted.add(where)

    def _do_device(self, who: int, _where: int) -> None:
        user = self.people[who]
        keys = {
            "user_id": user.user_id,
            "device_id": user.device_id,
            "algorithms": ["m.megolm.v1.aes-sha2"],
            "keys": {f"ed25519:{user.device_id}": str(self.count)},
            "signatures": {},
        }
        assert user.post(f"{V3}/keys/upload", {"device_keys": keys}).status == 200
        for waiting in self.devices:
            waiting.add(user.user_id)

    def _do_rename(self, who: int, _where: int) -> None:
        user = self.people[who]
        assert (
            user.put(
                f"{V3}/profile/{user.user_id}/displayname", {"displayname": str(self.count)}
            ).status
            == 200
        )
        self.server.clock.advance(1)

    def _do_messages(self, who: int, _where: int) -> None:
        """More than half of the messages of one response."""
        user = self.people[who]
        for number in range(MESSAGES_PER_RESPONSE // 2 + 10):
            body = {"messages": {user.user_id: {user.device_id: {"number": number}}}}
            path = f"{V3}/sendToDevice/m.test/{self.count}_{number}"
            assert self.owner.put(path, body).status == 200

    def _do_restart(self, _who: int, _where: int) -> None:
        now = self.server.clock.seconds()
        self.close()
        self.database = open_inline(self.config)
        self.server = TestServer(self.folder, self.database, seed=self.count + 1, now=now + 1)
        for user in (*self.people, self.owner):
            user.server = self.server
