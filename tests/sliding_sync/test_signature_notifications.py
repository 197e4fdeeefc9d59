"""A new device that waits in sliding sync is notified at once when it is signed, and then gets the
signature. This holds for every order in which database threads work and return, whatever others do,
with lost responses, and after a restore.

Otherwise it would appear as unverified until its request ends, half a minute later; here no time
passes. It acts as clients do, but queries its own keys only when a response lists them as changed.
`MAHALLA_SYNC_RUNS=1000` runs a thousand such histories.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from homeserver.services.streams import recent_changes
from storage.engine.database import PostgresConfig, SQLiteConfig
from storage.maintenance.after_restore import repair_after_restore
from tests.conftest import run_coroutine
from tests.helpers.encrypted_rooms import ENCRYPTION_EVENT
from tests.helpers.http import Pending
from tests.helpers.interleaving import Interleaving
from tests.helpers.keys import V3, PersonalKey, cross_signing_key, identity_keys, query, upload
from tests.helpers.room_actions import create
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list

RUNS = int(os.environ.get("MAHALLA_SYNC_RUNS", "8"))
MOVES = 60
LOST = 0.1
"""In responses of /sync."""
ENCRYPTION = {"e2ee": {"enabled": True}, "to_device": {"enabled": True}}


class NewDevice:
    """Publishes its keys, signs itself with a key of the account, and always waits for changes on
    its connections. It queries its own keys after the first response, and whenever they are listed
    as changed."""

    def __init__(self, user: User, signing: PersonalKey, *, has_two: bool) -> None:
        """`has_two`: one connection for encryption next to that for rooms, as in Element X; else
        one for both, as in Element Web."""
        self.user = user
        self.may_sign = False
        self.known: dict[str, Any] = {}
        """Its keys as it last received them."""
        self._signing = signing
        self._keys = identity_keys(user, 9)[1]
        beside = {name: {"enabled": True} for name in ("account_data", "receipts", "typing")}
        lists = {"all": a_list([0, 19])}
        if has_two:
            self._encryption = SlidingClient(user, "encryption", extensions=ENCRYPTION)
            self._connections = [
                self._encryption,
                SlidingClient(user, lists=lists, extensions=beside),
            ]
        else:
            self._encryption = SlidingClient(user, lists=lists, extensions={**ENCRYPTION, **beside})
            self._connections = [self._encryption]
        self._waiting: dict[str, Pending] = {}
        self._is_outdated = False
        self._asking: Pending | None = None
        self._uploading: Pending | None = None
        self._signed: Pending | None = None

    def is_signed(self, keys: dict[str, Any]) -> bool:
        """Whether these are its keys, with the signature of the account."""
        return self._signing.key_id in keys.get("signatures", {}).get(self.user.user_id, {})

    def moves(self, chance: Random, lost: float) -> list[Callable[[], object]]:
        """Return its possible next moves. `lost`: the probability that a /sync response is lost."""
        moves: list[Callable[[], object]] = []
        for client in self._connections:
            waiting = self._waiting.get(client.body["conn_id"])
            if waiting is None:
                moves.append(partial(self._wait, client))
            elif chance.random() < lost:
                moves.append(partial(self._lose, client, waiting))
            elif waiting.done:
                moves.append(partial(self._take, client, waiting))
        if self._asking is not None and self._asking.done:
            moves.append(self._learn)
        elif self._asking is None and self._is_outdated:
            moves.append(self._ask)
        if self._uploading is None:
            moves.append(self._upload)
        elif self.may_sign and self._signed is None and self._uploading.done:
            moves.append(self._sign)
        return moves

    def check_done(self) -> None:
        """Check that it did everything."""
        assert self._uploading is not None
        assert self._uploading.answer.status == 200
        assert self._signed is not None
        assert self._signed.answer.json == {"failures": {}}
        assert [pending.done for pending in self._waiting.values()] == [False] * len(
            self._connections
        )

    def _wait(self, client: SlidingClient) -> None:
        self._waiting[client.body["conn_id"]] = client.wait()

    def _lose(self, client: SlidingClient, waiting: Pending) -> None:
        waiting.disconnect()
        del self._waiting[client.body["conn_id"]]

    def _take(self, client: SlidingClient, waiting: Pending) -> None:
        assert waiting.answer.status == 200, waiting.answer.body
        answer = waiting.answer.json
        if client is self._encryption:
            received = answer["extensions"]["e2ee"].get("device_lists", {"changed": []})["changed"]
            self._is_outdated = (
                self._is_outdated or client.pos is None or self.user.user_id in received
            )
        client.pos = answer["pos"]
        del self._waiting[client.body["conn_id"]]

    def _ask(self) -> None:
        self._is_outdated = False
        self._asking = self.user.start(
            "POST", f"{V3}/keys/query", {"device_keys": {self.user.user_id: []}}
        )

    def _learn(self) -> None:
        assert self._asking is not None
        self.known = self._asking.answer.json["device_keys"][self.user.user_id].get(
            self.user.device_id, {}
        )
        self._asking = None

    def _upload(self) -> None:
        self._uploading = self.user.start("POST", f"{V3}/keys/upload", {"device_keys": self._keys})

    def _sign(self) -> None:
        signature = {
            self.user.user_id: {self.user.device_id: self._signing.sign(self._keys, self.user)}
        }
        self._signed = self.user.start("POST", f"{V3}/keys/signatures/upload", signature)


class SignatureModel:
    """The new device, and another user who is busy in an encrypted room with it."""

    def __init__(
        self,
        server: TestServer,
        turns: Interleaving,
        chance: Random,
        device: NewDevice,
        bob: User,
        room_id: str,
    ) -> None:
        self._server = server
        self._turns = turns
        self._chance = chance
        self._device = device
        self._bob = bob
        self._room_id = room_id
        self._deeds: list[Pending] = []

    def run(self) -> None:
        """Run some history, then the signature with all requests that are still open. Nothing later
        would make the device query its keys."""
        self._turns.begin(self._chance)
        for _ in range(MOVES):
            what = self._chance.random()
            if what < 0.2:
                self._act()
            elif what < 0.4:
                self._pass_turn()
            else:
                self._move(LOST)
            for _ in range(self._chance.choice([0, 1, 3, 10])):
                self._turns.step()
        self._device.may_sign = True
        steps: list[Callable[[], bool]] = [
            self._turns.step,
            self._pass_turn,
            partial(self._move, 0),
        ]
        while any(step() for step in self._chance.sample(steps, len(steps))):
            pass
        self._turns.end()
        assert [deed.answer.status for deed in self._deeds if deed.answer.status != 200] == []

    def _pass_turn(self) -> bool:
        """Run one turn of the reactor. Return whether there was work."""
        is_due = any(
            call.getTime() <= self._server.clock.seconds()
            for call in self._server.clock.getDelayedCalls()
        )
        self._server.clock.advance(0)
        return is_due

    def _move(self, lost: float) -> bool:
        moves = self._device.moves(self._chance, lost)
        if moves:
            self._chance.choice(moves)()
        return bool(moves)

    def _act(self) -> None:
        number = len(self._deeds)
        if number % 2:
            keys = identity_keys(self._bob, number + 20)[1]
            self._deeds.append(self._bob.start("POST", f"{V3}/keys/upload", {"device_keys": keys}))
        else:
            path = f"{V3}/rooms/{self._room_id}/send/m.room.message/{number}"
            self._deeds.append(
                self._bob.start("PUT", path, {"msgtype": "m.text", "body": f"{number}"})
            )


@pytest.mark.parametrize("seed", range(RUNS))
def test_a_new_device_is_notified_at_once_when_it_is_signed(
    tmp_path: Path,
    database_config: SQLiteConfig | PostgresConfig,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    if seed % 3 == 2:
        monkeypatch.setattr(recent_changes, "MAX_CHANGES", 4)
    turns = Interleaving()
    database = turns.open(database_config)
    server = TestServer(tmp_path, database)
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat", initial_state=[ENCRYPTION_EVENT])
    assert bob.post(f"{V3}/join/{room_id}").status == 200
    upload(alice, device_keys=identity_keys(alice)[1])
    master, master_key = cross_signing_key(alice, "master", 2)
    signing, signing_key = cross_signing_key(alice, "self_signing", 3, master)
    body = {"master_key": master_key, "self_signing_key": signing_key}
    assert alice.post(f"{V3}/keys/device_signing/upload", body).status == 200
    if seed % 2:
        run_coroutine(database.close(), None)
        database = turns.open(database_config)
        Deferred.fromCoroutine(database.write("repair_after_restore", repair_after_restore))
        server = TestServer(tmp_path, database, seed=2, now=server.clock.seconds() + 1)
        alice.server = bob.server = server
    query(alice, alice)
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": alice.user_id}}
    user = User(server, server.post(f"{V3}/login", {**login, "password": "wonderland"}).json)
    device = NewDevice(user, signing, has_two=seed % 4 > 1)
    SignatureModel(server, turns, Random(seed), device, bob, room_id).run()
    device.check_done()
    given = query(user, user)["device_keys"][user.user_id][user.device_id]
    assert device.is_signed(given)
    assert device.is_signed(device.known)
    run_coroutine(database.close(), None)
