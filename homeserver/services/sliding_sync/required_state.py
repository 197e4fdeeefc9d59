"""Reads required state: first everything that the client asks for; later only the changes, and
entries that the client did not ask for before.

Changes are found by comparing the state that the client has with the state now, not by looking at
the state events that arrived. So an entry that state resolution restored is sent too.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Final

import msgspec

from federation.protocol.events import StateKey
from homeserver.services.sliding_sync.request import MEMBER, RequiredState
from storage.state.state_tree import StateTreeStore

NAME: Final = StateKey("m.room.name", "")
ALIAS: Final = StateKey("m.room.canonical_alias", "")
AVATAR: Final = StateKey("m.room.avatar", "")


class RequestedState(msgspec.Struct, gc=False):
    """The state of a room in a response: event numbers by key."""

    entries: dict[StateKey, int] = {}
    named: dict[StateKey, int | None] = {}
    """Name and avatar, if they may have changed; None if unset."""
    summary_changed: bool = False
    """Whether member counts or heroes may have changed."""
    changed_members: dict[str, int] = {}
    """All memberships that changed, asked for or not."""
    removed: Sequence[StateKey] = ()
    """Entries that were unset."""


class StateQuery(msgspec.Struct, frozen=True, gc=False):
    """A required state as a query for entries, and for types that have few entries in every
    room."""

    wanted: RequiredState
    asked: Sequence[StateKey]
    extra: Sequence[StateKey]
    """Name and avatar, if they are not asked for."""
    types: frozenset[str]

    def keys(self, members: Iterable[str]) -> list[StateKey]:
        """Return the entries that are asked for by name, with some memberships."""
        return [*self.asked, *map(StateKey, repeat(MEMBER), members)]

    def select(
        self, keys: Sequence[StateKey], found: Mapping[tuple[str, str], int]
    ) -> RequestedState:
        """Select the state to send from the entries that were found."""
        nids = list(map(found.get, keys))
        entries = {key: nid for key, nid in zip(keys, nids, strict=True) if nid is not None}
        if self.types:
            for type_, state_key in found:
                if type_ in self.types and self.wanted.matches(type_, state_key):
                    entries[StateKey(type_, state_key)] = found[type_, state_key]
        return RequestedState(entries, {NAME: found.get(NAME), AVATAR: found.get(AVATAR)}, True)


class StateRequest(msgspec.Struct, frozen=True, gc=False):
    """A state of a room, and what the client asks for of it."""

    room_nid: int
    root: bytes | None
    wanted: RequiredState
    members: Collection[str] = ()
    """Users whose memberships are asked for as well."""


class RequiredStates:
    """Reads required state."""

    def __init__(self, trees: StateTreeStore) -> None:
        self._trees = trees
        self._latest: tuple[RequiredState, StateQuery | None] | None = None

    async def get_complete(self, asked: Sequence[StateRequest]) -> list[RequestedState]:
        """Return all that is asked for of each state, with one read for all `StateQuery`s."""
        states = list(map(self.find_complete, asked))
        if None not in states:
            return [state for state in states if state is not None]
        missing = [each for each, state in zip(asked, states, strict=True) if state is None]
        read: dict[int, RequestedState] = {}
        queries = [
            (each, query, query.keys(each.members))
            for each in missing
            if (query := self.query_for(each.wanted)) is not None
        ]
        if queries:
            results = await self._trees.get_entries_of_rooms(
                [
                    (each.room_nid, each.root, [*keys, *q.extra], q.types)
                    for each, q, keys in queries
                ]
            )
            for (each, query, keys), found in zip(queries, results, strict=True):
                read[each.room_nid] = query.select(keys, found)
        for each in missing:
            if each.room_nid not in read:
                read[each.room_nid] = await self._get_full(each)
        return [
            read[each.room_nid] if state is None else state
            for each, state in zip(asked, states, strict=True)
        ]

    def find_complete(self, asked: StateRequest) -> RequestedState | None:
        """Return all that is asked for of a state, if that is a `StateQuery` and in memory."""
        query = self.query_for(asked.wanted)
        if query is None:
            return None
        keys = query.keys(asked.members)
        found = self._trees.get_cached(
            asked.room_nid, asked.root, [*keys, *query.extra], query.types
        )
        return None if found is None else query.select(keys, found)

    async def _get_full(self, asked: StateRequest) -> RequestedState:
        wanted = asked.wanted
        entries = await self._read(asked.room_nid, asked.root, wanted, [NAME, AVATAR])
        named = {key: entries.get(key) for key in (NAME, AVATAR)}
        state = RequestedState(
            {key: nid for key, nid in entries.items() if wanted.matches(*key)}, named, True
        )
        if asked.members:
            state.entries |= await self.get_members(asked.room_nid, asked.root, asked.members)
        return state

    async def get_added(
        self, room_nid: int, root: bytes | None, wanted: RequiredState, former: RequiredState
    ) -> dict[StateKey, int]:
        """Return what is asked for now and was not before."""
        entries = await self._read(room_nid, root, wanted, [])
        return {
            key: nid
            for key, nid in entries.items()
            if wanted.matches(*key) and not former.matches(*key)
        }

    async def get_changed(
        self, room_nid: int, former: bytes | None, root: bytes | None, wanted: RequiredState
    ) -> RequestedState:
        """Return what is asked for and differs from a former state."""
        if former == root:
            return RequestedState()
        diff = await self._trees.get_diff(room_nid, former, root)
        state, removed = RequestedState(), list[StateKey]()
        for (type_, state_key), (_, nid) in diff.items():
            key = StateKey(type_, state_key)
            if type_ == MEMBER or key in (NAME, ALIAS):
                state.summary_changed = True
            if type_ == MEMBER and nid is not None:
                state.changed_members[state_key] = nid
            if key in (NAME, AVATAR):
                state.named[key] = nid
            if not wanted.matches(type_, state_key):
                continue
            if nid is None:
                removed.append(key)
            else:
                state.entries[key] = nid
        state.removed = removed
        return state

    async def get_members(
        self, room_nid: int, root: bytes | None, user_ids: Iterable[str]
    ) -> dict[StateKey, int]:
        """Return some memberships."""
        found = await self._trees.get_entries(
            room_nid, root, [StateKey(MEMBER, user_id) for user_id in user_ids]
        )
        return {StateKey(*key): nid for key, nid in found.items()}

    def query_for(self, wanted: RequiredState) -> StateQuery | None:
        """Return the query for a required state; None if it may ask for any type, or for all
        members.

        The rooms of a response mostly have the same required state, so the latest query is cached.
        """
        if self._latest is None or self._latest[0] is not wanted:
            query, complete_types = None, wanted.complete_types()
            if complete_types is not None and MEMBER not in complete_types:
                types = frozenset(complete_types)
                asked = [
                    StateKey(*pattern) for pattern in wanted.exact() if wanted.matches(*pattern)
                ]
                extra = [
                    key for key in (NAME, AVATAR) if key not in asked and key.type not in types
                ]
                query = StateQuery(wanted, asked, extra, types)
            self._latest = (wanted, query)
        return self._latest[1]

    async def _read(
        self, room_nid: int, root: bytes | None, wanted: RequiredState, extra: Sequence[StateKey]
    ) -> dict[StateKey, int]:
        types = wanted.complete_types()
        if types is None:
            found = await self._trees.get_all(room_nid, root)
            return {StateKey(*key): nid for key, nid in found.items()}
        exact = [StateKey(*pattern) for pattern in wanted.exact()]
        entries = {
            StateKey(*key): nid
            for key, nid in (
                await self._trees.get_entries(room_nid, root, [*exact, *extra])
            ).items()
        }
        if types:
            by_type = await self._trees.get_by_type(room_nid, root, types)
            entries.update((StateKey(*key), nid) for key, nid in by_type.items())
        return entries
