"""Keys of whomever a client asks for: our own users', and other servers' users'.

A server that does not answer in time is named in `failures`, and costs the others nothing.

spec: client-server-api#post_matrixclientv3keysquery, client-server-api#post_matrixclientv3keysclaim
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, gatherResults

from federation.identity import ServerIdentity
from federation.own_devices import MOST_USERS, OwnDevices
from federation.protocol.errors import InvalidParam, MatrixError, RemoteError
from federation.protocol.ids import ServerName, UserID, domain_of, parse_user_id
from federation.published_keys import KeysOfPeople
from federation.remote.keys import UserKeys
from homeserver.services.device_keys import present_keys
from homeserver.services.remote_devices import RemoteDevices
from storage.cross_signing import CrossSigningKey
from storage.device_keys import DeviceKeysRow
from storage.published_keys import PublishedKeys

LONGEST_TIMEOUT_MS: Final = 30_000
SHORTEST_TIMEOUT_MS: Final = 1_000


T = TypeVar("T")


class EveryonesKeys:
    """Finds and claims keys for our users' clients."""

    def __init__(
        self,
        own_devices: OwnDevices,
        published: KeysOfPeople,
        remote: RemoteDevices,
        identity: ServerIdentity,
    ) -> None:
        self._own_devices = own_devices
        self._published = published
        self._remote = remote
        self._identity = identity

    async def get_keys(self, caller: UserID, wanted: Mapping[str, Sequence[str]], timeout_ms: int) -> dict[str, Any]:
        """Keys of devices and of cross-signing. `wanted`: devices by user, none for all of them. Raises InvalidParam."""
        local, by_server = self._split(wanted)
        failures: dict[str, dict[str, str]] = {}
        seconds = _seconds(timeout_ms)

        async def ask(server: ServerName, users: Mapping[str, Sequence[str]]) -> Mapping[str, UserKeys]:
            found, failure = await self._remote.get_keys(server, users, seconds)
            if failure is not None:
                failures[server] = {"error": str(failure)}
            return found

        asked: dict[str, UserKeys] = {}
        for found in await gatherResults(
            [Deferred.fromCoroutine(ask(server, users)) for server, users in by_server.items()]
        ):
            asked.update(found)
        remote = [user_id for users in by_server.values() for user_id in users]
        stored = await self._published.get_published(local, [each for each in remote if each not in asked], caller)
        published = PublishedKeys(
            {**stored.devices, **{user_id: _rows(user_id, keys) for user_id, keys in asked.items()}},
            {**stored.cross_signing, **{user_id: _cross_signing(user_id, keys) for user_id, keys in asked.items()}},
            stored.signatures,
        )
        shown = {
            user_id: devices
            for user_id, devices in wanted.items()
            if user_id in local or user_id in published.devices or domain_of(user_id) not in failures
        }
        return {**present_keys(published, caller, shown), "failures": failures}

    async def do_claim(self, wanted: Mapping[str, Mapping[str, str]], timeout_ms: int) -> dict[str, Any]:
        """One-time keys (or fallback keys) for conversations with devices. `wanted`: algorithm by user and device.

        Raises InvalidParam.
        """
        if sum(map(len, wanted.values())) > MOST_USERS:
            raise InvalidParam(f"At most {MOST_USERS} keys can be claimed at once")
        local, by_server = self._split(wanted)
        claimed: dict[str, Any] = await self._own_devices.do_claim(local)
        failures: dict[str, dict[str, str]] = {}
        seconds = _seconds(timeout_ms)

        async def ask(server: ServerName, users: Mapping[str, Mapping[str, str]]) -> Mapping[str, Any]:
            try:
                return await self._remote.claim(server, users, seconds)
            except (RemoteError, MatrixError) as error:
                failures[server] = {"error": str(error)}
                return {}

        for found in await gatherResults(
            [Deferred.fromCoroutine(ask(server, users)) for server, users in by_server.items()]
        ):
            claimed.update(found)
        return {"one_time_keys": claimed, "failures": failures}

    def _split(self, wanted: Mapping[str, T]) -> tuple[dict[str, T], dict[ServerName, dict[str, T]]]:
        """Our own users, and others by their servers. Raises InvalidParam."""
        if len(wanted) > MOST_USERS:
            raise InvalidParam(f"A query has at most {MOST_USERS} users")
        local: dict[str, T] = {}
        by_server: dict[ServerName, dict[str, T]] = {}
        for user_id, what in wanted.items():
            server = domain_of(parse_user_id(user_id))
            if server == self._identity.server_name:
                local[user_id] = what
            else:
                by_server.setdefault(server, {})[user_id] = what
        return local, by_server


def _seconds(timeout_ms: int) -> float:
    return min(max(timeout_ms, SHORTEST_TIMEOUT_MS), LONGEST_TIMEOUT_MS) / 1000


def _rows(user_id: str, keys: UserKeys) -> list[DeviceKeysRow]:
    return [
        DeviceKeysRow(user_id, device_id, content, keys.names.get(device_id))
        for device_id, content in keys.devices.items()
    ]


def _cross_signing(user_id: str, keys: UserKeys) -> dict[str, CrossSigningKey]:
    return {
        usage: CrossSigningKey(user_id, usage, key.public_key, key.content) for usage, key in keys.cross_signing.items()
    }
