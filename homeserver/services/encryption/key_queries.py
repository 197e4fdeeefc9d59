"""Keys of whomever a client asks for: our own users', and other servers' users'.

Laws:
- A server that does not answer in time is named in `failures`, and costs the others nothing. So is
  one whose users have so many keys that those of others would find no place in the answer.
- What is no user id is somebody without keys: rooms have such members, whom other servers let in,
  and clients ask for all members.
- Clients ask for all members of a room at once. That is done in pieces: others are served in
  between, other servers get requests of a size that they take, and the answer is bounded.
- Names of servers are easily made up, and each costs this one a try. So of servers with which who
  asks shares no room, and of whose users none is invited to one by somebody here, few are asked for
  one question, and a user has so many in time (`rc_key_strangers`); the others are named in
  `failures`.

spec: client-server-api#post_matrixclientv3keysquery, client-server-api#post_matrixclientv3keysclaim
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from operator import methodcaller
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.devices.local_devices import OwnDevices
from federation.devices.published_keys import KeysOfPeople, ShownKeys
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

LONGEST_TIMEOUT_MS: Final = 30_000
SHORTEST_TIMEOUT_MS: Final = 1_000
MOST_USERS: Final = 50_000
"""In one question."""
MOST_KEYS: Final = 100_000
"""In one claim."""
USERS_OF_A_REQUEST: Final = 1000
"""A question for keys of more users counts as several."""
PRESENTED_AT_ONCE: Final = 200
"""Users whose keys are put into an answer before others are served."""
SORTED_AT_ONCE: Final = 2000
"""Users who are sorted by their servers before others are served."""
ASKED_AT_ONCE: Final = 1000
"""Users, or devices, in one request to another server; of devices of one user it may be more."""
LARGEST_ANSWER: Final = 128 << 20
"""Bytes of keys in one answer."""
LARGEST_OF_SERVER: Final = 8 << 20
"""Bytes of keys of another server's users in one answer, and `LARGEST_OF_USER` for each of them."""
LARGEST_OF_USER: Final = 64 << 10
"""Several times what people with many devices have."""
MOST_STRANGERS: Final = 100
"""Servers with which who asks shares no room, for one question or claim."""
CLAIMED_BY_USER: Final = Limit.CLAIMED_BY_USER
"""To ask the class for it is a call of a function, in Python 3.11."""

_split = methodcaller("partition", ":")
T = TypeVar("T")
V = TypeVar("V")


