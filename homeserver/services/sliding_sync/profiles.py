"""The profiles of people in the rooms that a client looks at, and what changes in them.

Told are the profiles of this server's own users: of those of others it keeps none. A profile comes
whole when its owner comes into view: with the room, the first time that it is given, or with what
the client gets of the room later; where members come lazily, with the events or memberships that
need them. Later changes are told of everyone with whom the user shares a room, in view or not.

Proposal: MSC4262.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from heapq import nsmallest
from typing import Any, Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.current_states import CurrentStates
from federation.rooms.memberships import Memberships
from homeserver.services.sliding_sync.connections import (
    Connection,
    PendingProfiles,
    SentProfiles,
    UnknownPos,
)
from homeserver.services.sliding_sync.room_update import SlidingRoomUpdate
from homeserver.services.streams.recent_changes import RecentChanges
from storage.engine.streams import Topic
from storage.profiles.profiles import ProfileStore
from storage.rooms.memberships import MembershipRow, MembershipStore

EVERY_FIELD: Final = frozenset({"*"})
MOST_WHOLE: Final = 500
"""How many profiles are in one answer of those who are only members of a room that came into view;
the next ones go on."""
MOST_PARTS: Final = 16
MOST_CHANGES: Final = 5_000
"""So many fields of profiles may have changed since a client's last answer, whosoever they are."""


