"""The profiles extension: profiles of users in the rooms in view, and their changes.

The extension has the profiles of local users only. The full profile of a user is sent when the user
comes into view. Without lazy loading, all members come into view with their room. With lazy
loading, a member comes into view when a response has an event that they sent, has their membership,
or names them as a hero. Later, changes are sent for all users who share a room with the client's
user, in view or not.

Proposal: MSC4262.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from heapq import nsmallest
from typing import Any, Final

import msgspec

from federation.protocol.errors import UnknownPos
from federation.protocol.ids import UserID
from federation.rooms.current_states import CurrentStates
from federation.rooms.memberships import Memberships
from homeserver.services.sliding_sync.connections import (
    PendingProfiles,
    SentProfiles,
    SlidingConnection,
)
from homeserver.services.sliding_sync.room_update import SlidingRoomUpdate
from homeserver.services.streams.recent_changes import RecentChanges
from storage.engine.streams import Topic
from storage.profiles.profiles import ProfileStore
from storage.rooms.memberships import MembershipRow, MembershipStore

ALL_FIELDS: Final = frozenset({"*"})
MAX_PROFILES: Final = 500
"""Profiles in one response of users who are merely members of a room; the next responses
continue."""
MAX_PARTS: Final = 16
MAX_CHANGES: Final = 5_000
"""Fields of any profiles that may have changed since a client's last response."""


