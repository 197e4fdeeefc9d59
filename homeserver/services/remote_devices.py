"""Devices of other servers' users: asked for once, then kept up by what their servers tell of changes.

Laws:
- A list is kept of users with whom we share a room: only of these their servers tell us. Whoever comes to share one is
  taken to have changed, since nothing was told before: they came into a room of ours, or we into one of theirs.
- A change that does not follow upon the one before it makes the list stale: it is fetched again, at once and if need be
  later; meanwhile what there is is answered, and the failure named.
- A server speaks for its own users only.

spec: server-server-api#device-management
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.protocol.errors import InvalidParam, MatrixError, RemoteError
from federation.protocol.ids import ServerName, UserID, domain_of, is_user_id
from federation.remote.keys import (
    MAX_DEVICES,
    DeviceList,
    RemoteKeys,
    UserKeys,
    is_device_id,
    is_stream_id,
    put_cross_signing_key,
    put_device,
)
from federation.requests import RefusedByRemote
from federation.rooms.memberships import Memberships
from federation.sender.sender import Sender
from storage.cross_signing import CrossSigningKey
from storage.database import DatabaseUnavailable
from storage.device_keys import DeviceKeysRow
from storage.memberships import MembershipRow, MembershipStore
from storage.remote_devices import RemoteDeviceStore
from storage.streams import Change, Streams, Topic

MOST_FETCHED_AT_ONCE: Final = 20
"""Lists of one server's users for one question; of further ones the keys are asked for and not kept."""
CONCURRENT_RESYNCS: Final = 5
RESYNC_SECONDS: Final = 30.0
MOST_ASKED: Final = 100
"""Servers that are asked at once for lists that are stale."""
MAX_PREV_IDS: Final = 100


