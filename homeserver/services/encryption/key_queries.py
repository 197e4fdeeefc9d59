"""Queries and claims of keys of local and remote users.

Laws:
- `failures` names a server that does not answer in time, or answers with an error; the keys of
  other servers are returned anyway. It also names a server whose users have so many keys that the
  response would have no space for the keys of other servers.
- A malformed user ID counts as a user without keys: other servers let such members into rooms, and
  clients query all members.
- Clients query all members of a room in one request. The work is done in pieces, so that other
  requests run in between. Requests to other servers and the response have a bounded size.
- A client can make up server names, and each costs an attempt to connect. So one request contacts
  at most `MAX_UNRELATED_SERVERS` unrelated servers, at a limited rate for each user
  (`rc_key_requests_to_new_servers`). A server is unrelated if it shares no room with the caller,
  and no local user has invited any user in the request from that server to a room of the caller.
  `failures` names the servers that are not contacted.

spec: client-server-api#post_matrixclientv3keysquery, client-server-api#post_matrixclientv3keysclaim
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from operator import methodcaller
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.devices.local_devices import LocalDevices
from federation.devices.published_keys import EncodedKeys, PublishedKeyCache
from federation.peers.identity import ServerIdentity
from federation.protocol.errors import (
    InvalidParam,
    LimitExceeded,
    MatrixError,
    RemoteError,
    TooLarge,
)
from federation.protocol.ids import ServerName, UserID, domain_of, is_user_id
from federation.remote.keys import UserKeys
from federation.rooms.room_servers import RoomServers
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.encryption.device_keys import present_keys
from homeserver.services.encryption.remote_devices import RemoteDevices
from storage.encryption.cross_signing import CrossSigningKey
from storage.encryption.device_keys import DeviceKeysRow
from storage.encryption.published_keys import PublishedKeys

MAX_TIMEOUT_MS: Final = 30_000
MIN_TIMEOUT_MS: Final = 1_000
MAX_USERS: Final = 50_000
"""In one query."""
MAX_KEYS: Final = 100_000
"""In one claim."""
USERS_PER_REQUEST: Final = 1000
"""A query for more users counts as several requests."""
PRESENT_BATCH: Final = 200
"""Users whose keys are added to a response before the reactor serves other requests."""
GROUP_BATCH: Final = 2000
"""Users who are grouped by server before the reactor serves other requests."""
REMOTE_BATCH: Final = 1000
"""Users or devices in one request to another server. The devices of one user are never split, so a
request may have more."""
MAX_RESPONSE_BYTES: Final = 128 << 20
"""Bytes of keys in one response."""
MAX_BYTES_PER_SERVER: Final = 8 << 20
"""Bytes of keys of one server's users in one response, plus `MAX_BYTES_PER_USER` for each user."""
MAX_BYTES_PER_USER: Final = 64 << 10
"""Several times the keys of a user with many devices."""
MAX_UNRELATED_SERVERS: Final = 100
"""Unrelated servers (see the module header) that one query or claim contacts."""
CLAIMED_BY_USER: Final = Limit.KEY_CLAIM_OF_USER
"""A constant, because member access on an enum class is a function call in Python 3.11."""

_partition = methodcaller("partition", ":")
T = TypeVar("T")
V = TypeVar("V")


