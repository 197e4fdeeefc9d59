"""The state of sliding sync connections, which records what the server sent to a client. The `pos`
of a request names the state.

A `pos` is a sync token and the name of a state: `s<position>_<ephemeral>_<state>`. For each room,
the state says whether everything up to this position was sent (*live*) or only everything up to an
earlier position (*previously*). While the state does not change, responses name the same state with
new positions, and nothing is written. A few added rooms cost no write either, because the name of
the state lists them (`pos.py`).

The state does not record which lazily loaded members were sent. Only a cache in memory does
(`lazy_members`), so these members are sent again after a restart or an eviction.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from operator import itemgetter
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from federation.protocol.errors import UnknownPos
from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from homeserver.services.sliding_sync.connection_cache import ConnectionCache
from homeserver.services.sliding_sync.pos import added_in, added_to, name_of, stored_nid
from homeserver.services.sliding_sync.request import (
    RequiredState,
    RoomConfig,
    SlidingRequest,
    StateClause,
)
from homeserver.services.streams.sync_tokens import SyncToken, split_pos
from storage.cache import drop_oldest
from storage.engine.streams import Streams
from storage.rooms.rooms import RoomRow
from storage.sync.sliding_connections import (
    MAX_CONNECTION_STATES,
    SlidingConnectionKey,
    SlidingConnectionStore,
)

ReadRooms = Callable[[Iterable[int]], Awaitable[Mapping[int, RoomRow]]]

LIVE: Final = 0
"""Stands for the position of the `pos`."""

NOTHING: Final[dict[int, Any]] = {}
MAX_IDLE_MS: Final = 30 * 24 * 3600 * 1000
"""A connection that is idle for longer ends. A job removes it."""
BYTES_PER_ROOM: Final = 64
"""Bytes of a stored state that count as one room: what clients ask for may be long."""
TOUCH_INTERVAL_MS: Final = 24 * 3600 * 1000

_weight: Final = itemgetter(1)


class SentRoom(msgspec.Struct, frozen=True, gc=False):
    """The part of a room that a client was sent."""

    upto: int
    """LIVE, or the position up to which the room was sent."""
    timeline_limit: int
    """The number of newest events that the client has, if there are as many."""
    required_state: RequiredState
    is_direct: bool = False
    """The value of `is_dm` that was sent."""

    def covers(self, config: RoomConfig) -> bool:
        """Whether a client that was sent this lacks nothing that the config asks for."""
        if config.timeline_limit > self.timeline_limit:
            return False
        # mostly it is the same object
        return self.required_state is config.required_state or self.required_state.covers(
            config.required_state
        )


class PendingProfiles(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Profiles that did not fit into a response; the next ones continue."""

    room_nids: list[int]
    after: str
    """Members of these rooms with user IDs after this one remain."""


