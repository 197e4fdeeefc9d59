"""Devices of other servers' users: asked for once, then kept up by what their servers tell of
changes.

Laws:
- A list is kept of users with whom we share a room: only of these their servers tell us. Whoever
  comes to share one is taken to have changed, since nothing was told before: the write that lets
  them into a room of ours, or us into one of theirs, marks the list
  (`storage/encryption/remote_devices.py`).
- A change that does not follow upon the one before it makes the list stale: it is fetched again, at
  once and if need be later; meanwhile what there is is answered, and the failure named. So does one
  with a number of the past that says what is not known: the other server may have been restored
  from a backup. However many such changes it tells, for them a list is fetched once a minute.
- What other processes take in counts: whether a change came while a list was on its way is read
  from the database.
- A server speaks for its own users only.

spec: server-server-api#device-management
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from federation.peers.peer_backoff import PeerBackoff
from federation.peers.requests import RefusedByRemote, asked_wait_ms, is_away
from federation.peers.shared_work import SharedWork
from federation.protocol.errors import InvalidParam, MatrixError, RemoteError
from federation.protocol.ids import ServerName, UserID, domain_of, is_user_id
from federation.remote.keys import (
    MAX_DEVICES,
    MAX_LIST_BYTES,
    RemoteKeys,
    UserKeys,
    is_device_id,
    is_stream_id,
    put_cross_signing_key,
    put_device,
)
from federation.rooms.memberships import Memberships
from federation.sender.sender import Sender
from storage.cache import LRU
from storage.encryption.cross_signing import CrossSigningKey
from storage.encryption.device_keys import DeviceKeysRow
from storage.encryption.remote_devices import DeviceChange, RemoteDeviceStore
from storage.engine.database import DatabaseUnavailable
from storage.rooms.memberships import MembershipStore

MOST_FETCHED_AT_ONCE: Final = 20
"""Lists of one server's users for one question; of further ones the keys are asked for and not
kept."""
CONCURRENT_RESYNCS: Final = 5
RESYNC_SECONDS: Final = 30.0
RESYNC_PAUSE: Final = 60.0
"""Seconds after which a list is fetched again at once because of what its server tells; before that
it is a job's."""
MOST_ASKED: Final = 100
"""Servers that are asked at once for lists that are stale."""
CLAIM_PAUSE: Final = 1.0
"""Seconds after which a server that is not there is asked again for one-time keys."""
MAX_PREV_IDS: Final = 100
MOST_SAID: Final = 10_000
"""Users of whom it is known what was said of their keys of cross-signing."""


