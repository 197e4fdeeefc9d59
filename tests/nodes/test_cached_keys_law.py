"""Key queries return the same with and without the cache, for each reader, after any operation on
devices and keys through either of two nodes."""

from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any
from uuid import uuid4

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.devices.published_keys import PublishedKeyCache
from federation.protocol.ids import UserID
from homeserver.services.encryption.device_keys import build_public_keys, present_keys
from storage.encryption.published_keys import PublishedKeyStore
from storage.engine.streams import Streams
from tests.helpers.keys import V3, PersonalKey, cross_signing_key, identity_keys, upload
from tests.helpers.logins import another_device, password_auth
from tests.helpers.node_pair import PollingNodes
from tests.helpers.server import TestServer, User


class Person:
    """A user with some devices."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.devices: dict[str, tuple[User, PersonalKey, dict[str, Any]]] = {}
        self.master: dict[str, Any] | None = None
        self.signing: dict[str, PersonalKey] = {}


class KeyModel:
    """Operations of some users."""

    def __init__(self, polling_nodes: PollingNodes, chance: Random) -> None:
        self._nodes = polling_nodes
        self._chance = chance
        self._seeds = count(1)
        self._people = [Person(polling_nodes.first.register(f"p{uuid4().hex}")) for _ in range(3)]
        for person in self._people:
            self._publish(person, person.user)
        self.steps: list[Callable[[], object]] = [
            self.ask,
            self.ask,
            self.ask,
            polling_nodes.wait,
            self._begin,
            self._end,
            self._rename,
            self._reset,
            self._sign,
            self._vouch,
        ]

    def ask(self) -> None:
        """One user queries some of them, and gets the same as from a node that has just started."""
        reader = self._somebody()
        published = PublishedKeyCache(
            store=PublishedKeyStore(reader.server.app.database),
            streams=Streams(),
            show=build_public_keys,
            capacity=99,
        )
        ids = [
            person.user.user_id
            for person in self._chance.sample(self._people, self._chance.randrange(1, 4))
        ]
        found = reader.server.run(published.get_published(ids, (), reader.user_id))
        shown = present_keys(found, UserID(reader.user_id), dict.fromkeys(ids, ()))
        pending = reader.start(
            "POST", f"{V3}/keys/query", {"device_keys": {each: [] for each in ids}}
        )
        reader.server.clock.advance(0)  # other requests run between cached and uncached users
        assert pending.answer.json == {
            **msgspec.json.decode(msgspec.json.encode(shown)),
            "failures": {},
        }

    def _person(self) -> Person:
        """Choose a user, who uses one of the nodes."""
        person = self._chance.choice(self._people)
        person.user.server = self._node()
        return person

    def _somebody(self) -> User:
        return self._person().user

    def _node(self) -> TestServer:
        return self._chance.choice((self._nodes.first, self._nodes.second))

    def _seed(self) -> int:
        return 1 + next(self._seeds) % 255

    def _publish(self, person: Person, user: User) -> None:
        key, keys = identity_keys(user, self._seed())
        upload(user, device_keys=keys)
        person.devices[user.device_id] = user, key, keys

    def _begin(self) -> None:
        person = self._person()
        if len(person.devices) < 4:
            self._publish(person, another_device(person.user))

    def _end(self) -> None:
        person = self._person()
        if len(person.devices) > 1:
            user, _, _ = person.devices.pop(list(person.devices)[-1])
            user.server = self._node()
            assert user.post(f"{V3}/logout").status == 200

    def _rename(self) -> None:
        person = self._person()
        device_id = self._chance.choice(list(person.devices))
        name = {"display_name": f"{next(self._seeds)}"}
        assert person.user.put(f"{V3}/devices/{device_id}", name).status == 200

    def _reset(self) -> None:
        """Upload new cross-signing keys, or the first ones."""
        person = self._person()
        user = person.user
        master, body = cross_signing_key(user, "master", self._seed())
        person.signing = {}
        keys: dict[str, Any] = {"master_key": body}
        for usage in ("self_signing", "user_signing"):
            person.signing[usage], keys[f"{usage}_key"] = cross_signing_key(
                user, usage, self._seed(), by=master
            )
        person.master = body
        answer = user.post(f"{V3}/keys/device_signing/upload", keys)
        if answer.status == 401:
            auth = password_auth(user.user_id)
            auth["session"] = answer.json["session"]
            answer = user.post(f"{V3}/keys/device_signing/upload", {**keys, "auth": auth})
        assert answer.status == 200, answer.body

    def _sign(self) -> None:
        """Sign a device, or with a device the master key."""
        person = self._person()
        if person.master is None:
            return
        _, key, keys = self._chance.choice(list(person.devices.values()))
        public = next(iter(person.master["keys"].values()))
        name, signed = self._chance.choice(
            [
                (keys["device_id"], person.signing["self_signing"].sign(keys, person.user)),
                (public, key.sign(person.master, person.user)),
            ]
        )
        self._upload(person, {person.user.user_id: {name: signed}})

    def _vouch(self) -> None:
        """One user signs another's key."""
        person, other = self._person(), self._chance.choice(self._people)
        if person.signing and other.master is not None and other is not person:
            public = next(iter(other.master["keys"].values()))
            signed = person.signing["user_signing"].sign(other.master, person.user)
            self._upload(person, {other.user.user_id: {public: signed}})

    def _upload(self, person: Person, signed: dict[str, Any]) -> None:
        answer = person.user.post(f"{V3}/keys/signatures/upload", signed)
        assert answer.json == {"failures": {}}, answer.body


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_cached_keys_match_the_stored_ones(polling_nodes: PollingNodes, seed: int) -> None:
    chance = Random(seed)
    model = KeyModel(polling_nodes, chance)
    for _ in range(60):
        chance.choice(model.steps)()
    polling_nodes.wait()
    for _ in range(6):
        model.ask()
