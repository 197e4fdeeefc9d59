"""Device lists that clients know are correct in the end, in random histories of two servers.

Users of two servers join and leave encrypted rooms of both, and get and lose devices. Lists are
queried and deleted, requests are lost or repeated, servers cannot reach each other and are rebuilt.
When all is well again, each client that followed `device_lists` knows exactly the devices of those
with whom its user shares a room.
"""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from federation.protocol.ids import domain_of
from homeserver.cluster.jobs import Job
from storage.engine.database import Database
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.encrypted_rooms import ENCRYPTED
from tests.helpers.federated_rooms import NORTH, NUMBERS, SOUTH, create_room
from tests.helpers.http import Answer
from tests.helpers.keys import V3, identity_keys, sync, upload
from tests.helpers.logins import another_device
from tests.helpers.network import Fate, Network, Transfer
from tests.helpers.room_actions import say, set_state
from tests.helpers.server import User

SERVERS = (NORTH, SOUTH)
PEOPLE = (("alice", NORTH), ("carol", NORTH), ("bob", SOUTH), ("dan", SOUTH))
ALICE, _, BOB, _ = range(len(PEOPLE))
ON_NORTH, ON_SOUTH = range(len(SERVERS))
ABOUT_DEVICES = ("/send/", "/user/devices/", "/user/keys/")
FATES = [Fate.ARRIVES] * 8 + [Fate.IS_LOST, Fate.ANSWER_IS_LOST, Fate.ARRIVES_TWICE]

Step = tuple[str, int, int]


