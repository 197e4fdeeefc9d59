"""Computes `device_lists` of a sync: users whose devices a client has to query again (`changed`),
and users whose devices it may stop tracking (`left`).

A client tracks the devices of everyone with whom its user shares an encrypted room. `changed` has
the tracked users whose devices, keys or signatures changed, and users who began to share such a
room with the client's user. `left` has users who no longer share any encrypted room with that user.
The changes are read from memory (`RecentChanges`). If the client was offline for longer than this
memory reaches back, a few queries read them.

A response may end before the current position (when to-device messages are left for the next
response). So the code looks up both the current memberships and those at the position where the
response ends. Otherwise a user who joined before that position and left after it would be missing
from `changed` in both this response and the next one.

This server gets no device updates of remote users who share no room with it, and may delete their
device lists. So a remote user who left a room and came back between two responses is in `changed`.
If the client's own user left a room and came back, all remote members of that room are in
`changed`.

When a room's partial state becomes complete, all members of the room are in `changed`. Users who
were members only in the partial state are in `left`. A comparison with an earlier state of the room
does not find them, because the completion corrects the earlier states too. So they are found by the
stored end of their membership: its position (`left_position`) is the position of the completion.

spec: client-server-api#tracking-the-device-list-for-a-user
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Final

from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID, domain_of
from federation.rooms.current_states import CurrentStates
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.memberships import Memberships
from federation.rooms.partial_rooms import PartialRooms
from homeserver.services.encryption.encrypted_rooms import EncryptedRoomCache
from homeserver.services.streams.recent_changes import RecentChanges
from storage.devices.devices import DeviceStore
from storage.encryption.cross_signing import CrossSigningStore
from storage.engine.streams import Topic
from storage.rooms.memberships import MembershipRow, MembershipStore
from storage.rooms.rooms import RoomStore

ENCRYPTION: Final = StateKey("m.room.encryption", "")
MAX_CHANGES_BACK: Final = 50
"""The maximum number of changes of a room's encryption event that are followed back."""
MAX_SINGLE_LOOKUPS: Final = 50
"""Users whose rooms are looked up one by one, usually from memory. The rooms of more users are read
in one query."""