class KeyQueries:
    """Queries and claims keys for local clients. Used only on the reactor thread."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        own_devices: LocalDevices,
        published: PublishedKeyCache,
        remote: RemoteDevices,
        identity: ServerIdentity,
        servers: RoomServers,
        limiter: RateLimiter,
    ) -> None:
        self._servers = servers
        self._clock = clock
        self._own_devices = own_devices
        self._published = published
        self._remote = remote
        self._identity = identity
        self._limiter = limiter

    def check_query_limits(self, caller: Requester, users: int) -> None:
        """Check the number of users in a query, and count a large query as several requests.
        Raises InvalidParam."""
        if users > MAX_USERS:
            raise InvalidParam(f"A query has at most {MAX_USERS} users")
        if caller.rate_limited and users > USERS_PER_REQUEST:
            self._limiter.count(
                Limit.KEY_REQUEST, caller.user_id, cost=-(-users // USERS_PER_REQUEST) - 1
            )

    def check_claim_limits(self, caller: Requester, keys: int) -> None:
        """Count the keys of a claim. The rate limit accepts a claim of any size while budget is
        left; a large one makes the next one wait longer. Raises InvalidParam, LimitExceeded."""
        if keys > MAX_KEYS:
            raise InvalidParam(f"At most {MAX_KEYS} keys can be claimed at once")
        if caller.rate_limited:
            self._limiter.check_and_overdraw(CLAIMED_BY_USER, caller.user_id, keys)

    async def query(
        self, caller: Requester, wanted: Mapping[str, Sequence[str]], timeout_ms: int
    ) -> dict[str, Any]:
        """Return device keys and cross-signing keys. `wanted`: devices by user; an empty list means
        all devices. Raises TooLarge."""
        response: dict[str, Any] = {"device_keys": {}}
        size = 0
        all_devices = [user_id for user_id, devices in wanted.items() if not devices]
        for users in (
            _batches(all_devices, PRESENT_BATCH)
            if await self._published.is_current(all_devices)
            else ()
        ):
            if response["device_keys"]:
                await deferLater(self._clock, 0)
            size += _show(response, await self._published.get_encoded(users, caller.user_id))
            _check_size(size)
        failures: Mapping[str, Any] = {}
        if len(response["device_keys"]) < len(wanted):
            rest = {
                user_id: devices
                for user_id, devices in wanted.items()
                if user_id not in response["device_keys"]
            }
            failures = await self._add_keys(response, size, caller, rest, timeout_ms)
        return {**response, "failures": failures}

    async def _add_keys(
        self,
        response: dict[str, Any],
        size: int,
        caller: Requester,
        wanted: Mapping[str, Sequence[str]],
        timeout_ms: int,
    ) -> Mapping[str, Any]:
        """Add keys to a response that already has `size` bytes of keys, and return the failures by
        server. Raises TooLarge."""
        local, by_server = await self._group_by_server(wanted)
        asked, failures = await self._request_all(
            caller, by_server, timeout_ms, self._remote.get_keys, lambda _: 1
        )
        remote = [user_id for users in by_server.values() for user_id in users]
        room_left = {
            server: MAX_BYTES_PER_SERVER + MAX_BYTES_PER_USER * len(users)
            for server, users in by_server.items()
        }
        for users in _batches([*local, *remote], PRESENT_BATCH):
            if response["device_keys"]:
                await deferLater(self._clock, 0)
            published = await self._read(
                caller.user_id, [each for each in users if each in local], users, asked
            )
            shown: dict[str, Sequence[str]] = {}
            for user_id in users:
                of_user = _size_of(published, user_id)
                if user_id in local:
                    size += of_user
                    _check_size(size)
                    shown[user_id] = wanted[user_id]
                    continue
                server = domain_of(user_id)
                if of_user > min(room_left[server], MAX_RESPONSE_BYTES - size):
                    failures.setdefault(
                        server, {"error": "Its users have too many keys for one response"}
                    )
                elif user_id in published.devices or server not in failures:
                    size, room_left[server] = size + of_user, room_left[server] - of_user
                    shown[user_id] = wanted[user_id]
            for kind, keys in present_keys(published, caller.user_id, shown).items():
                response.setdefault(kind, {}).update(keys)
        return failures

    async def claim(
        self, caller: Requester, wanted: Mapping[str, Mapping[str, str]], timeout_ms: int
    ) -> dict[str, Any]:
        """Claim one-time keys (or fallback keys) to start Olm sessions with devices. `wanted`:
        algorithm by user and device."""
        if max(len(wanted), sum(map(len, wanted.values()))) <= REMOTE_BATCH and self._are_local(
            wanted
        ):
            return {"one_time_keys": await self._own_devices.do_claim(wanted), "failures": {}}
        local, by_server = await self._group_by_server(wanted)
        claimed: dict[str, Any] = {}
        for batch in _split_by_size(local, len):
            claimed |= await self._own_devices.do_claim(batch)
        if not by_server:
            return {"one_time_keys": claimed, "failures": {}}
        remote, failures = await self._request_all(caller, by_server, timeout_ms, self._claim, len)
        return {"one_time_keys": {**claimed, **remote}, "failures": failures}

    def _are_local(self, user_ids: Iterable[str]) -> bool:
        """Return whether all IDs end in our server name. Malformed ones among them have no keys."""
        servers = {server for _, _, server in map(_partition, user_ids)}
        return servers <= {self._identity.server_name}

    async def _claim(
        self, server: ServerName, wanted: Mapping[str, Mapping[str, str]], seconds: float
    ) -> tuple[Mapping[str, Any], Exception | None]:
        try:
            return await self._remote.claim(server, wanted, seconds), None
        except (RemoteError, MatrixError) as error:
            return {}, error

    async def _find_too_many(
        self, caller: Requester, by_server: Mapping[ServerName, Mapping[str, Any]]
    ) -> set[ServerName]:
        """Return the unrelated servers that must not be contacted, because they exceed the limit.
        Count the other unrelated servers."""
        if not caller.rate_limited or not by_server:
            return set()
        users = (user_id for of_server in by_server.values() for user_id in of_server)
        unknown = await self._servers.find_unrelated(caller.user_id, by_server.keys(), users)
        unrelated = [server for server in by_server if server in unknown]
        if not unrelated:
            return set()
        try:
            self._limiter.check_without_counting(Limit.KEY_REQUEST_NEW_SERVERS, caller.user_id)
        except LimitExceeded:
            return set(unrelated)
        self._limiter.count(
            Limit.KEY_REQUEST_NEW_SERVERS,
            caller.user_id,
            cost=min(len(unrelated), MAX_UNRELATED_SERVERS),
        )
        return set(unrelated[MAX_UNRELATED_SERVERS:])

    async def _request_all(
        self,
        caller: Requester,
        by_server: Mapping[ServerName, Mapping[str, T]],
        timeout_ms: int,
        request: Callable[
            [ServerName, Mapping[str, T], float],
            Awaitable[tuple[Mapping[str, V], Exception | None]],
        ],
        size_of: Callable[[T], int],
    ) -> tuple[dict[str, V], dict[str, dict[str, str]]]:
        """Send each server requests of a bounded size, one after another, until the timeout. Return
        the results by user, and the failures by server. `request` raises nothing."""
        until = self._clock.seconds() + min(max(timeout_ms, MIN_TIMEOUT_MS), MAX_TIMEOUT_MS) / 1000
        found: dict[str, V] = {}
        too_many = await self._find_too_many(caller, by_server)
        failures: dict[str, dict[str, str]] = {
            server: {"error": "You query too many servers with which you share no room"}
            for server in too_many
        }

        async def request_one(server: ServerName, users: Mapping[str, T]) -> None:
            for batch in _split_by_size(users, size_of):
                seconds = until - self._clock.seconds()
                if seconds <= 0:
                    failures.setdefault(server, {"error": "It did not answer in time"})
                    break
                response, failure = await request(server, batch, seconds)
                found.update(response)
                if failure is not None:
                    failures[server] = {"error": str(failure)}

        asked = [(server, users) for server, users in by_server.items() if server not in too_many]
        await gatherResults([Deferred.fromCoroutine(request_one(*each)) for each in asked])
        return found, failures

    async def _read(
        self,
        caller: UserID,
        local: Sequence[str],
        users: Sequence[str],
        asked: Mapping[str, UserKeys],
    ) -> PublishedKeys:
        """Return the published keys: of the users in `asked` the fresh ones, of others the stored
        ones."""
        fetched = {user_id: asked[user_id] for user_id in users if user_id in asked}
        others = {*users} - {*local} - fetched.keys()
        stored = await self._published.get_published(local, others, caller)
        return PublishedKeys(
            {
                **stored.devices,
                **{user_id: _rows(user_id, keys) for user_id, keys in fetched.items()},
            },
            {
                **stored.cross_signing,
                **{user_id: _cross_signing(user_id, keys) for user_id, keys in fetched.items()},
            },
            stored.signatures,
        )

    async def _group_by_server(
        self, wanted: Mapping[str, T]
    ) -> tuple[dict[str, T], dict[ServerName, dict[str, T]]]:
        """Return the entries of local users, and those of remote users by server."""
        local: dict[str, T] = {}
        by_server: dict[ServerName, dict[str, T]] = {}
        for number, (user_id, what) in enumerate(wanted.items(), 1):
            if number % GROUP_BATCH == 0:
                await deferLater(self._clock, 0)
            if not is_user_id(user_id):
                continue
            server = domain_of(UserID(user_id))
            if server == self._identity.server_name:
                local[user_id] = what
            else:
                by_server.setdefault(server, {})[user_id] = what
        return local, by_server


def _batches(users: Sequence[str], number: int) -> Iterator[Sequence[str]]:
    return (users[at : at + number] for at in range(0, max(len(users), 1), number))


def _split_by_size(
    users: Mapping[str, T], size_of: Callable[[T], int]
) -> Iterator[Mapping[str, T]]:
    """Split the users into pieces that weigh at most `REMOTE_BATCH`, unless a single user weighs
    more."""
    if users and sum(map(size_of, users.values())) <= REMOTE_BATCH:
        yield users
        return
    batch: dict[str, T] = {}
    size = 0
    for user_id, what in users.items():
        if batch and size + size_of(what) > REMOTE_BATCH:
            yield batch
            batch, size = {}, 0
        batch[user_id] = what
        size += size_of(what)
    if batch:
        yield batch


def _show(response: dict[str, Any], known: Mapping[str, EncodedKeys]) -> int:
    """Add the public keys of these users to the response and return their size in bytes."""
    response["device_keys"].update({user_id: shown.devices for user_id, shown in known.items()})
    for user_id, shown in known.items():
        if shown.cross_signing:
            for usage, key in shown.cross_signing.items():
                response.setdefault(f"{usage}_keys", {})[user_id] = key
    return sum([shown.size for shown in known.values()])


def _check_size(size: int) -> None:
    """Raises TooLarge."""
    if size > MAX_RESPONSE_BYTES:
        raise TooLarge("These users have too many keys for one response: query fewer users at once")


def _size_of(published: PublishedKeys, user_id: str) -> int:
    devices = sum([len(row.keys) for row in published.devices.get(user_id, ())])
    return devices + sum(
        [len(key.content) for key in published.cross_signing.get(user_id, {}).values()]
    )


def _rows(user_id: str, keys: UserKeys) -> list[DeviceKeysRow]:
    return [
        DeviceKeysRow(user_id, device_id, content, keys.names.get(device_id))
        for device_id, content in keys.devices.items()
    ]


def _cross_signing(user_id: str, keys: UserKeys) -> dict[str, CrossSigningKey]:
    return {
        usage: CrossSigningKey(user_id, usage, key.public_key, key.content)
        for usage, key in keys.cross_signing.items()
    }