class EveryonesKeys:
    """Finds and claims keys for our users' clients. For the reactor thread."""

    def __init__(
        self,
        clock: IReactorTime,
        own_devices: OwnDevices,
        published: KeysOfPeople,
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

    def check_asked(self, caller: Requester, users: int) -> None:
        """Count a question for keys of so many users beyond the request that it is. Raises
        InvalidParam."""
        if users > MOST_USERS:
            raise InvalidParam(f"A query has at most {MOST_USERS} users")
        if caller.rate_limited and users > USERS_OF_A_REQUEST:
            self._limiter.count(
                Limit.KEY_REQUEST, caller.user_id, cost=-(-users // USERS_OF_A_REQUEST) - 1
            )

    def check_claimed(self, caller: Requester, keys: int) -> None:
        """Count a claim of so many keys. However many it is, it may be made; then the next one
        waits the longer. Raises InvalidParam, LimitExceeded."""
        if keys > MOST_KEYS:
            raise InvalidParam(f"At most {MOST_KEYS} keys can be claimed at once")
        if caller.rate_limited:
            self._limiter.check_then_count(CLAIMED_BY_USER, caller.user_id, keys)

    async def get_keys(
        self, caller: Requester, wanted: Mapping[str, Sequence[str]], timeout_ms: int
    ) -> dict[str, Any]:
        """Keys of devices and of cross-signing. `wanted`: devices by user, none for all of them.
        Raises TooLarge."""
        answer: dict[str, Any] = {"device_keys": {}}
        size = 0
        whole = [user_id for user_id, devices in wanted.items() if not devices]
        for users in (
            _pieces(whole, PRESENTED_AT_ONCE) if await self._published.is_current(whole) else ()
        ):
            if answer["device_keys"]:
                await deferLater(self._clock, 0)
            size += _show(answer, await self._published.get_shown(users, caller.user_id))
            _check_size(size)
        failures: Mapping[str, Any] = {}
        if len(answer["device_keys"]) < len(wanted):
            rest = {
                user_id: devices
                for user_id, devices in wanted.items()
                if user_id not in answer["device_keys"]
            }
            failures = await self._add_keys(answer, size, caller, rest, timeout_ms)
        return {**answer, "failures": failures}

    async def _add_keys(
        self,
        answer: dict[str, Any],
        size: int,
        caller: Requester,
        wanted: Mapping[str, Sequence[str]],
        timeout_ms: int,
    ) -> Mapping[str, Any]:
        """Put keys into an answer that has so many bytes of them; what failed, by server. Raises
        TooLarge."""
        local, by_server = await self._split(wanted)
        asked, failures = await self._ask_all(
            caller, by_server, timeout_ms, self._remote.get_keys, lambda _: 1
        )
        remote = [user_id for users in by_server.values() for user_id in users]
        room_left = {
            server: LARGEST_OF_SERVER + LARGEST_OF_USER * len(users)
            for server, users in by_server.items()
        }
        for users in _pieces([*local, *remote], PRESENTED_AT_ONCE):
            if answer["device_keys"]:
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
                if of_user > min(room_left[server], LARGEST_ANSWER - size):
                    failures.setdefault(
                        server, {"error": "The keys of its users are too many for one answer"}
                    )
                elif user_id in published.devices or server not in failures:
                    size, room_left[server] = size + of_user, room_left[server] - of_user
                    shown[user_id] = wanted[user_id]
            for kind, keys in present_keys(published, caller.user_id, shown).items():
                answer.setdefault(kind, {}).update(keys)
        return failures

    async def do_claim(
        self, caller: Requester, wanted: Mapping[str, Mapping[str, str]], timeout_ms: int
    ) -> dict[str, Any]:
        """One-time keys (or fallback keys) for conversations with devices. `wanted`: algorithm by
        user and device."""
        if max(len(wanted), sum(map(len, wanted.values()))) <= ASKED_AT_ONCE and self._are_ours(
            wanted
        ):
            return {"one_time_keys": await self._own_devices.do_claim(wanted), "failures": {}}
        local, by_server = await self._split(wanted)
        claimed: dict[str, Any] = {}
        for piece in _weighed(local, len):
            claimed |= await self._own_devices.do_claim(piece)
        if not by_server:
            return {"one_time_keys": claimed, "failures": {}}
        by_others, failures = await self._ask_all(caller, by_server, timeout_ms, self._claim, len)
        return {"one_time_keys": {**claimed, **by_others}, "failures": failures}

    def _are_ours(self, user_ids: Iterable[str]) -> bool:
        """Whether all of them are of this server, or no user ids: nothing is found of such."""
        return {server for _, _, server in map(_split, user_ids)} <= {self._identity.server_name}

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
        """Those of the servers that are not asked, as the caller shares a room with none of them
        and they are too many; the others count."""
        if not caller.rate_limited or not by_server:
            return set()
        users = (user_id for of_server in by_server.values() for user_id in of_server)
        unknown = await self._servers.find_strangers(caller.user_id, by_server.keys(), users)
        strangers = [server for server in by_server if server in unknown]
        if not strangers:
            return set()
        try:
            self._limiter.check_only(Limit.KEY_STRANGERS, caller.user_id)
        except LimitExceeded:
            return set(strangers)
        self._limiter.count(
            Limit.KEY_STRANGERS, caller.user_id, cost=min(len(strangers), MOST_STRANGERS)
        )
        return set(strangers[MOST_STRANGERS:])

    async def _ask_all(
        self,
        caller: Requester,
        by_server: Mapping[ServerName, Mapping[str, T]],
        timeout_ms: int,
        ask: Callable[
            [ServerName, Mapping[str, T], float],
            Awaitable[tuple[Mapping[str, V], Exception | None]],
        ],
        weigh: Callable[[T], int],
    ) -> tuple[dict[str, V], dict[str, dict[str, str]]]:
        """What servers answer, each asked for its users in requests of a bounded size, one after
        another, as long as there is time; and what failed, by server. `ask` raises nothing."""
        until = (
            self._clock.seconds()
            + min(max(timeout_ms, SHORTEST_TIMEOUT_MS), LONGEST_TIMEOUT_MS) / 1000
        )
        found: dict[str, V] = {}
        too_many = await self._find_too_many(caller, by_server)
        failures: dict[str, dict[str, str]] = {
            server: {"error": "You ask too many servers with which you share no room"}
            for server in too_many
        }

        async def ask_one(server: ServerName, users: Mapping[str, T]) -> None:
            for piece in _weighed(users, weigh):
                seconds = until - self._clock.seconds()
                if seconds <= 0:
                    failures.setdefault(server, {"error": "It did not answer all in time"})
                    break
                answer, failure = await ask(server, piece, seconds)
                found.update(answer)
                if failure is not None:
                    failures[server] = {"error": str(failure)}

        asked = [(server, users) for server, users in by_server.items() if server not in too_many]
        await gatherResults([Deferred.fromCoroutine(ask_one(*each)) for each in asked])
        return found, failures

    async def _read(
        self,
        caller: UserID,
        local: Sequence[str],
        users: Sequence[str],
        asked: Mapping[str, UserKeys],
    ) -> PublishedKeys:
        """What these have published, as far as it was asked for just now, or is kept."""
        now = {user_id: asked[user_id] for user_id in users if user_id in asked}
        kept = {*users} - {*local} - now.keys()
        stored = await self._published.get_published(local, kept, caller)
        return PublishedKeys(
            {**stored.devices, **{user_id: _rows(user_id, keys) for user_id, keys in now.items()}},
            {
                **stored.cross_signing,
                **{user_id: _cross_signing(user_id, keys) for user_id, keys in now.items()},
            },
            stored.signatures,
        )

    async def _split(
        self, wanted: Mapping[str, T]
    ) -> tuple[dict[str, T], dict[ServerName, dict[str, T]]]:
        """Our own users, and others by their servers."""
        local: dict[str, T] = {}
        by_server: dict[ServerName, dict[str, T]] = {}
        for number, (user_id, what) in enumerate(wanted.items(), 1):
            if number % SORTED_AT_ONCE == 0:
                await deferLater(self._clock, 0)
            if not is_user_id(user_id):
                continue
            server = domain_of(UserID(user_id))
            if server == self._identity.server_name:
                local[user_id] = what
            else:
                by_server.setdefault(server, {})[user_id] = what
        return local, by_server


def _pieces(users: Sequence[str], number: int) -> Iterator[Sequence[str]]:
    return (users[at : at + number] for at in range(0, max(len(users), 1), number))


def _weighed(users: Mapping[str, T], weigh: Callable[[T], int]) -> Iterator[Mapping[str, T]]:
    """The users in pieces that weigh `ASKED_AT_ONCE`, if no single one weighs more."""
    if users and sum(map(weigh, users.values())) <= ASKED_AT_ONCE:
        yield users
        return
    piece: dict[str, T] = {}
    weight = 0
    for user_id, what in users.items():
        if piece and weight + weigh(what) > ASKED_AT_ONCE:
            yield piece
            piece, weight = {}, 0
        piece[user_id] = what
        weight += weigh(what)
    if piece:
        yield piece


def _show(answer: dict[str, Any], known: Mapping[str, ShownKeys]) -> int:
    """Put what everybody sees of these users into the answer; how many bytes it is."""
    answer["device_keys"].update({user_id: shown.devices for user_id, shown in known.items()})
    for user_id, shown in known.items():
        if shown.cross_signing:
            for usage, key in shown.cross_signing.items():
                answer.setdefault(f"{usage}_keys", {})[user_id] = key
    return sum([shown.size for shown in known.values()])


def _check_size(size: int) -> None:
    """Raises TooLarge."""
    if size > LARGEST_ANSWER:
        raise TooLarge(
            "The keys of these users are too many for one answer: ask for fewer users at once"
        )


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