class RemoteDevices:
    """Finds keys of other servers' users, and takes in what is told of them. For the reactor
    thread."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: RemoteDeviceStore,
        remote: RemoteKeys,
        memberships: Memberships,
        membership_store: MembershipStore,
        sender: Sender,
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
        """Whose lists were fetched at once of late, and when that began, in this order."""
        self._resynced_upto = ""
        self._swept_upto = ""
        self._backoff: PeerBackoff[ServerName] = PeerBackoff(lambda: int(clock.seconds() * 1000))
        """Of those that asked us to wait with questions for lists, when nobody waits for the
        answer."""
        self._asked: set[ServerName] = set()
        """Servers that are being asked for stale lists."""
        self._said: LRU[str, bytes] = LRU(max_entries=MOST_SAID)
        """What servers said last of their users' keys of cross-signing, by user, as digests."""

    async def get_keys(
        self, server: ServerName, wanted: Mapping[str, Sequence[str]], seconds: float
    ) -> tuple[Mapping[str, UserKeys], Exception | None]:
        """See to it that what is kept of one server's users is as they are; keys of those of whom
        nothing is kept, and what failed: then some of what is kept may not be as they are."""
        lists = await self._store.get_lists(wanted)
        shared = await self._membership_store.get_users_with_ours(wanted)
        untold = [user_id for user_id in lists if user_id not in shared]
        if untold:
            await self._store.remove_unshared(untold)
        missing = [
            user_id
            for user_id in wanted
            if user_id in untold or user_id not in lists or lists[user_id].is_stale
        ]
        if not missing:
            return {}, None
        if self._sender.would_wait_in_vain(server):
            return {}, _unreachable(server)
        to_fetch = [user_id for user_id in missing if user_id in shared][:MOST_FETCHED_AT_ONCE]
        to_query = {user_id: wanted[user_id] for user_id in missing if user_id not in to_fetch}
        asked_at = self._clock.seconds()
        fetches = [Deferred.fromCoroutine(self._fetch(user_id, seconds)) for user_id in to_fetch]
        failure: Exception | None = None
        answer: Mapping[str, UserKeys] = {}
        try:
            if to_query:
                answer = await self._remote.query(server, to_query, seconds)
        except (RemoteError, MatrixError) as error:
            failure = error
        for fetch in fetches:
            try:
                await fetch
            except (RemoteError, MatrixError) as error:
                failure = error
        self._note(server, asked_at, failure)
        return answer, failure

    async def claim(
        self, server: ServerName, wanted: Mapping[str, Mapping[str, str]], seconds: float
    ) -> Mapping[str, Any]:
        """One-time keys of one server's users. A server that is not there is asked again while
        there is time, if it may just be starting again: who gets no key now cannot read what is
        sent. Raises RemoteError, Forbidden."""
        if self._sender.would_wait_in_vain(server) and await self._sender.is_away(server):
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
                    has_time = until - self._clock.seconds() > CLAIM_PAUSE
                    if not (
                        has_time and is_away(error) and await self._may_be_starting(server, wanted)
                    ):
                        raise
                await deferLater(self._clock, CLAIM_PAUSE)
        except (RemoteError, MatrixError) as error:
            failure = error
            raise
        finally:
            self._note(server, asked_at, failure)

    async def _may_be_starting(self, server: ServerName, user_ids: Iterable[str]) -> bool:
        """Whether a server that does not answer may do so in a moment. Of one with whose users ours
        share no room nobody knows that it is there: it is not asked again and again for whoever
        names it."""
        return not await self._sender.is_away(server) and bool(
            await self._membership_store.get_users_with_ours(user_ids)
        )

    async def shares_room(self, user_id: str) -> bool:
        """Whether one of our users is in a room with them."""
        rows = await self._memberships.of_user(UserID(user_id))
        for room_nid in [nid for nid, row in rows.items() if row.membership == "join"]:
            if await self._memberships.local_members(room_nid):
                return True
        # another process may have let them in a moment ago, of which this one has not heard
        return user_id in await self._membership_store.get_users_with_ours([user_id])

    async def receive_update(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        """A device of a user of that server has changed: m.device_list_update. Raises
        InvalidParam."""
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
            raise InvalidParam("device_id or stream_id is missing, or malformed")
        if not await self.shares_room(user_id):
            if await self._store.get_lists([user_id]):
                await self._store.remove_unshared([user_id])
            return
        keys = UserKeys()
        put_device(
            keys, user_id, device_id, content.get("keys"), content.get("device_display_name")
        )
        is_gone = content.get("deleted") is True or content.get("keys") is None
        device = None if is_gone or device_id not in keys.devices else _rows(user_id, keys)[0]
        is_clear = is_gone or device is not None
        change = DeviceChange(user_id, device_id, stream_id, _prev_ids(prev_ids), device, is_clear)
        if await self._store.take_change(change, MAX_DEVICES, MAX_LIST_BYTES):
            self._resync(user_id)

    async def receive_signing_key(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        """A user of that server has other keys of cross-signing: m.signing_key_update. Raises
        InvalidParam."""
        user_id = _check_user(origin, content)
        if not await self.shares_room(user_id):
            return
        keys = UserKeys()
        for usage in ("master", "self_signing"):
            put_cross_signing_key(keys, user_id, usage, content.get(f"{usage}_key"))
        found = _cross_signing(user_id, keys)
        said = sha256(b"".join([key.content for key in found])).digest()
        if self._said.peek(user_id) == said and not await self._store.get_lists([user_id]):
            # nothing is kept to compare it with, and all were told of it when it was said first
            return
        await self._store.set_cross_signing(user_id, found)
        self._said.put(user_id, said)

    async def do_resync(self, limit: int) -> int:
        """Begin to fetch some stale lists of servers that can be reached; at how many was looked.
        Each server is asked for its users one after another, until it does not answer or asks us to
        wait, and waits for no other."""
        users = await self._store.get_stale(self._resynced_upto, limit)
        self._resynced_upto = users[-1] if len(users) == limit else ""
        by_server: dict[ServerName, list[str]] = {}
        for user_id in users:
            by_server.setdefault(domain_of(user_id), []).append(user_id)
        for server, of_server in by_server.items():
            if server in self._asked or len(self._asked) >= MOST_ASKED or not self._may_ask(server):
                continue
            self._asked.add(server)
            Deferred.fromCoroutine(self._fetch_of_server(server, of_server))
        return len(users)

    async def _fetch_of_server(self, server: ServerName, users: Sequence[str]) -> None:
        try:
            for user_id in users:
                if not await self._fetch_quietly(user_id):
                    break
        finally:
            self._asked.discard(server)

    async def do_sweep(self, limit: int) -> int:
        """Forget what is kept of some users with whom no room is shared any more; at how many was
        looked, or 0 at the end."""
        users = await self._store.get_known(self._swept_upto, limit)
        self._swept_upto = users[-1] if len(users) == limit else ""
        await self._store.remove_unshared(
            [user_id for user_id in users if not self._is_local(user_id)]
        )
        return len(users) if len(users) == limit else 0

    async def _fetch(self, user_id: str, seconds: float) -> None:
        """Fetch a list and keep it; who asks while it is on its way waits for the same. Raises
        RemoteError, Forbidden."""

        async def fetch() -> None:
            asked_at = await self._store.get_position(user_id)
            found = await self._remote.get_list(user_id, seconds)
            rows, cross_signing = _rows(user_id, found.keys), _cross_signing(user_id, found.keys)
            await self._store.set_list(user_id, found.stream_id, rows, cross_signing, asked_at)

        await self._fetching.run(user_id, fetch)

    def _note(self, server: ServerName, asked_at: float, failure: Exception | None) -> None:
        """Let the sender know whether the server answers what it was asked then."""
        if failure is None:
            self._sender.heard_from(server)
        elif isinstance(failure, RemoteError) and not isinstance(failure, RefusedByRemote):
            self._sender.note_silence(server, asked_at)

    def _may_ask(self, server: ServerName) -> bool:
        """Whether a server may be asked for what nobody waits for: it can be reached, as far as is
        known, and has not asked us to wait."""
        return not self._sender.is_failing(server) and not self._backoff.left_ms(server)

    def _resync(self, user_id: str) -> None:
        """Fetch a list in the background, as soon as there is room for that; later if it has been
        done a moment ago."""
        now = self._clock.seconds()
        while (
            self._resyncs and (oldest := next(iter(self._resyncs.items())))[1] <= now - RESYNC_PAUSE
        ):
            del self._resyncs[oldest[0]]
        if (
            self._fetching.is_under_way(user_id)
            or user_id in self._resyncs
            or not self._may_ask(domain_of(user_id))
        ):
            return
        self._resyncs[user_id] = now
        self._slots.run(lambda: Deferred.fromCoroutine(self._fetch_quietly(user_id)))

    async def _fetch_quietly(self, user_id: str) -> bool:
        """Whether the server may be asked for the next: there was an answer, be it a refusal, that
        does not ask us to wait."""
        asked_at = self._clock.seconds()
        try:
            await self._fetch(user_id, RESYNC_SECONDS)
        except (RemoteError, MatrixError, DatabaseUnavailable) as error:
            self.log.info(
                "the devices of {user_id} are fetched later: {error}", user_id=user_id, error=error
            )
            self._note(domain_of(user_id), asked_at, error)
            self._backoff.record_failure(domain_of(user_id), error)
            return isinstance(error, RefusedByRemote) and not asked_wait_ms(error)
        except Exception:  # a bug of ours; nobody waits for this
            self.log.failure("the devices of {user_id} could not be fetched", user_id=user_id)
        return True


def _unreachable(server: ServerName) -> RemoteError:
    return RemoteError(server, "it could not be reached lately", retryable=True)


def _check_user(origin: ServerName, content: Mapping[str, Any]) -> str:
    user_id = content.get("user_id")
    if not isinstance(user_id, str) or not is_user_id(user_id) or domain_of(user_id) != origin:
        raise InvalidParam("user_id is not one of the server's users")
    return user_id


def _prev_ids(prev_ids: object) -> list[int] | None:
    """What an update says of the changes before it; None if that is malformed."""
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
