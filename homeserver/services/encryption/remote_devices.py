"""Device lists of remote users: fetched once, then updated by EDUs of their servers.

Laws:
- A list is stored for users who share a room with a local user: servers send updates only for
  these. When a user begins to share a room, the write of the join marks the user's list as stale,
  because the user's server sent no updates before (`storage/encryption/remote_devices.py`).
- An update makes the list stale if updates before it are missing, or if it cannot be understood. An
  update with an old stream ID makes the list stale only if it contradicts the stored device: then
  the user's server may have been restored from a backup.
- A stale list is fetched again, immediately or by a job. If a key query cannot fetch it, the stored
  list is returned, together with the failure. Updates cause at most one immediate fetch per minute
  of the same list.
- If any node receives an update while a list is being fetched, the fetched list is stored as stale.
  To detect this, the write compares the position of the user's last device change with the position
  before the fetch.
- A server may send updates only for its own users.

spec: server-server-api#device-management
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from federation.peers.client import RefusedByRemote, get_retry_after_ms, is_no_answer
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.shared_work import SharedWork
from federation.protocol.errors import InvalidParam, MatrixError, RemoteError
from federation.protocol.ids import ServerName, UserID, domain_of, is_user_id
from federation.remote.keys import (
    MAX_DEVICES,
    MAX_LIST_BYTES,
    DeviceKeyClient,
    UserKeys,
    add_cross_signing_key,
    add_device,
    is_device_id,
    is_stream_id,
)
from federation.rooms.memberships import Memberships
from federation.sender.sender import FederationSender
from storage.cache import LRU
from storage.encryption.cross_signing import CrossSigningKey
from storage.encryption.device_keys import DeviceKeysRow
from storage.encryption.remote_devices import DeviceListUpdate, RemoteDeviceStore
from storage.engine.database import DatabaseUnavailable
from storage.rooms.memberships import MembershipStore

MAX_FETCHES_PER_QUERY: Final = 20
"""Lists of one server's users that one query fetches and stores. Keys of further users are only
queried."""
CONCURRENT_RESYNCS: Final = 5
RESYNC_SECONDS: Final = 30.0
RESYNC_INTERVAL: Final = 60.0
"""Minimum seconds between two immediate resyncs of a list. A job fetches it otherwise."""
MAX_RESYNC_SERVERS: Final = 100
"""Servers from which stale lists are fetched at the same time."""
CLAIM_RETRY_SECONDS: Final = 1.0
"""Seconds between two attempts to claim one-time keys from an unreachable server."""
MAX_PREV_IDS: Final = 100
MAX_SIGNING_KEY_DIGESTS: Final = 10_000
"""Users whose latest m.signing_key_update is known."""


class RemoteDevices:
    """Fetches keys of remote users, and receives updates of them. Used only on the reactor
    thread."""

    log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        store: RemoteDeviceStore,
        remote: DeviceKeyClient,
        memberships: Memberships,
        membership_store: MembershipStore,
        sender: FederationSender,
        is_local: Callable[[str], bool],
    ) -> None:
        self._clock = clock
        self._store = store
        self._remote = remote
        self._memberships = memberships
        self._membership_store = membership_store
        self._sender = sender
        self._is_local = is_local
        self._fetching: SharedWork[str, None] = SharedWork()
        self._slots = DeferredSemaphore(CONCURRENT_RESYNCS)
        self._resyncs: dict[str, float] = {}
        """Start times of recent immediate resyncs by user, the oldest first. They are removed by
        age, so no `LRU`."""
        self._resynced_upto = ""
        self._swept_upto = ""
        self._backoff: PeerBackoff[ServerName] = PeerBackoff(
            now_ms=lambda: int(clock.seconds() * 1000)
        )
        """Servers that asked us to wait with background fetches."""
        self._resyncing: set[ServerName] = set()
        """Servers from which stale lists are being fetched."""
        self._signing_key_digests: LRU[str, bytes] = LRU(max_entries=MAX_SIGNING_KEY_DIGESTS)
        """Digests of the latest m.signing_key_update by user."""

    async def get_keys(
        self, server: ServerName, wanted: Mapping[str, Sequence[str]], seconds: float
    ) -> tuple[Mapping[str, UserKeys], Exception | None]:
        """Bring the stored lists of one server's users up to date. Return the keys of users without
        a stored list, and a failure: then stored lists may be stale."""
        lists = await self._store.get_lists(wanted)
        shared = await self._membership_store.get_users_sharing_rooms(wanted)
        unshared = [user_id for user_id in lists if user_id not in shared]
        if unshared:
            await self._store.remove_unshared(unshared)
        missing = [
            user_id
            for user_id in wanted
            if user_id in unshared or user_id not in lists or lists[user_id].is_stale
        ]
        if not missing:
            return {}, None
        if self._sender.is_unresponsive(server):
            return {}, _unreachable(server)
        to_fetch = [user_id for user_id in missing if user_id in shared][:MAX_FETCHES_PER_QUERY]
        to_query = {user_id: wanted[user_id] for user_id in missing if user_id not in to_fetch}
        asked_at = self._clock.seconds()
        fetches = [Deferred.fromCoroutine(self._fetch(user_id, seconds)) for user_id in to_fetch]
        failure: Exception | None = None
        response: Mapping[str, UserKeys] = {}
        try:
            if to_query:
                response = await self._remote.query(server, to_query, seconds)
        except (RemoteError, MatrixError) as error:
            failure = error
        for fetch in fetches:
            try:
                await fetch
            except (RemoteError, MatrixError) as error:
                failure = error
        self._record(server, asked_at, failure)
        return response, failure

    async def claim(
        self, server: ServerName, wanted: Mapping[str, Mapping[str, str]], seconds: float
    ) -> Mapping[str, Any]:
        """Claim one-time keys of one server's users. Retry within the timeout if the server may be
        restarting: without a key, the recipient cannot read the message. Raises RemoteError,
        Forbidden."""
        if self._sender.is_unresponsive(server) and await self._sender.is_down(server):
            raise _unreachable(server)
        until = self._clock.seconds() + seconds
        failure: Exception | None = None
        try:
            while True:
                asked_at = self._clock.seconds()
                left = until - asked_at
                try:
                    return await self._remote.claim(server, wanted, left)
                except RemoteError as error:
                    has_time = until - self._clock.seconds() > CLAIM_RETRY_SECONDS
                    if not (
                        has_time
                        and is_no_answer(error)
                        and await self._may_be_starting(server, wanted)
                    ):
                        raise
                await deferLater(self._clock, CLAIM_RETRY_SECONDS)
        except (RemoteError, MatrixError) as error:
            failure = error
            raise
        finally:
            self._record(server, asked_at, failure)

    async def _may_be_starting(self, server: ServerName, user_ids: Iterable[str]) -> bool:
        """Return whether a server that does not answer may do so soon. A server whose users share
        no room with local ones may not exist: it is not retried."""
        return not await self._sender.is_down(server) and bool(
            await self._membership_store.get_users_sharing_rooms(user_ids)
        )

    async def shares_room(self, user_id: str) -> bool:
        """Return whether a local user shares a room with this user."""
        rows = await self._memberships.of_user(UserID(user_id))
        for room_nid in [nid for nid, row in rows.items() if row.membership == "join"]:
            if await self._memberships.local_members(room_nid):
                return True
        # another process may have accepted a join that this one has not seen yet
        return user_id in await self._membership_store.get_users_sharing_rooms([user_id])

    async def receive_device_list_update(
        self, origin: ServerName, content: Mapping[str, Any]
    ) -> None:
        """Receive m.device_list_update. Raises InvalidParam."""
        user_id = _check_user(origin, content)
        device_id, stream_id, prev_ids = (
            content.get("device_id"),
            content.get("stream_id"),
            content.get("prev_id", []),
        )
        if (
            not isinstance(device_id, str)
            or not is_device_id(device_id)
            or not is_stream_id(stream_id)
        ):
            raise InvalidParam("device_id or stream_id is missing or malformed")
        if not await self.shares_room(user_id):
            if await self._store.get_lists([user_id]):
                await self._store.remove_unshared([user_id])
            return
        keys = UserKeys()
        add_device(
            keys, user_id, device_id, content.get("keys"), content.get("device_display_name")
        )
        is_gone = content.get("deleted") is True or content.get("keys") is None
        device = None if is_gone or device_id not in keys.devices else _rows(user_id, keys)[0]
        is_clear = is_gone or device is not None
        change = DeviceListUpdate(
            user_id, device_id, stream_id, _prev_ids(prev_ids), device, is_clear
        )
        if await self._store.apply_update(change, MAX_DEVICES, MAX_LIST_BYTES):
            self._resync(user_id)

    async def receive_signing_key_update(
        self, origin: ServerName, content: Mapping[str, Any]
    ) -> None:
        """Receive m.signing_key_update. Raises InvalidParam."""
        user_id = _check_user(origin, content)
        if not await self.shares_room(user_id):
            return
        keys = UserKeys()
        for usage in ("master", "self_signing"):
            add_cross_signing_key(keys, user_id, usage, content.get(f"{usage}_key"))
        found = _cross_signing(user_id, keys)
        digest = sha256(b"".join([key.content for key in found])).digest()
        is_repeated = self._signing_key_digests.peek(user_id) == digest
        if is_repeated and not await self._store.get_lists([user_id]):
            # no stored list to compare with, and users were notified the first time
            return
        await self._store.set_cross_signing(user_id, found)
        self._signing_key_digests.put(user_id, digest)

    async def do_resync(self, limit: int) -> int:
        """Start to fetch up to `limit` stale lists from reachable servers. Return the number of
        examined lists. The lists of a server are fetched one after another, until it does not
        answer or asks us to wait; servers do not wait for each other."""
        users = await self._store.get_stale(self._resynced_upto, limit)
        self._resynced_upto = users[-1] if len(users) == limit else ""
        by_server: dict[ServerName, list[str]] = {}
        for user_id in users:
            by_server.setdefault(domain_of(user_id), []).append(user_id)
        for server, of_server in by_server.items():
            if (
                server in self._resyncing
                or len(self._resyncing) >= MAX_RESYNC_SERVERS
                or not self._may_resync(server)
            ):
                continue
            self._resyncing.add(server)
            Deferred.fromCoroutine(self._fetch_of_server(server, of_server))
        return len(users)

    async def _fetch_of_server(self, server: ServerName, users: Sequence[str]) -> None:
        try:
            for user_id in users:
                if not await self._fetch_quietly(user_id):
                    break
        finally:
            self._resyncing.discard(server)

    async def do_sweep(self, limit: int) -> int:
        """Delete the lists of users who share no room any more, among the next `limit` users.
        Return the number of examined users, or 0 at the end."""
        users = await self._store.get_users(self._swept_upto, limit)
        self._swept_upto = users[-1] if len(users) == limit else ""
        await self._store.remove_unshared(
            [user_id for user_id in users if not self._is_local(user_id)]
        )
        return len(users) if len(users) == limit else 0

    async def _fetch(self, user_id: str, seconds: float) -> None:
        """Fetch and store a list. Concurrent calls share one request. Raises RemoteError,
        Forbidden."""

        async def fetch() -> None:
            asked_at = await self._store.get_position(user_id)
            found = await self._remote.get_list(user_id, seconds)
            rows, cross_signing = _rows(user_id, found.keys), _cross_signing(user_id, found.keys)
            await self._store.set_list(user_id, found.stream_id, rows, cross_signing, asked_at)

        await self._fetching.run(user_id, fetch)

    def _record(self, server: ServerName, asked_at: float, failure: Exception | None) -> None:
        """Tell the sender whether the server answered a request."""
        if failure is None:
            self._sender.record_activity(server)
        elif isinstance(failure, RemoteError) and not isinstance(failure, RefusedByRemote):
            self._sender.record_no_answer(server, asked_at)

    def _may_resync(self, server: ServerName) -> bool:
        """Return whether background requests to a server are allowed: it is not failing and did not
        ask us to wait."""
        return not self._sender.is_failing(server) and not self._backoff.left_ms(server)

    def _resync(self, user_id: str) -> None:
        """Fetch a list in the background when a slot is free, unless that was done recently."""
        now = self._clock.seconds()
        while (
            self._resyncs
            and (oldest := next(iter(self._resyncs.items())))[1] <= now - RESYNC_INTERVAL
        ):
            del self._resyncs[oldest[0]]
        if (
            self._fetching.is_running(user_id)
            or user_id in self._resyncs
            or not self._may_resync(domain_of(user_id))
        ):
            return
        self._resyncs[user_id] = now
        self._slots.run(lambda: Deferred.fromCoroutine(self._fetch_quietly(user_id)))

    async def _fetch_quietly(self, user_id: str) -> bool:
        """Fetch a list and log failures. Return whether the next list may be fetched from the
        server: it answered, and did not ask us to wait."""
        asked_at = self._clock.seconds()
        try:
            await self._fetch(user_id, RESYNC_SECONDS)
        except (RemoteError, MatrixError, DatabaseUnavailable) as error:
            self.log.info(
                "the devices of {user_id} are fetched later: {error}", user_id=user_id, error=error
            )
            self._record(domain_of(user_id), asked_at, error)
            self._backoff.record_failure(domain_of(user_id), error)
            return isinstance(error, RefusedByRemote) and not get_retry_after_ms(error)
        except Exception:  # an unexpected error; no caller handles it
            self.log.failure("the devices of {user_id} could not be fetched", user_id=user_id)
        return True


def _unreachable(server: ServerName) -> RemoteError:
    return RemoteError(server, "it could not be reached recently", retryable=True)


def _check_user(origin: ServerName, content: Mapping[str, Any]) -> str:
    user_id = content.get("user_id")
    if not isinstance(user_id, str) or not is_user_id(user_id) or domain_of(user_id) != origin:
        raise InvalidParam("user_id is not one of the server's users")
    return user_id


def _prev_ids(prev_ids: object) -> list[int] | None:
    """Return the `prev_id` of an update; None if it is malformed."""
    if not isinstance(prev_ids, list):
        return None
    found = [prev_id for prev_id in prev_ids[:MAX_PREV_IDS] if is_stream_id(prev_id)]
    return found if len(found) == len(prev_ids[:MAX_PREV_IDS]) else None


def _rows(user_id: str, keys: UserKeys) -> list[DeviceKeysRow]:
    return [
        DeviceKeysRow(user_id, device_id, content, keys.names.get(device_id))
        for device_id, content in sorted(keys.devices.items())
    ]


def _cross_signing(user_id: str, keys: UserKeys) -> list[CrossSigningKey]:
    return [
        CrossSigningKey(user_id, usage, key.public_key, key.content)
        for usage, key in keys.cross_signing.items()
    ]