class ProfileReader:
    """Reads what of profiles is new to a connection."""

    def __init__(
        self,
        profiles: ProfileStore,
        memberships: Memberships,
        membership_store: MembershipStore,
        recent: RecentChanges,
        states: CurrentStates,
    ) -> None:
        self._profiles = profiles
        self._memberships = memberships
        self._membership_store = membership_store
        self._recent = recent
        self._states = states

    async def read(
        self,
        user_id: UserID,
        fields: Set[str],
        connection: Connection,
        scope: Set[int],
        lazy: Set[int],
        updates: Sequence[SlidingRoomUpdate],
        upto: int,
    ) -> tuple[dict[str, Any], SentProfiles]:
        """By user: fields that are set, fields that are set no longer; None for who shares no room
        any more. And what the client has then. `scope`: the rooms in view, `lazy` those of them
        whose members come lazily; `updates` those of which the answer tells something.

        Raises UnknownPos.
        """
        former = connection.state.profiles
        users: dict[str, Any] = {}
        if former is not None and connection.position < upto:
            users = await self._changes(user_id, fields, connection.position, upto)
        if former is None or not (former.fields >= EVERY_FIELD or former.fields >= fields):
            former = SentProfiles(frozenset(), frozenset(), frozenset())
        seen = {update.room.room_nid: update for update in updates if update.room.room_nid in scope}
        people, others, whole = await self._who_comes(former, scope, lazy, seen)
        left = former.left
        told, left = await self._members(
            user_id, [*left, PendingProfiles(sorted(whole), "")] if whole else left
        )
        told |= people
        found = await self._profiles.get_profiles(sorted(told | others))
        for owner in await self._who_are_strangers(user_id, found.keys() - told):
            del found[owner]  # what changes in their profiles would not be told
        for owner, profile in found.items():
            shown = _wanted(fields, profile)
            if shown and users.get(owner, {}) is not None:
                users.setdefault(owner, {})["updated"] = shown
        rooms, lazily = former.rooms - scope | scope - lazy, former.lazily - scope | lazy
        return users, SentProfiles(frozenset(fields), frozenset(rooms), frozenset(lazily), left)

    async def _who_comes(
        self,
        former: SentProfiles,
        scope: Set[int],
        lazy: Set[int],
        updates: Mapping[int, SlidingRoomUpdate],
    ) -> tuple[set[str], set[str], set[int]]:
        """Who comes into view with these rooms and is in one of them, who else does, and the rooms
        of which all members do.

        They do not where members come lazily, unless events that need them came before their
        profiles were asked for.
        """
        begun = {nid for nid, update in updates.items() if update.initial}
        whole = {
            *(scope - lazy - former.rooms),
            *(begun - lazy),
            *(lazy - former.rooms - former.lazily - begun),
        }
        people: set[str] = set()
        others: set[str] = set()
        for nid, update in updates.items():
            named, members = update.people, await self._memberships.local_members(nid)
            if nid not in lazy:
                named |= update.state.changed_members.keys() & members
            if nid in whole or len(named) > MOST_WHOLE:
                whole.add(nid)
                named = update.people_shown
            people |= named & members
            others |= named - members
        return people, others, whole

    async def _who_are_strangers(self, user_id: UserID, people: Set[str]) -> Set[str]:
        """Those of the people who share no room with the user, mostly since they have left."""
        people = people - {user_id}
        return (
            people - (await self._membership_store.get_shared_rooms(user_id, people)).keys()
            if people
            else people
        )

    async def _members(
        self, user_id: UserID, waiting: Sequence[PendingProfiles]
    ) -> tuple[set[str], tuple[PendingProfiles, ...]]:
        """The next of this server's users who are in rooms of which all are to be told; those who
        are left then."""
        told: set[str] = set()
        own = await self._memberships.of_user(user_id) if waiting else {}
        for number, part in enumerate(waiting):
            members: set[str] = set()
            for room_nid in part.room_nids:
                if room_nid in own and own[room_nid].membership == "join":
                    members |= await self._memberships.local_members(room_nid)
            room = MOST_WHOLE - len(told)
            further = nsmallest(
                room + 1, (member for member in members - told if member > part.after)
            )
            told.update(further[:room])
            if len(further) > room:
                after = further[room - 1] if room else part.after
                return told, _merged(
                    [PendingProfiles(part.room_nids, after), *waiting[number + 1 :]]
                )
        return told, ()

    async def _changes(
        self, user_id: UserID, fields: Set[str], since: int, upto: int
    ) -> dict[str, Any]:
        """Raises UnknownPos for who was away for so long that to begin anew is less than all that
        changed."""
        changed: Mapping[str, Mapping[str, bytes | None]] = {}
        if self._recent.users_since(Topic.PROFILE, since) != set():
            found = await self._profiles.get_changes(since, upto, MOST_CHANGES)
            if found is None:
                raise UnknownPos
            changed = found
        gone = await self._who_left(user_id, since, upto)
        others = {*changed, *gone} - {user_id}
        if not others and not changed:
            return {}
        shared = await self._membership_store.get_shared_rooms(user_id, others)
        users: dict[str, Any] = {owner: None for owner in gone if owner not in shared}
        for owner, values in changed.items():
            if owner != user_id and owner not in shared:
                continue
            entry: dict[str, Any] = {}
            updated = _wanted(
                fields, {field: value for field, value in values.items() if value is not None}
            )
            removed = [
                field
                for field, value in values.items()
                if value is None and _is_wanted(fields, field)
            ]
            if updated:
                entry["updated"] = updated
            if removed:
                entry["removed"] = removed
            if entry:
                users[owner] = entry
        return users

    async def _who_left(self, user_id: UserID, since: int, upto: int) -> Collection[str]:
        """Those of this server's users who left a room of the user's, or whom the user left behind
        there."""
        own = await self._memberships.of_user(user_id)
        recent = self._recent.memberships_since(since)
        if recent is None:  # who moved again after `upto` is among them by that move
            moves = await self._membership_store.get_moved_members(own, since)
        else:
            moves = [row for row in recent if row.position <= upto]
        latest = {
            (row.room_nid, row.user_id): row
            for row in moves
            if row.room_nid in own and row.is_local
        }
        rows = list(latest.values())
        stayed = [row for row in rows if own[row.room_nid].membership == "join"]
        left = await self._states.joined_at(stayed, since) - await self._states.joined_at(
            stayed, upto
        )
        gone = {member for _, member in left}
        elsewhere = [row for row in rows if own[row.room_nid].membership != "join"]
        if elsewhere:
            gone |= await self._whom_left_behind(user_id, elsewhere, since)
        return gone - {user_id}

    async def _whom_left_behind(
        self, user_id: UserID, rows: Sequence[MembershipRow], since: int
    ) -> set[str]:
        """Who was in the rooms that the user has left since then; of who came after them the user
        hears nothing."""
        before = await self._states.joined_at(rows, since)
        behind: set[str] = set()
        for room_nid in {room_nid for room_nid, member in before if member == user_id}:
            moved = {row.user_id for row in rows if row.room_nid == room_nid}
            behind |= {member for member in moved if (room_nid, member) in before}
            behind |= await self._memberships.local_members(room_nid) - moved
        return behind


def _merged(left: Sequence[PendingProfiles]) -> tuple[PendingProfiles, ...]:
    """The same people, those of many parts from their beginning: it is no harm to be told of
    somebody again."""
    if len(left) <= MOST_PARTS:
        return tuple(left)
    return (
        PendingProfiles(sorted({room_nid for part in left for room_nid in part.room_nids}), ""),
    )


def _wanted(fields: Set[str], profile: Mapping[str, bytes]) -> dict[str, msgspec.Raw]:
    return {
        field: msgspec.Raw(value) for field, value in profile.items() if _is_wanted(fields, field)
    }


def _is_wanted(fields: Set[str], field: str) -> bool:
    return field in fields or fields >= EVERY_FIELD
