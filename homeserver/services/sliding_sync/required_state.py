"""The state that goes with a room: all that is asked for at first, later what changed or is newly
asked for.

Changes are those between two states of the room, not the state events among the arrivals: so a
state that the resolution of a fork brought back is told too.
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
    """The entries that an answer has of a room: numbers of events by key."""

    entries: dict[StateKey, int] = {}
    named: dict[StateKey, int | None] = {}
    """Name and avatar, as far as they may have changed; None where one is not set."""
    naming_changed: bool = False
    """Whether how many and who are in the room, or whether it is they who name it, may have
    changed."""
    changed_members: dict[str, int] = {}
    """All memberships that changed, asked for or not."""
    removed: Sequence[StateKey] = ()
    """Entries that are no longer set."""


class StateQuery(msgspec.Struct, frozen=True, gc=False):
    """What is asked for, as entries and types of which there are few in any room."""

    wanted: RequiredState
    asked: Sequence[StateKey]
    besides: Sequence[StateKey]
    """Name and avatar of the room, where they are not asked for."""
    types: frozenset[str]
    members: frozenset[str]
    """Whose memberships are asked for by name."""
    shared: tuple[object, ...] | None
    """What is asked for beside them; equal where others ask for the same. None: more would have to
    be compared."""

    def to_tell(self, members: Iterable[str]) -> list[StateKey]:
        """What is asked for by name, with some memberships."""
        return [*self.asked, *map(StateKey, repeat(MEMBER), members)]

    def pick(
        self, keys: Sequence[StateKey], found: Mapping[tuple[str, str], int]
    ) -> RequestedState:
        """The state that is told, of what was found of these entries, of `besides`, and of the
        types."""
        nids = list(map(found.get, keys))
        entries = {key: nid for key, nid in zip(keys, nids, strict=True) if nid is not None}
        if self.types:
            for type_, state_key in found:
                if type_ in self.types and self.wanted.matches(type_, state_key):
                    entries[StateKey(type_, state_key)] = found[type_, state_key]
        return RequestedState(entries, {NAME: found.get(NAME), AVATAR: found.get(AVATAR)}, True)


class StateRequest(msgspec.Struct, frozen=True, gc=False):
    """A state of a room, and what is asked for of it."""

    room_nid: int
    root: bytes | None
    wanted: RequiredState
    members: Collection[str] = ()
    """Whose memberships are asked for, whatever else is."""


class RequiredStates:
    """Reads the state that is asked for."""

    def __init__(self, trees: StateTreeStore) -> None:
        self._trees = trees
        self._latest: tuple[RequiredState, StateQuery | None] | None = None

    async def get_wholes(self, asked: Sequence[StateRequest]) -> list[RequestedState]:
        """Of each state all that is asked for. As far as that is a `StateQuery`, what is not in
        memory is read at once for all."""
        states = list(map(self.find_whole, asked))
        if None not in states:
            return [state for state in states if state is not None]
        missing = [each for each, state in zip(asked, states, strict=True) if state is None]
        read: dict[int, RequestedState] = {}
        questions = [
            (each, question, question.to_tell(each.members))
            for each in missing
            if (question := self.question(each.wanted)) is not None
        ]
        if questions:
            answers = await self._trees.get_entries_of_rooms(
                [
                    (each.room_nid, each.root, [*keys, *q.besides], q.types)
                    for each, q, keys in questions
                ]
            )
            for (each, question, keys), found in zip(questions, answers, strict=True):
                read[each.room_nid] = question.pick(keys, found)
        for each in missing:
            if each.room_nid not in read:
                read[each.room_nid] = await self._get_whole(each)
        return [
            read[each.room_nid] if state is None else state
            for each, state in zip(asked, states, strict=True)
        ]

    def find_whole(self, asked: StateRequest) -> RequestedState | None:
        """All that is asked for of a state, at once; None where that needs the database, or is more
        than a `StateQuery`."""
        question = self.question(asked.wanted)
        if question is None:
            return None
        keys = question.to_tell(asked.members)
        found = self._trees.get_cached(
            asked.room_nid, asked.root, [*keys, *question.besides], question.types
        )
        return None if found is None else question.pick(keys, found)

    async def _get_whole(self, asked: StateRequest) -> RequestedState:
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
        """What is asked for now and was not before."""
        entries = await self._read(room_nid, root, wanted, [])
        return {
            key: nid
            for key, nid in entries.items()
            if wanted.matches(*key) and not former.matches(*key)
        }

    async def get_changed(
        self, room_nid: int, former: bytes | None, root: bytes | None, wanted: RequiredState
    ) -> RequestedState:
        """What is asked for and differs from a former state."""
        if former == root:
            return RequestedState()
        changes = {
            StateKey(*key): new
            for key, (_, new) in (await self._trees.get_diff(room_nid, former, root)).items()
        }
        members = {
            key.state_key: nid
            for key, nid in changes.items()
            if key.type == MEMBER and nid is not None
        }
        return RequestedState(
            {key: nid for key, nid in changes.items() if nid is not None and wanted.matches(*key)},
            {key: changes[key] for key in (NAME, AVATAR) if key in changes},
            any(key.type == MEMBER or key in (NAME, ALIAS) for key in changes),
            members,
            [key for key, nid in changes.items() if nid is None and wanted.matches(*key)],
        )

    async def get_members(
        self, room_nid: int, root: bytes | None, user_ids: Iterable[str]
    ) -> dict[StateKey, int]:
        """Some memberships."""
        found = await self._trees.get_entries(
            room_nid, root, [StateKey(MEMBER, user_id) for user_id in user_ids]
        )
        return {StateKey(*key): nid for key, nid in found.items()}

    def question(self, wanted: RequiredState) -> StateQuery | None:
        """None where anything may be wanted, or all members. The rooms of an answer mostly have one
        question: it is kept."""
        if self._latest is None or self._latest[0] is not wanted:
            question, whole_types = None, wanted.whole_types()
            if whole_types is not None and MEMBER not in whole_types:
                types = frozenset(whole_types)
                asked = [
                    StateKey(*pattern) for pattern in wanted.exact() if wanted.matches(*pattern)
                ]
                besides = [
                    key for key in (NAME, AVATAR) if key not in asked and key.type not in types
                ]
                members = frozenset(key.state_key for key in asked if key.type == MEMBER)
                shared = (
                    frozenset(key for key in asked if key.type != MEMBER),
                    types,
                    wanted.lazy_members,
                )
                is_shared = not any(clause.exclude for clause in wanted.clauses)
                question = StateQuery(
                    wanted, asked, besides, types, members, shared if is_shared else None
                )
            self._latest = (wanted, question)
        return self._latest[1]

    async def _read(
        self, room_nid: int, root: bytes | None, wanted: RequiredState, besides: Sequence[StateKey]
    ) -> dict[StateKey, int]:
        types = wanted.whole_types()
        if types is None:
            found = await self._trees.get_all(room_nid, root)
            return {StateKey(*key): nid for key, nid in found.items()}
        exact = [StateKey(*pattern) for pattern in wanted.exact()]
        entries = {
            StateKey(*key): nid
            for key, nid in (
                await self._trees.get_entries(room_nid, root, [*exact, *besides])
            ).items()
        }
        if types:
            by_type = await self._trees.get_by_type(room_nid, root, types)
            entries.update((StateKey(*key), nid) for key, nid in by_type.items())
        return entries