class ProfileReader:
    """Reads the profiles that are new to a connection."""

    def __init__(
        self,
        *,
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
        connection: SlidingConnection,
        scope: Set[int],
        lazy: Set[int],
        updates: Sequence[SlidingRoomUpdate],
        upto: int,
    ) -> tuple[dict[str, Any], SentProfiles]:
        """Return the changes by user (None if they share no room any more), and the profiles that
        the client then has.

        `scope`: the rooms in view; `lazy`: those with lazily loaded members; `updates`: the rooms
        in the response. Raises UnknownPos.
        """
        former = connection.state.profiles
        users: dict[str, Any] = {}
        if former is not None and connection.position < upto:
            users = await self._changes(user_id, fields, connection.position, upto)
        if former is None or not (former.fields >= ALL_FIELDS or former.fields >= fields):
            former = SentProfiles(frozenset(), frozenset(), frozenset())
        seen = {update.room.room_nid: update for update in updates if update.room.room_nid in scope}
        people, others, full_rooms = await self._find_new_users(former, scope, lazy, seen)
        left = former.pending
        sent, left = await self._members(
            user_id, [*left, PendingProfiles(sorted(full_rooms), "")] if full_rooms else left
        )
        sent |= people
        found = await self._profiles.get_profiles(sorted(sent | others))
        for owner in await self._find_unrelated(user_id, found.keys() - sent):
            del found[owner]  # later changes of their profiles would not be sent
        for owner, profile in found.items():
            selected = _select_fields(fields, profile)
            if selected and users.get(owner, {}) is not None:
                users.setdefault(owner, {})["updated"] = selected
        rooms, lazily = former.rooms - scope | scope - lazy, former.lazy_rooms - scope | lazy
        return users, SentProfiles(frozenset(fields), frozenset(rooms), frozenset(lazily), left)

    async def _find_new_users(
        self,
        former: SentProfiles,
        scope: Set[int],
        lazy: Set[int],
        updates: Mapping[int, SlidingRoomUpdate],
    ) -> tuple[set[str], set[str], set[int]]:
        """Return the members who come into view, the other users who do, and the rooms whose
        members all do.

        With lazily loaded members, all members come into view only if the client has events from
        before it asked for profiles.
        """
        initial = {nid for nid, update in updates.items() if update.initial}
        full_rooms = {
            *(scope - lazy - former.rooms),
            *(initial - lazy),
            *(lazy - former.rooms - former.lazy_rooms - initial),
        }
        people: set[str] = set()
        others: set[str] = set()
        for nid, update in updates.items():
            shown_users, members = update.people, await self._memberships.local_members(nid)
            if nid not in lazy:
                shown_users |= update.state.changed_members.keys() & members
            if nid in full_rooms or len(shown_users) > MAX_PROFILES:
                full_rooms.add(nid)
                shown_users = update.people_shown
            people |= shown_users & members
            others |= shown_users - members
        return people, others, full_rooms

    async def _find_unrelated(self, user_id: UserID, people: Set[str]) -> Set[str]:
        """Return the users who share no room with the user, mostly because they left."""
        people = people - {user_id}
        return (
            people - (await self._membership_store.get_shared_rooms(user_id, people)).keys()
            if people
            else people
        )

    async def _members(
        self, user_id: UserID, waiting: Sequence[PendingProfiles]
    ) -> tuple[set[str], tuple[PendingProfiles, ...]]:
        """Return the next local members of rooms whose members are all to be sent, and the parts
        that remain."""
        sent: set[str] = set()
        own = await self._memberships.of_user(user_id) if waiting else {}
        for number, part in enumerate(waiting):
            members: set[str] = set()
            for room_nid in part.room_nids:
                if room_nid in own and own[room_nid].membership == "join":
                    members |= await self._memberships.local_members(room_nid)
            room = MAX_PROFILES - len(sent)
            following = nsmallest(
                room + 1, (member for member in members - sent if member > part.after)
            )
            sent.update(following[:room])
            if len(following) > room:
                after = following[room - 1] if room else part.after
                return sent, _merged(
                    [PendingProfiles(part.room_nids, after), *waiting[number + 1 :]]
                )
        return sent, ()

    async def _changes(
        self, user_id: UserID, fields: Set[str], since: int, upto: int
    ) -> dict[str, Any]:
        """Return the changed profiles. Raises UnknownPos if too many changed since the client's
        last response."""
        changed: Mapping[str, Mapping[str, bytes | None]] = {}
        if self._recent.users_since(Topic.PROFILE, since) != set():
            found = await self._profiles.get_changes(since, upto, MAX_CHANGES)
            if found is None:
                raise UnknownPos
            changed = found
        left_users = await self._find_left(user_id, since, upto)
        others = {*changed, *left_users} - {user_id}
        if not others and not changed:
            return {}
        shared = await self._membership_store.get_shared_rooms(user_id, others)
        users: dict[str, Any] = {owner: None for owner in left_users if owner not in shared}
        for owner, values in changed.items():
            if owner != user_id and owner not in shared:
                continue
            if entry := _changed_fields(fields, values):
                users[owner] = entry
        return users

    async def _find_left(self, user_id: UserID, since: int, upto: int) -> Collection[str]:
        """Return the local users who left a room of the user's, or are in a room that the user
        left."""
        own = await self._memberships.of_user(user_id)
        recent = self._recent.memberships_since(since)
        if recent is None:  # a user who moved again after `upto` is among them by that move
            moves = await self._membership_store.get_changed_members(own, since)
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
        left_users = {member for _, member in left}
        in_left_rooms = [row for row in rows if own[row.room_nid].membership != "join"]
        if in_left_rooms:
            left_users |= await self._find_former_members(user_id, in_left_rooms, since)
        return left_users - {user_id}

    async def _find_former_members(
        self, user_id: UserID, rows: Sequence[MembershipRow], since: int
    ) -> set[str]:
        """Return the members, at that time, of the rooms that the user has left since."""
        before = await self._states.joined_at(rows, since)
        former_members: set[str] = set()
        for room_nid in {room_nid for room_nid, member in before if member == user_id}:
            moved = {row.user_id for row in rows if row.room_nid == room_nid}
            former_members |= {member for member in moved if (room_nid, member) in before}
            former_members |= await self._memberships.local_members(room_nid) - moved
        return former_members


def _merged(left: Sequence[PendingProfiles]) -> tuple[PendingProfiles, ...]:
    """Merge too many parts into one, which starts from the beginning: profiles may be sent
    twice."""
    if len(left) <= MAX_PARTS:
        return tuple(left)
    return (
        PendingProfiles(sorted({room_nid for part in left for room_nid in part.room_nids}), ""),
    )


def _changed_fields(fields: Set[str], values: Mapping[str, bytes | None]) -> dict[str, Any]:
    """Return the JSON of a changed profile; empty if the client wants none of the changed
    fields."""
    entry: dict[str, Any] = {}
    updated = _select_fields(
        fields, {field: value for field, value in values.items() if value is not None}
    )
    removed = [
        field for field, value in values.items() if value is None and _is_wanted(fields, field)
    ]
    if updated:
        entry["updated"] = updated
    if removed:
        entry["removed"] = removed
    return entry


def _select_fields(fields: Set[str], profile: Mapping[str, bytes]) -> dict[str, msgspec.Raw]:
    return {
        field: msgspec.Raw(value) for field, value in profile.items() if _is_wanted(fields, field)
    }


def _is_wanted(fields: Set[str], field: str) -> bool:
    return field in fields or fields >= ALL_FIELDS