class RemoteDevices:
    """Finds keys of other servers' users, and takes in what is told of them. For the reactor thread."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: RemoteDeviceStore,
        remote: RemoteKeys,
        memberships: Memberships,
        membership_store: MembershipStore,
        sender: Sender,
        streams: Streams,
    ) -> None:
        self._clock = clock
        self._store = store
        self._remote = remote
        self._memberships = memberships
        self._membership_store = membership_store
        self._sender = sender
        self._fetching: dict[str, list[Deferred[None]]] = {}
        self._overtaken: set[str] = set()
        self._slots = DeferredSemaphore(CONCURRENT_RESYNCS)
        self._came: set[str] = set()
        self._entered: dict[int, set[str]] = {}
        self._scheduled = False
        self._resynced_upto = ""
        self._asked: set[ServerName] = set()
        """Servers that are being asked for stale lists."""
        streams.subscribe(self._hear, Topic.MEMBERSHIP)

    async def get_keys(
        self, server: ServerName, wanted: Mapping[str, Sequence[str]], seconds: float
    ) -> tuple[Mapping[str, UserKeys], Exception | None]:
        """See to it that what is kept of one server's users is as they are; keys of those of whom nothing is kept, and what
        failed: then some of what is kept may not be as they are."""
        lists = await self._store.get_lists(wanted)
        shared = await self._membership_store.get_users_with_ours(wanted)
        untold = [user_id for user_id in lists if user_id not in shared]
        if untold:
            await self._store.remove_lists(untold)
        missing = [
            user_id for user_id in wanted if user_id in untold or user_id not in lists or lists[user_id].is_stale
        ]
        if not missing:
            return {}, None
        if self._sender.is_failing(server):
            return {}, _unreachable(server)
        to_fetch = [user_id for user_id in missing if user_id in shared][:MOST_FETCHED_AT_ONCE]
        to_query = {user_id: wanted[user_id] for user_id in missing if user_id not in to_fetch}
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
        self._note(server, failure)
        return answer, failure

    async def claim(
        self, server: ServerName, wanted: Mapping[str, Mapping[str, str]], seconds: float
    ) -> Mapping[str, Any]:
        """One-time keys of one server's users. Raises RemoteError, Forbidden."""
        if self._sender.is_failing(server):
            raise _unreachable(server)
        failure: Exception | None = None
        try:
            return await self._remote.claim(server, wanted, seconds)
        except (RemoteError, MatrixError) as error:
            failure = error
            raise
        finally:
            self._note(server, failure)

    async def shares_room(self, user_id: str, besides: Set[int] = frozenset()) -> bool:
        """Whether one of our users is in a room with them, other than those `besides`."""
        rows = await self._memberships.of_user(UserID(user_id))
        for room_nid in [nid for nid, row in rows.items() if row.membership == "join" and nid not in besides]:
            if await self._memberships.local_members(room_nid):
                return True
        return False

    async def receive_update(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        """A device of a user of that server has changed: m.device_list_update. Raises InvalidParam."""
        user_id = _check_user(origin, content)
        device_id, stream_id, prev_ids = content.get("device_id"), content.get("stream_id"), content.get("prev_id", [])
        if not isinstance(device_id, str) or not is_device_id(device_id) or not is_stream_id(stream_id):
            raise InvalidParam("device_id or stream_id is missing, or malformed")
        tracked = (await self._store.get_lists([user_id])).get(user_id)
        if not await self.shares_room(user_id):
            if tracked is not None:
                await self._store.remove_lists([user_id])
            return
        if user_id in self._fetching:
            self._overtaken.add(user_id)
        if tracked is None:
            await self._store.announce(user_id)
        elif tracked.is_stale:
            self._resync(user_id)
        elif stream_id > tracked.stream_id:
            keys = UserKeys()
            put_device(keys, user_id, device_id, content.get("keys"))
            known = isinstance(prev_ids, list) and all(
                is_stream_id(prev_id) and prev_id <= tracked.stream_id for prev_id in prev_ids[:MAX_PREV_IDS]
            )
            is_gone = content.get("deleted") is True or content.get("keys") is None
            if known and (is_gone or device_id in keys.devices) and (prev_ids or tracked.stream_id == 0):
                row = None if is_gone else _rows(user_id, keys)[0]
                await self._store.set_device(user_id, device_id, stream_id, row, MAX_DEVICES)
            else:
                await self._store.set_stale([user_id])
                self._resync(user_id)

    async def receive_signing_key(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        """A user of that server has other keys of cross-signing: m.signing_key_update. Raises InvalidParam."""
        user_id = _check_user(origin, content)
        if not await self.shares_room(user_id):
            return
        if user_id in self._fetching:
            self._overtaken.add(user_id)
        if user_id not in await self._store.get_lists([user_id]):
            await self._store.announce(user_id)
            return
        keys = UserKeys()
        for usage in ("master", "self_signing"):
            put_cross_signing_key(keys, user_id, usage, content.get(f"{usage}_key"))
        await self._store.set_cross_signing(user_id, _cross_signing(user_id, keys))

    async def do_resync(self, limit: int) -> int:
        """Begin to fetch some stale lists of servers that can be reached; at how many was looked. Each server is asked for its users one
        after another, until it does not answer, and waits for no other."""
        users = await self._store.get_stale(self._resynced_upto, limit)
        self._resynced_upto = users[-1] if len(users) == limit else ""
        by_server: dict[ServerName, list[str]] = {}
        for user_id in users:
            by_server.setdefault(domain_of(user_id), []).append(user_id)
        for server, of_server in by_server.items():
            if server in self._asked or len(self._asked) >= MOST_ASKED or self._sender.is_failing(server):
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

    async def _fetch(self, user_id: str, seconds: float) -> None:
        """Fetch a list and keep it; who asks while it is on its way waits for the same. Raises RemoteError, Forbidden."""
        waiting = self._fetching.get(user_id)
        if waiting is not None:
            done: Deferred[None] = Deferred()
            waiting.append(done)
            await done
            return
        self._fetching[user_id] = waiting = []
        outcome: Failure | None = None
        try:
            await self._keep(user_id, await self._remote.get_list(user_id, seconds))
        except Exception:
            outcome = Failure()
            raise
        finally:
            del self._fetching[user_id]
            self._overtaken.discard(user_id)
            for done in waiting:
                done.callback(None) if outcome is None else done.errback(outcome)

    async def _keep(self, user_id: str, found: DeviceList) -> None:
        await self._store.set_list(
            user_id,
            found.stream_id,
            _rows(user_id, found.keys),
            _cross_signing(user_id, found.keys),
            is_stale=user_id in self._overtaken,
        )

    def _note(self, server: ServerName, failure: Exception | None) -> None:
        """Let the sender know whether the server answers."""
        if failure is None:
            self._sender.heard_from(server)
        elif isinstance(failure, RemoteError) and not isinstance(failure, RefusedByRemote):
            self._sender.note_silence(server)

    def _resync(self, user_id: str) -> None:
        """Fetch a list in the background, as soon as there is room for that."""
        if user_id not in self._fetching and not self._sender.is_failing(domain_of(user_id)):
            self._slots.run(lambda: Deferred.fromCoroutine(self._fetch_quietly(user_id)))

    async def _fetch_quietly(self, user_id: str) -> bool:
        """Whether there was an answer, be it a refusal."""
        try:
            await self._fetch(user_id, RESYNC_SECONDS)
        except (RemoteError, MatrixError, DatabaseUnavailable) as error:
            self.log.info("the devices of {user_id} are fetched later: {error}", user_id=user_id, error=error)
            self._note(domain_of(user_id), error)
            return isinstance(error, RefusedByRemote)
        except Exception:  # a bug of ours; nobody waits for this
            self.log.failure("the devices of {user_id} could not be fetched", user_id=user_id)
        return True

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, MembershipRow) and row.membership == "join":
                if row.is_local:
                    self._entered.setdefault(row.room_nid, set()).add(row.user_id)
                else:
                    self._came.add(row.user_id)
                if not self._scheduled:
                    self._scheduled = True
                    self._clock.callLater(0, self._start_turn)

    def _start_turn(self) -> None:
        Deferred.fromCoroutine(self._turn())

    async def _turn(self) -> None:
        """Those who came to share a room have not told us of changes before."""
        came, self._came = self._came, set()
        entered, self._entered = self._entered, {}
        self._scheduled = False
        try:
            stale = []
            # where nobody of ours was, its members have not told us either
            new = {nid for nid, users in entered.items() if await self._memberships.local_members(nid) <= users}
            for room_nid in new:
                came.update(await self._store.get_users_in(room_nid))
            for user_id in await self._store.get_lists(came):
                rows = await self._memberships.of_user(UserID(user_id))
                newest = max(rows.values(), key=lambda row: row.position, default=None)
                if newest is None or not await self.shares_room(user_id, besides={newest.room_nid, *new}):
                    stale.append(user_id)
            if stale:
                await self._store.set_stale(stale)
        except DatabaseUnavailable:
            self._came |= came  # with the next one who comes
            for room_nid, users in entered.items():
                self._entered.setdefault(room_nid, set()).update(users)
        except Exception:  # a bug of ours
            self.log.failure("it is not known who came to share a room")


def _unreachable(server: ServerName) -> RemoteError:
    return RemoteError(server, "it could not be reached lately", retryable=True)


def _check_user(origin: ServerName, content: Mapping[str, Any]) -> str:
    user_id = content.get("user_id")
    if not isinstance(user_id, str) or not is_user_id(user_id) or domain_of(user_id) != origin:
        raise InvalidParam("user_id is not one of the server's users")
    return user_id


def _rows(user_id: str, keys: UserKeys) -> list[DeviceKeysRow]:
    return [
        DeviceKeysRow(user_id, device_id, content, keys.names.get(device_id))
        for device_id, content in sorted(keys.devices.items())
    ]


def _cross_signing(user_id: str, keys: UserKeys) -> list[CrossSigningKey]:
    return [CrossSigningKey(user_id, usage, key.public_key, key.content) for usage, key in keys.cross_signing.items()]
