"""The state that goes with a room: all that is asked for at first, later what changed or is newly asked for.

Changes are those between two states of the room, not the state events among the arrivals: so a state that the resolution
of a fork brought back is told too.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

import msgspec

from federation.protocol.events import StateKey
from federation.rooms.visible import Seen
from homeserver.services.sliding_sync.request import MEMBER, RequiredState
from storage.state_tree import StateTreeStore

NAME: Final = StateKey("m.room.name", "")
ALIAS: Final = StateKey("m.room.canonical_alias", "")
AVATAR: Final = StateKey("m.room.avatar", "")
_event: Final = attrgetter("event.event")
_sender: Final = attrgetter("sender")
_state_key: Final = attrgetter("state_key")


class StateOfRoom(msgspec.Struct, gc=False):
    """The entries that an answer has of a room: numbers of events by key."""

    entries: dict[StateKey, int] = {}
    named: dict[StateKey, int | None] = {}
    """Name and avatar, as far as they may have changed; None where one is not set."""
    naming_changed: bool = False
    """Whether how many and who are in the room, or whether it is they who name it, may have changed."""
    changed_members: dict[str, int] = {}
    """All memberships that changed, asked for or not."""
    removed: Sequence[StateKey] = ()
    """Entries that are no longer set."""


class _Names(msgspec.Struct, frozen=True, gc=False):
    """A question that names every entry it asks for."""

    asked: Sequence[StateKey]
    read: tuple[StateKey, ...]
    """With name and avatar of the room."""


class RequiredStates:
    """Reads the state that is asked for."""

    def __init__(self, trees: StateTreeStore) -> None:
        self._trees = trees
        self._latest: tuple[RequiredState, _Names | None] | None = None

    async def get_whole(self, room_nid: int, root: bytes | None, wanted: RequiredState) -> StateOfRoom:
        """All that is asked for of a state."""
        names = self._names(wanted)
        if names is not None:
            found = await self._trees.get_entries(room_nid, root, names.read)
            asked = {key: found[key] for key in names.asked if key in found}
            return StateOfRoom(asked, {NAME: found.get(NAME), AVATAR: found.get(AVATAR)}, True)
        entries = await self._read(room_nid, root, wanted, [NAME, AVATAR])
        named = {key: entries.get(key) for key in (NAME, AVATAR)}
        return StateOfRoom({key: nid for key, nid in entries.items() if wanted.matches(*key)}, named, True)

    def find_whole(
        self, room_nid: int, root: bytes | None, wanted: RequiredState, members: Iterable[str]
    ) -> StateOfRoom | None:
        """As `get_whole`, with some memberships, at once; None where that needs the database, or names do not say all that is asked
        for."""
        names = self._names(wanted)
        if names is None:
            return None
        memberships = [StateKey(MEMBER, user_id) for user_id in members]
        found = self._trees.get_cached(room_nid, root, (*names.read, *memberships))
        if found is None:
            return None
        entries = {key: found[key] for key in (*names.asked, *memberships) if key in found}
        return StateOfRoom(entries, {NAME: found.get(NAME), AVATAR: found.get(AVATAR)}, True)

    async def get_added(
        self, room_nid: int, root: bytes | None, wanted: RequiredState, former: RequiredState
    ) -> dict[StateKey, int]:
        """What is asked for now and was not before."""
        entries = await self._read(room_nid, root, wanted, [])
        return {key: nid for key, nid in entries.items() if wanted.matches(*key) and not former.matches(*key)}

    async def get_changed(
        self, room_nid: int, former: bytes | None, root: bytes | None, wanted: RequiredState
    ) -> StateOfRoom:
        """What is asked for and differs from a former state."""
        if former == root:
            return StateOfRoom()
        changes = {
            StateKey(*key): new for key, (_, new) in (await self._trees.get_diff(room_nid, former, root)).items()
        }
        members = {key.state_key: nid for key, nid in changes.items() if key.type == MEMBER and nid is not None}
        return StateOfRoom(
            {key: nid for key, nid in changes.items() if nid is not None and wanted.matches(*key)},
            {key: changes[key] for key in (NAME, AVATAR) if key in changes},
            any(key.type == MEMBER or key in (NAME, ALIAS) for key in changes),
            members,
            [key for key, nid in changes.items() if nid is None and wanted.matches(*key)],
        )

    async def get_members(self, room_nid: int, root: bytes | None, user_ids: Sequence[str]) -> dict[StateKey, int]:
        """Some memberships."""
        found = await self._trees.get_entries(room_nid, root, [StateKey(MEMBER, user_id) for user_id in user_ids])
        return {StateKey(*key): nid for key, nid in found.items()}

    def _names(self, wanted: RequiredState) -> "_Names | None":
        """None where more may be wanted than names say. The rooms of an answer mostly have one question: it is kept."""
        if self._latest is None or self._latest[0] is not wanted:
            names = None
            if wanted.whole_types() == set():
                asked = [StateKey(*pattern) for pattern in wanted.exact() if wanted.matches(*pattern)]
                names = _Names(asked, tuple(dict.fromkeys([*asked, NAME, AVATAR])))
            self._latest = (wanted, names)
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
            for key, nid in (await self._trees.get_entries(room_nid, root, [*exact, *besides])).items()
        }
        if types:
            by_type = await self._trees.get_by_type(room_nid, root, types)
            entries.update((StateKey(*key), nid) for key, nid in by_type.items())
        return entries


def people_in(timeline: Sequence[Seen]) -> set[str]:
    """Whose memberships are needed to show a timeline: senders, and those whom membership events are about."""
    events = list(map(_event, timeline))
    needed: set[str] = set(map(_sender, events))
    if any(map(_state_key, events)):
        needed.update(event.state_key for event in events if event.state_key and event.type == MEMBER)
    return needed