class DeviceLists:
    """Computes changes of device lists for users."""

    # More than ten: a change of a list follows from devices, rooms and memberships.
    def __init__(
        self,
        *,
        devices: DeviceStore,
        cross_signing: CrossSigningStore,
        engine: RoomEngine,
        rooms: RoomStore,
        memberships: Memberships,
        membership_store: MembershipStore,
        encrypted: EncryptedRoomCache,
        states: CurrentStates,
        past_memberships: PastMemberships,
        recent: RecentChanges,
        events: RoomEvents,
        partial: PartialRooms,
    ) -> None:
        self._devices = devices
        self._cross_signing = cross_signing
        self._engine = engine
        self._rooms = rooms
        self._memberships = memberships
        self._membership_store = membership_store
        self._encrypted = encrypted
        self._states = states
        self._past_memberships = past_memberships
        self._recent = recent
        self._events = events
        self._partial = partial

    async def get_changes(self, user_id: UserID, since: int, upto: int) -> Mapping[str, list[str]]:
        """Return `changed` and `left` after `since`, up to `upto`."""
        if not self._recent.concerns_device_lists(since):
            return {"changed": [], "left": []}
        own = await self._memberships.of_user(user_id)
        changed = await self._changed_devices(since, upto)
        changes = await self._membership_changes(own, since, upto)
        newly_encrypted = self._recent.encryption_since(since)
        signed = await self._signed(user_id, since, upto)
        completed, never_members = await self._completed(own, since, upto)
        if not (
            changed or changes or signed or newly_encrypted is None or newly_encrypted or completed
        ):
            return {"changed": [], "left": []}
        newly, left = await self._compare_memberships(own, changes, since, upto)
        newly |= (
            await self._newly_encrypted(
                own if newly_encrypted is None else newly_encrypted, own, since, upto
            )
            | completed
        )
        left |= never_members
        if not (changed or newly or left or signed):
            return {"changed": [], "left": []}
        shared = await self._sharing_now(user_id, own, (changed | left) - newly) | (
            newly - {user_id}
        )
        shared |= await self._sharing_at(user_id, own, changed - shared, upto)
        return {
            "changed": sorted((changed & shared) | (changed & {user_id}) | newly & shared | signed),
            "left": sorted(left - shared - {user_id}),
        }

    async def _signed(self, user_id: UserID, since: int, upto: int) -> set[str]:
        """Return the users whose key this user signed: only this user sees these changes."""
        if not self._recent.concerns_user(user_id, Topic.SIGNATURE, since):
            return set()
        return await self._cross_signing.get_signed_since(user_id, since, upto)

    async def _changed_devices(self, since: int, upto: int) -> Set[str]:
        users = self._recent.users_since(Topic.DEVICE, since)
        return (
            await self._devices.get_all_changed_device_lists(since, upto)
            if users is None
            else users
        )

    async def _membership_changes(
        self, own: Mapping[int, MembershipRow], since: int, upto: int
    ) -> Sequence[MembershipRow]:
        """Return membership changes in the user's rooms: from memory all of them, from the database
        the latest of each member, which may be later than `upto`."""
        rows = self._recent.memberships_since(since)
        if rows is not None:
            return [row for row in rows if row.room_nid in own and row.position <= upto]
        return await self._membership_store.get_changed_members(
            await self._encrypted.filter_encrypted(own), since
        )

    async def _sharing_at(
        self, user_id: UserID, own: Mapping[int, MembershipRow], others: Set[str], upto: int
    ) -> set[str]:
        """Return those of `others` who shared an encrypted room with the user at `upto`. One of the
        two may have left since, and may come back before the next response."""
        if not others:
            return set()
        later = self._recent.memberships_since(upto)
        if later is None:
            later = await self._membership_store.get_changed_members(
                await self._encrypted.filter_encrypted(own), upto
            )
        changed_rooms = {
            row.room_nid
            for row in later
            if row.room_nid in own and row.user_id in {*others, user_id}
        }
        rows: list[MembershipRow] = []
        for nid in await self._encrypted.filter_encrypted(changed_rooms):
            rows += (await self._membership_store.get_memberships(nid, {*others, user_id})).values()
        joined = await self._states.joined_at(rows, upto)
        return {other for nid, other in joined if (nid, user_id) in joined} - {user_id}

    async def _compare_memberships(
        self,
        own: Mapping[int, MembershipRow],
        changes: Sequence[MembershipRow],
        since: int,
        upto: int,
    ) -> tuple[set[str], set[str]]:
        """Return the users who share a new encrypted room by these membership changes, and those
        who may share none any more."""
        newly: set[str] = set()
        left: set[str] = set()
        if not changes:
            return newly, left
        encrypted = await self._encrypted.filter_encrypted({row.room_nid for row in changes})
        latest = {(nid, own[nid].user_id): own[nid] for nid in encrypted}
        latest.update(
            ((row.room_nid, row.user_id), row) for row in changes if row.room_nid in encrypted
        )
        rows = latest.values()
        before = await self._states.joined_at(rows, since)
        after = await self._states.joined_at(rows, upto)
        for nid in encrypted:
            user_id = own[nid].user_id
            was_in, is_in = (nid, user_id) in before, (nid, user_id) in after
            joined_room = {member for room_nid, member in after - before if room_nid == nid}
            left_room = {member for room_nid, member in before - after if room_nid == nid}
            if was_in != is_in:
                present = await self._members_at(nid, upto)
                joined_room, left_room = (
                    (present, set()) if is_in else (set(), (present - joined_room) | left_room)
                )
            elif is_in:
                stayed = {
                    (nid, row.user_id): row
                    for row in rows
                    if row.room_nid == nid and not row.is_local
                }
                moved = [stayed[each] for each in stayed.keys() & before & after]
                joined_room |= await self._returned(own[nid], moved, since, upto)
            if is_in and joined_room and await self._was_encrypted(nid, upto):
                newly |= joined_room
            if was_in and left_room and await self._was_encrypted(nid, since):
                left |= left_room
        return newly, left

    async def _returned(
        self, own: MembershipRow, stayed: Iterable[MembershipRow], since: int, upto: int
    ) -> set[str]:
        """Return remote users who left a room and came back; all remote members if the client's own
        user did. `stayed`: members before and after, with a membership change in between."""
        if await self._past_memberships.has_joined_since(own, since):
            here = f":{domain_of(own.user_id)}"
            return {
                user_id
                for user_id in await self._members_at(own.room_nid, upto)
                if not user_id.endswith(here)
            }
        return {
            row.user_id
            for row in stayed
            if await self._past_memberships.has_joined_since(row, since)
        }

    async def _members_at(self, room_nid: int, position: int) -> set[str]:
        """Return the members of a room at a position."""
        rows = await self._membership_store.get_members(room_nid, "join")
        later = await self._membership_store.get_changed_members([room_nid], position)
        joined = await self._states.joined_at(
            {row.user_id: row for row in (*rows, *later)}.values(), position
        )
        return {user_id for _, user_id in joined}

    async def _was_encrypted(self, room_nid: int, position: int) -> bool:
        """Return whether a room that is encrypted now was encrypted at a position."""
        (room,) = (await self._rooms.get_rooms_by_nid([room_nid])).values()
        snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
        event = await snapshot.state.get(ENCRYPTION)
        for _ in range(MAX_CHANGES_BACK):
            if event is None or event.position is None or event.position <= position:
                break
            if event.replaces is None:
                return False
            event = (await self._events.get_events([event.replaces])).get(event.replaces)
        return True

    async def _newly_encrypted(
        self,
        newly_encrypted: Iterable[int],
        own: Mapping[int, MembershipRow],
        since: int,
        upto: int,
    ) -> set[str]:
        """Return the members of rooms where encryption was turned on, by an event that this server
        received or by a state that it fetched."""
        newly: set[int] = set()
        by_state: set[int] = set()
        encrypted = await self._encrypted.filter_encrypted(
            await self._joined_at(own, newly_encrypted, upto)
        )
        for nid, room in (await self._rooms.get_rooms_by_nid(encrypted)).items():
            snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
            event = await snapshot.state.get(ENCRYPTION)
            if event is not None and event.position is None:
                by_state.add(nid)
            elif event is not None and since < (event.position or 0) <= upto:
                newly.add(nid)
        by_state -= await self._states.having(by_state, ENCRYPTION, since)
        newly |= await self._states.having(by_state, ENCRYPTION, upto)
        members: set[str] = set()
        for nid in newly:
            members |= await self._members_at(nid, upto)
        return members

    async def _completed(
        self, own: Mapping[int, MembershipRow], since: int, upto: int
    ) -> tuple[set[str], set[str]]:
        """For rooms whose partial state was completed in this interval, return the members, and the
        users who were members only in the partial state."""
        completed = {
            nid: room.completed_position
            for nid, room in (await self._partial.get_all()).items()
            if room.completed_position is not None and since < room.completed_position <= upto
        }
        members: set[str] = set()
        never_members: set[str] = set()
        is_in = await self._joined_at(own, completed, upto)
        was_in = await self._joined_at(own, completed, since)
        for nid in await self._encrypted.filter_encrypted(is_in | was_in):
            if nid in is_in:
                members |= await self._members_at(nid, upto)
            moved = await self._membership_store.get_changed_members([nid], completed[nid] - 1)
            never_members.update(
                row.user_id for row in moved if row.left_position == completed[nid]
            )
        return members, never_members

    async def _joined_at(
        self, own: Mapping[int, MembershipRow], room_nids: Iterable[int], position: int
    ) -> set[int]:
        """Return the rooms that the user was joined to at a position."""
        rows = [own[nid] for nid in room_nids if nid in own]
        return {nid for nid, _ in await self._states.joined_at(rows, position)}

    async def _sharing_now(
        self, user_id: UserID, own: Mapping[int, MembershipRow], others: Collection[str]
    ) -> set[str]:
        """Return those of `others` who share an encrypted room with the user now."""
        if len(others) > MAX_SINGLE_LOOKUPS:
            common = await self._membership_store.get_shared_rooms(user_id, others)
            rooms = await self._encrypted.filter_encrypted(
                {nid for nids in common.values() for nid in nids}
            )
            return {
                other
                for other, nids in common.items()
                if other != user_id and not rooms.isdisjoint(nids)
            }
        joined = {nid for nid, row in own.items() if row.membership == "join"}
        sharing: set[str] = set()
        for other in others:
            other_rows = await self._memberships.of_user(UserID(other))
            in_common = {
                nid for nid, row in other_rows.items() if row.membership == "join" and nid in joined
            }
            if other != user_id and in_common and await self._encrypted.filter_encrypted(in_common):
                sharing.add(other)
        return sharing