class Client:
    """A user, and the devices of others that their first device knows."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.devices = {user.device_id}
        self.further: list[User] = []
        self.known: dict[str, set[str]] = {}
        self.outdated: set[str] = set()
        self.since = sync(user)["next_batch"]


class World:
    """Two servers, a room on each, and their users."""

    def __init__(self, network: Network, storm: int | None) -> None:
        self.network = network
        for server in SERVERS:
            network.add(server)
        network.start_sending()
        self.owners = [network.servers[server].register("owner") for server in SERVERS]
        self.strangers = [network.servers[server].register("stranger") for server in SERVERS]
        self.rooms = [create_room(owner) for owner in self.owners]
        for owner, room in zip(self.owners, self.rooms, strict=True):
            set_state(owner, room, "m.room.encryption", ENCRYPTED)
        self.uploads = 0
        self.clients = [
            Client(self._publish(network.servers[server].register(name))) for name, server in PEOPLE
        ]
        self.joined: set[tuple[int, int]] = set()
        self.is_stormy, self._random = storm is not None, Random(storm)
        network.choose_fate = self._fate
        network.settle()

    def do(self, step: Step) -> None:
        name, who, where = step
        self.network.clock.advance(
            1
        )  # of two concurrent changes of one thing, the later one counts
        getattr(self, f"_do_{name}")(who, where)

    def check(self) -> None:
        """Check what each client knows when all is well again."""
        self.is_stormy = False
        self.network.mend(NORTH, SOUTH)
        for _ in range(5):
            self.network.clock.advance(3600)
            self._do_fetch(0, 0)
        for owner, room in zip(self.owners, self.rooms, strict=True):
            say(owner, room, "all")  # forked histories are merged from here on
        self.network.settle()
        for _ in range(3):
            for who in range(len(PEOPLE)):
                self._do_look(who, 0)
            self.network.clock.advance(100)
        for who, client in enumerate(self.clients):
            rooms = {where for person, where in self.joined if person == who}
            shared = {
                other.user.user_id: other.devices
                for person, other in enumerate(self.clients)
                if person != who and any((person, where) in self.joined for where in rooms)
            }
            assert {
                user: each for user, each in client.known.items() if user in shared
            } == shared, client.user.user_id
            assert not client.known.keys() & self._people() - shared.keys() - {
                client.user.user_id
            }, client.user.user_id

    def _people(self) -> set[str]:
        return {client.user.user_id for client in self.clients}

    def _fate(self, transfer: Transfer) -> Fate:
        is_about_devices = any(part in transfer.request.uri for part in ABOUT_DEVICES)
        return self._random.choice(FATES) if self.is_stormy and is_about_devices else Fate.ARRIVES

    def _publish(self, user: User) -> User:
        self.uploads += 1
        upload(user, device_keys=identity_keys(user, self.uploads)[1])
        return user

    def _ask(self, user: User, path: str, body: dict[str, Any]) -> Answer:
        pending = user.start("POST", f"{V3}/{path}", body)
        self.network.settle()
        while not pending.done:
            self.network.clock.advance(5)
        return pending.answer

    def _query(self, user: User, wanted: set[str]) -> Any:
        answer = self._ask(user, "keys/query", {"device_keys": dict.fromkeys(wanted, ())})
        assert answer.status == 200, answer.body
        return answer.json

    def _run(self, name: str) -> None:
        for server in SERVERS:
            (job,) = (
                each
                for each in self.network.servers[server].app.federation_sender.jobs()
                if each.name == name
            )
            Deferred.fromCoroutine(_step(job))
            self.network.clock.advance(35)

    def _do_join(self, who: int, where: int) -> None:
        if (
            self._ask(
                self.clients[who].user, f"join/{self.rooms[where]}?via={SERVERS[where]}", {}
            ).status
            == 200
        ):
            self.joined.add((who, where))

    def _do_leave(self, who: int, where: int) -> None:
        if (who, where) in self.joined:
            assert (
                self._ask(self.clients[who].user, f"rooms/{self.rooms[where]}/leave", {}).status
                == 200
            )
            self.joined.discard((who, where))

    def _do_device(self, who: int, _where: int) -> None:
        client = self.clients[who]
        client.further.append(self._publish(another_device(client.user)))
        client.devices.add(client.further[-1].device_id)
        self.network.settle()

    def _do_logout(self, who: int, _where: int) -> None:
        client = self.clients[who]
        if client.further:
            device = client.further.pop()
            assert device.post(f"{V3}/logout").status == 200
            client.devices.discard(device.device_id)
            self.network.settle()

    def _do_look(self, who: int, _where: int) -> None:
        """Sync, and query keys of changed users; later again if their server is silent."""
        client = self.clients[who]
        answer = sync(client.user, client.since)
        client.since = answer["next_batch"]
        for user in answer["device_lists"]["left"]:
            client.known.pop(user, None)
            client.outdated.discard(user)
        client.outdated.update(answer["device_lists"]["changed"])
        if client.outdated:
            found = self._query(client.user, client.outdated)
            answered = {
                user for user in client.outdated if domain_of(user) not in found["failures"]
            }
            client.known.update(
                (user, set(found["device_keys"].get(user, ()))) for user in answered
            )
            client.outdated -= answered

    def _do_stranger(self, _who: int, where: int) -> None:
        """A user who shares no room with anybody queries keys."""
        self._query(self.strangers[where], self._people())

    def _do_forget(self, _who: int, _where: int) -> None:
        self._run("sweep_device_lists")

    def _do_fetch(self, _who: int, _where: int) -> None:
        self._run("fetch_stale_device_lists")

    def _do_cut(self, _who: int, _where: int) -> None:
        self.network.cut(NORTH, SOUTH)

    def _do_mend(self, _who: int, _where: int) -> None:
        self.network.mend(NORTH, SOUTH)

    def _do_wait(self, _who: int, _where: int) -> None:
        self.network.clock.advance(700)

    def _do_rebuild(self, _who: int, where: int) -> None:
        server = self.network.rebuild(SERVERS[where])
        theirs = [user for client in self.clients for user in (client.user, *client.further)]
        for user in (*theirs, *self.owners, *self.strangers):
            if domain_of(user.user_id) == SERVERS[where]:
                user.server = server
        self.network.settle()


async def _step(job: Job) -> None:
    await job.step(100)


NAMES = ["join"] * 6 + ["leave", "look"] * 4 + ["device"] * 3
RARE = ["logout", "stranger", "forget", "fetch", "cut", "mend", "wait", "rebuild"]
steps = st.lists(
    st.tuples(
        st.sampled_from(NAMES + RARE),
        st.integers(0, len(PEOPLE) - 1),
        st.integers(0, len(SERVERS) - 1),
    ),
    min_size=5,
    max_size=30,
)


@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps, st.one_of(st.none(), st.integers(0, 1000)))
@example(
    [
        ("join", ALICE, ON_SOUTH),
        ("join", BOB, ON_SOUTH),
        ("look", ALICE, 0),
        ("leave", ALICE, ON_SOUTH),
        ("forget", 0, 0),
        ("device", BOB, 0),
        ("join", ALICE, ON_SOUTH),
    ],
    None,
)  # she had left the room, and her client was disconnected from its server
def test_clients_know_the_devices_of_users_with_whom_they_share_a_room(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    happens: list[Step],
    storm: int | None,
) -> None:
    NUMBERS.reset()
    folder, databases = tmp_path_factory.mktemp("world"), list[Database]()

    def open_another() -> Database:
        databases.append(open_inline(copy_sqlite(sqlite_template, folder)))
        return databases[-1]

    try:
        world = World(Network(folder, open_another), storm)
        for step in happens:
            world.do(step)
        world.check()
    finally:
        for database in databases:
            run_coroutine(database.close(), None)