class SentProfiles(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The profiles that a client was sent."""

    fields: frozenset[str]
    rooms: frozenset[int]
    """Rooms whose members' profiles were sent, or are left to send."""
    lazy_rooms: frozenset[int]
    """Rooms where profiles are sent as events need them."""
    pending: tuple[PendingProfiles, ...] = ()
    """Profiles still to be sent."""


class ConnectionState:
    """The data that a client has, by room number; missing rooms were never sent. Immutable."""

    __slots__ = (
        "_complete_rooms",
        "_direct_checked",
        "account_data",
        "added",
        "profiles",
        "receipts",
        "rooms",
    )

    def __init__(
        self,
        *,
        rooms: dict[int, SentRoom] = NOTHING,
        receipts: Mapping[int, int] = NOTHING,
        account_data: Mapping[int, int] = NOTHING,
        profiles: SentProfiles | None = None,
    ) -> None:
        """`profiles`: None if the client does not ask for them."""
        self.added: Sequence[tuple[int, bool]] | None = None
        """The rooms (number, and whether it is a direct chat) that were added to the former state
        `with_rooms`.

        None if this state differs from the former one by more.
        """
        self.rooms = rooms
        self.receipts = receipts
        self.account_data = account_data
        self.profiles = profiles
        self._complete_rooms: tuple[RoomConfig, frozenset[int]] | None = None
        self._direct_checked: tuple[Set[str], Sequence[int]] = (frozenset(), ())

    def complete_rooms(self, config: RoomConfig) -> frozenset[int]:
        """Return the live rooms that were sent with all that the config asks for: these need only
        changes.

        A client asks for the same again and again, so the result for the latest config is cached.
        """
        if self._complete_rooms is None or self._complete_rooms[0] is not config:
            covered: dict[tuple[int, int], bool] = {}
            found: list[int] = []
            for nid, sent in self.rooms.items():
                if sent.upto != LIVE:
                    continue
                key = (sent.timeline_limit, id(sent.required_state))  # many rooms share one
                if key not in covered:
                    covered[key] = sent.covers(config)
                if covered[key]:
                    found.append(nid)
            self._complete_rooms = (config, frozenset(found))
        return self._complete_rooms[1]

    def with_rooms(self, added: Iterable[tuple[int, bool]]) -> "ConnectionState":
        """Return a state with more rooms, which were sent like the last room in its list."""
        last, like = next(reversed(self.rooms.items()))
        rooms = {
            nid: SentRoom(LIVE, like.timeline_limit, like.required_state, is_direct)
            for nid, is_direct in added
        }
        live = dict.fromkeys(rooms, LIVE)
        return ConnectionState(
            rooms={**self.rooms, **rooms},
            receipts={**self.receipts, **live} if last in self.receipts else self.receipts,
            account_data={**self.account_data, **live}
            if last in self.account_data
            else self.account_data,
            profiles=self.profiles,
        )

    def derive_complete_rooms(
        self, former: "ConnectionState", changed: Mapping[int, SentRoom]
    ) -> None:
        """Derive the complete rooms from those of the former state and the rooms that changed."""
        if former._complete_rooms is not None:
            config, complete_rooms = former._complete_rooms
            covered = {
                nid for nid, sent in changed.items() if sent.upto == LIVE and sent.covers(config)
            }
            self._complete_rooms = (config, complete_rooms - changed.keys() | covered)

    async def find_changed_direct(
        self, direct: Set[str], room_nids: Sequence[int], read_rooms: ReadRooms
    ) -> Sequence[int]:
        """Return the rooms whose `is_dm` is no longer what the client was sent.

        Nothing is compared if neither the direct chats nor the rooms changed since the last time.
        """
        if self._direct_checked[0] is direct and self._direct_checked[1] == room_nids:
            return ()
        rooms = await read_rooms(nid for nid in room_nids if nid in self.rooms)
        moved = [
            nid
            for nid, room in rooms.items()
            if self.rooms[nid].is_direct != (room.room_id in direct)
        ]
        if not moved:
            self._direct_checked = (direct, room_nids)
        return moved


EMPTY: Final = ConnectionState()


class SlidingConnection(msgspec.Struct, frozen=True, gc=False):
    """A connection, as its client comes back with a `pos`."""

    key: SlidingConnectionKey
    token: SyncToken | None
    """The token in the `pos`; None for a new connection."""
    state_name: str | None
    state: ConnectionState

    @property
    def position(self) -> int:
        """The position of the token; 0 for a new connection."""
        return 0 if self.token is None else self.token.position

    def since(self, upto: int) -> int:
        """Resolve LIVE to the position of the token."""
        return self.position if upto == LIVE else upto


class _CachedConnection(msgspec.Struct):
    used_ts: int
    """The time of last use, as stored."""
    states: dict[str, tuple[ConnectionState, int]]
    """States with their weights, by name; newer ones come later."""


class SlidingConnections:
    """Reads and stores the state of connections. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        store: SlidingConnectionStore,
        memberships: Memberships,
        streams: Streams,
        now_ms: Callable[[], int],
        catch_up: Callable[[], Awaitable[int]],
        capacity: int,
    ) -> None:
        """`catch_up` reads what other nodes wrote, and returns the position up to which all is
        readable.

        `capacity`: the number of rooms of all connections in memory, about; long names count as
        rooms, too.
        """
        self._store = store
        self._memberships = memberships
        self._streams = streams
        self._catch_up = catch_up
        self._now_ms = now_ms
        self._known = ConnectionCache[_CachedConnection](streams=streams, capacity=capacity)

    def __len__(self) -> int:
        """The number of connections in memory."""
        return len(self._known)

    async def find(self, request: SlidingRequest) -> SlidingConnection:
        """Return the connection of a request. Raises UnknownPos."""
        key = SlidingConnectionKey(
            request.caller.user_id, request.caller.device_id or "", request.conn_id
        )
        if request.pos is None:
            return SlidingConnection(key, None, None, EMPTY)
        parts = split_pos(request.pos)
        if parts is None:
            raise UnknownPos
        token, name = parts
        if token.position > self._streams.current() and token.position > await self._catch_up():
            raise UnknownPos  # from a newer copy of the database
        known = self._get_cached(key)
        if known is None or name not in known.states:
            known = await self._read(key, name)
        now = self._now_ms()
        if now - known.used_ts > TOUCH_INTERVAL_MS:
            await self._touch(key, known, now)
        return SlidingConnection(key, token, name, known.states[name][0])

    async def store(
        self,
        former: SlidingConnection,
        state: ConnectionState,
        token: SyncToken,
        *,
        force: bool = False,
    ) -> str:
        """Return the `pos` of a response after which the client has this state.

        The state is stored first if it differs by more than a name can hold, or if it needs a
        number of its own (`force`).
        """
        name = former.state_name
        if name is None:
            name = await self._store_state(former, state)
        elif force or state is not former.state:
            longer = None if force or state.added is None else added_to(name, state.added)
            if longer is None:
                name = await self._store_state(former, state)
            else:
                name = longer
                if (known := self._get_cached(former.key)) is not None:
                    self._follow(
                        former,
                        name,
                        state,
                        self._weight_of(former) + len(state.added or ()),
                        known.used_ts,
                    )
        return f"{token}_{name}"

    async def _store_state(self, former: SlidingConnection, state: ConnectionState) -> str:
        """Store a state, and return its name."""
        now, blob = self._now_ms(), _encode(state)
        former_nid = None if former.state_name is None else stored_nid(former.state_name)
        name = name_of(await self._store.add_state(former.key, former_nid, blob, now))
        self._follow(former, name, state, _weigh(state, blob), now)
        return name

    def _follow(
        self,
        former: SlidingConnection,
        name: str,
        state: ConnectionState,
        weight: int,
        used_ts: int,
    ) -> None:
        """Cache a state that follows another, and drop those from before that one.

        States from after it stay: another request may have been answered from the same state or a
        later one.
        """
        known, before = self._get_cached(former.key), former.state_name
        states = {} if known is None else dict(known.states)
        if before is not None:
            if before not in states:
                states = {before: (former.state, self._weight_of(former)), **states}
            while (first := next(iter(states))) != before:
                del states[first]
        states.pop(name, None)
        states[name] = (state, weight)
        drop_oldest(states, MAX_CONNECTION_STATES)
        self._cache(former.key, _CachedConnection(used_ts, states))

    def _weight_of(self, former: SlidingConnection) -> int:
        """The weight of the state that a request found."""
        known = self._get_cached(former.key)
        weighed = None if known is None else known.states.get(former.state_name or "")
        return _weigh(former.state, _encode(former.state)) if weighed is None else weighed[1]

    async def _read(self, key: SlidingConnectionKey, name: str) -> _CachedConnection:
        """Load a stored state into the cache. Raises UnknownPos."""
        row = await self._store.get_state(key, stored_nid(name))
        if row is None:
            raise UnknownPos
        state, weight = _decode(row.state), 1 + len(row.state) // BYTES_PER_ROOM
        if added := added_in(name):
            if not state.rooms:
                raise UnknownPos
            rows = await self._memberships.of_user(UserID(key.user_id))
            state = state.with_rooms(
                each for each in added if each[0] in rows and rows[each[0]].was_joined
            )
        states = {name: (state, weight + len(state.rooms))}
        former = self._get_cached(key)
        if former is not None:  # another node stored this state, or it was evicted
            states |= list(former.states.items())[1 - MAX_CONNECTION_STATES :]
        known = _CachedConnection(row.used_ts, states)
        self._cache(key, known)
        return known

    async def _touch(self, key: SlidingConnectionKey, known: _CachedConnection, now: int) -> None:
        """Record the use of the connection. Raises UnknownPos if it was idle for too long."""
        if now - known.used_ts > MAX_IDLE_MS:
            await self._store.remove_connection(key)
            self._known.remove(key)
            raise UnknownPos
        known.used_ts = now
        await self._store.set_used(key, now)

    def _get_cached(self, key: SlidingConnectionKey) -> _CachedConnection | None:
        cached = self._known.get(key)
        return None if cached is None else cached[0]

    def _cache(self, key: SlidingConnectionKey, cached: _CachedConnection) -> None:
        self._known.put(key, cached, sum(map(_weight, cached.states.values())))


def _weigh(state: ConnectionState, blob: bytes) -> int:
    return 1 + len(state.rooms) + len(blob) // BYTES_PER_ROOM


class StateChanges:
    """Collects changes of a state. Without changes, the result is the same object."""

    def __init__(self, state: ConnectionState) -> None:
        self._state = state
        self._rooms: dict[int, SentRoom] = {}
        self._has_unjoined = False
        self._receipts: dict[int, int] = {}
        self._account_data: dict[int, int] = {}
        self._profiles = state.profiles

    def set_room(self, room_nid: int, sent: SentRoom, *, is_joined: bool = False) -> None:
        """Set what was sent of a room. `is_joined`: whether the user is in it."""
        if self._state.rooms.get(room_nid) != sent:
            self._rooms[room_nid] = sent
            self._has_unjoined = self._has_unjoined or not is_joined

    def mark_not_live(self, room_nid: int, position: int) -> None:
        """Mark a live room with unsent changes: the client has it up to the position."""
        self._rooms[room_nid] = replace(self._state.rooms[room_nid], upto=position)

    def set_receipts(self, room_nid: int, upto: int) -> None:
        """Set the position up to which the receipts of a room were sent."""
        if self._state.receipts.get(room_nid) != upto:
            self._receipts[room_nid] = upto

    def set_account_data(self, room_nid: int, upto: int) -> None:
        """Set the position up to which the account data of a room was sent."""
        if self._state.account_data.get(room_nid) != upto:
            self._account_data[room_nid] = upto

    def set_profiles(self, sent: SentProfiles | None) -> None:
        """Set the profiles that were sent."""
        if sent != self._profiles:
            self._profiles = sent

    def result(self) -> ConnectionState:
        """Return the new state."""
        same_profiles = self._profiles is self._state.profiles
        if same_profiles and not (self._rooms or self._receipts or self._account_data):
            return self._state
        state = ConnectionState(
            rooms={**self._state.rooms, **self._rooms},
            receipts={**self._state.receipts, **self._receipts},
            account_data={**self._state.account_data, **self._account_data},
            profiles=self._profiles,
        )
        state.derive_complete_rooms(self._state, self._rooms)
        if same_profiles and self._adds_rooms():
            state.added = [(nid, sent.is_direct) for nid, sent in self._rooms.items()]
        return state

    def _adds_rooms(self) -> bool:
        """Whether the only changes are new, joined rooms that were sent like the last one
        (`with_rooms`)."""
        former = self._state.rooms
        if (
            self._has_unjoined
            or not self._rooms
            or not former
            or not former.keys().isdisjoint(self._rooms)
        ):
            return False
        last, like = next(reversed(former.items()))
        for sent in self._rooms.values():
            if (
                sent.timeline_limit != like.timeline_limit
                or sent.required_state != like.required_state
            ):
                return False
        for known, changed in (
            (self._state.receipts, self._receipts),
            (self._state.account_data, self._account_data),
        ):
            if any(changed.values()) or changed.keys() != (
                self._rooms.keys() if last in known else set()
            ):
                return False
        return True


def not_live(known: Mapping[int, int]) -> Iterable[tuple[int, int]]:
    """Return the rooms from which not everything up to the `pos` was sent: mostly none."""
    return (
        [(nid, upto) for nid, upto in known.items() if upto != LIVE] if any(known.values()) else ()
    )


class _Blob(msgspec.Struct, array_like=True):
    """The stored form of a state. Required states are in a table, since many rooms share one."""

    required: list[tuple[list[tuple[list[tuple[str, str]], list[tuple[str, str]]]], bool]]
    rooms: dict[int, tuple[int, int, int]]
    """By room: upto, timeline limit, index of the required state."""
    receipts: dict[int, int]
    account_data: dict[int, int]
    profile_fields: list[str] | None = None
    direct: list[int] = []
    """The rooms that were sent as direct chats."""
    profiles_left: tuple[PendingProfiles, ...] = ()
    profile_rooms: list[int] = []
    profiles_lazily: list[int] = []


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Blob)


def _encode(state: ConnectionState) -> bytes:
    indexes: dict[RequiredState, int] = {}
    rooms = {
        nid: (sent.upto, sent.timeline_limit, indexes.setdefault(sent.required_state, len(indexes)))
        for nid, sent in state.rooms.items()
    }
    required = [
        (
            [(sorted(clause.include), sorted(clause.exclude)) for clause in each.clauses],
            each.lazy_members,
        )
        for each in indexes
    ]
    direct = [nid for nid, sent in state.rooms.items() if sent.is_direct]
    blob = _Blob(required, rooms, dict(state.receipts), dict(state.account_data), None, direct)
    profiles = state.profiles
    if profiles is not None:
        blob.profile_fields, blob.profiles_left = sorted(profiles.fields), profiles.pending
        blob.profile_rooms, blob.profiles_lazily = (
            sorted(profiles.rooms),
            sorted(profiles.lazy_rooms),
        )
    return _encoder.encode(blob)


def _decode(blob: bytes) -> ConnectionState:
    stored = _decoder.decode(blob)
    required = [
        RequiredState(
            frozenset(
                StateClause(frozenset(include), frozenset(exclude)) for include, exclude in clauses
            ),
            lazy_members,
        )
        for clauses, lazy_members in stored.required
    ]
    direct = frozenset(stored.direct)
    rooms = {
        nid: SentRoom(upto, limit, required[index], nid in direct)
        for nid, (upto, limit, index) in stored.rooms.items()
    }
    profiles = None
    if stored.profile_fields is not None:
        sent_rooms, lazily = frozenset(stored.profile_rooms), frozenset(stored.profiles_lazily)
        profiles = SentProfiles(
            frozenset(stored.profile_fields), sent_rooms, lazily, stored.profiles_left
        )
    return ConnectionState(
        rooms=rooms, receipts=stored.receipts, account_data=stored.account_data, profiles=profiles
    )
