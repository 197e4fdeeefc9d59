"""Scenarios of end-to-end encryption: key queries, key claims, to-device messages."""

from itertools import count
from typing import Any, Final
from urllib.parse import quote

import msgspec

from bench_parts.bench import Bench
from bench_parts.client import V3, User
from bench_parts.connection import Connection
from bench_parts.measurement import Figures

ALGORITHM: Final = "signed_curve25519"
KEY: Final = "x" * 43
SIGNATURE: Final = "s" * 86
KEYS_A_DEVICE: Final = 50
USERS_PER_QUERY: Final = 20
"""The number of users in one key query."""


class _WhoAmI(msgspec.Struct):
    device_id: str


_whoami_decoder = msgspec.json.Decoder(_WhoAmI)


class Devices:
    """Users with published keys: the first users of the world."""

    def __init__(self, bench: Bench) -> None:
        self._world = bench.world
        self._transactions = count(1)
        self.people: list[tuple[User, str]] = []

    async def publish(self, number: int) -> None:
        """Publish identity keys, one-time keys and a fallback key for each user. A second call
        replaces used one-time keys."""
        users = await self._world.people(number)
        made: dict[int, tuple[User, str]] = {}
        tag = next(self._transactions)

        async def upload(at: int, link: Connection) -> None:
            user = users[at]
            device = _whoami_decoder.decode(
                await link.request("GET", f"{V3}/account/whoami", None, user.token)
            ).device_id
            await link.request(
                "POST", f"{V3}/keys/upload", _upload(user.user_id, device, tag), user.token
            )
            made[at] = (user, device)

        await self._world.run(upload, len(users), at_once=8)
        self.people = [entry for _, entry in sorted(made.items())]

    async def query(
        self, link: Connection, requester: User, users: list[tuple[User, str]]
    ) -> bytes:
        request: dict[str, list[str]] = {user.user_id: [] for user, _ in users}
        return await link.request(
            "POST", f"{V3}/keys/query", {"device_keys": request}, requester.token
        )

    async def claim(self, link: Connection, requester: User, users: tuple[User, str]) -> bytes:
        request = {users[0].user_id: {users[1]: ALGORITHM}}
        return await link.request(
            "POST", f"{V3}/keys/claim", {"one_time_keys": request}, requester.token
        )

    async def send(self, link: Connection, sender: User, users: list[tuple[User, str]]) -> bytes:
        path = f"{V3}/sendToDevice/m.room.encrypted/{quote(str(next(self._transactions)))}"
        messages = {
            user.user_id: {device: _encrypted(number)}
            for number, (user, device) in enumerate(users)
        }
        return await link.request("PUT", path, {"messages": messages}, sender.token)


def _encrypted(number: int) -> dict[str, Any]:
    """Return a content of a kilobyte, different for each device like real ciphertexts."""
    body = {"type": 0, "body": f"{number:b>1000}"}
    return {
        "algorithm": "m.olm.v1.curve25519-aes-sha2",
        "sender_key": KEY,
        "ciphertext": {KEY: body},
    }


def _upload(user_id: str, device_id: str, tag: int) -> dict[str, Any]:
    signatures = {user_id: {f"ed25519:{device_id}": SIGNATURE}}
    return {
        "device_keys": {
            "user_id": user_id,
            "device_id": device_id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {f"curve25519:{device_id}": KEY, f"ed25519:{device_id}": KEY},
            "signatures": signatures,
        },
        "one_time_keys": {
            f"{ALGORITHM}:{tag}-{number}": {"key": KEY, "signatures": signatures}
            for number in range(KEYS_A_DEVICE)
        },
        "fallback_keys": {
            f"{ALGORITHM}:{tag}-f": {"key": KEY, "fallback": True, "signatures": signatures}
        },
    }


async def keys_query(bench: Bench, figures: Figures) -> None:
    """The keys of 20 users with one device each; 50 concurrent queries."""
    sizes, devices = bench.world.sizes, Devices(bench)
    await devices.publish(sizes.senders)
    people = devices.people
    async with bench.meter.measure("keys_query", figures) as run:
        await bench.world.run(
            lambda at, link: devices.query(
                link,
                people[at % len(people)][0],
                [people[(at + step) % len(people)] for step in range(USERS_PER_QUERY)],
            ),
            sizes.key_requests,
            at_once=len(people),
            run=run,
        )


async def keys_claim(bench: Bench, figures: Figures) -> None:
    """One one-time key; 50 concurrent claims, each for another device. No device runs out of
    keys."""
    sizes, devices = bench.world.sizes, Devices(bench)
    await devices.publish(sizes.senders)
    people = devices.people
    async with bench.meter.measure("keys_claim", figures) as run:
        await bench.world.run(
            lambda at, link: devices.claim(
                link, people[at % len(people)][0], people[(at + 1) % len(people)]
            ),
            min(sizes.key_requests, len(people) * KEYS_A_DEVICE),
            at_once=len(people),
            run=run,
        )


async def to_device(bench: Bench, figures: Figures) -> None:
    """One request with a message to each of 1,000 devices, such as the keys of a new session for a
    large room."""
    sizes, devices = bench.world.sizes, Devices(bench)
    await devices.publish(sizes.devices)
    sender = devices.people[0][0]
    async with bench.meter.measure("to_device", figures) as run:
        await bench.world.run(
            lambda _, link: devices.send(link, sender, devices.people),
            sizes.key_shares,
            at_once=2,
            run=run,
        )
        run.notes["devices in each request"] = len(devices.people)
