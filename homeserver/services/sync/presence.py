"""The `presence` section of /sync: the presence of users who share a room with the caller.

It contains the users whose presence has changed, and those who have begun to share a room with the
caller. When the caller joins a room, only its local members are added. An initial sync contains all
users who are not offline. With the option `presence.include_offline_users_on_sync` it also contains
offline local users.

spec: client-server-api#presence
"""

from collections.abc import Collection, Mapping, Set
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import ServerName, UserID, domain_of
from federation.rooms.memberships import Memberships
from homeserver.cluster.notifier import Listener
from homeserver.services.presence.presence import Presence
from homeserver.services.presence.states import LocalPresence, RemotePresence
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.sync.request import SyncRange, SyncRequest
from storage.rooms.memberships import MembershipRow, MembershipStore

MAX_SINGLE_LOOKUPS: Final = 50
"""Up to this many users are looked up one by one; if there are more, rooms are read instead."""

MembershipRows = Mapping[int, MembershipRow]
People = dict[str, LocalPresence | RemotePresence]


class PresenceSection:
    """Reads the presence section."""

    def __init__(
        self,
        *,
        presence: Presence,
        memberships: Memberships,
        store: MembershipStore,
        recent: RecentChanges,
        clock: IReactorTime,
        server_name: ServerName,
        includes_offline: bool,
    ) -> None:
        """`includes_offline`: an initial sync includes offline local users, at the cost of reading
        all of them."""
        self._presence = presence
        self._memberships = memberships
        self._store = store
        self._recent = recent
        self._clock = clock
        self._server_name = server_name
        self._includes_offline = includes_offline

    def watch(self, request: SyncRequest, listener: Listener) -> None:
        """Wake the listener on changes of presence too, if the request wants them."""
        if self._is_wanted(request):
            self._presence.broadcaster.watch(listener)

    def unwatch(self, listener: Listener) -> None:
        """Undo `watch`."""
        self._presence.broadcaster.unwatch(listener)

    async def read(
        self, request: SyncRequest, span: SyncRange, rows: MembershipRows, ignored: Set[str]
    ) -> list[msgspec.Raw]:
        """Return the m.presence events for the range."""
        if not self._is_wanted(request):
            return []
        if request.since is None or request.full_state:
            found = await self._find_all(request.caller.user_id, rows)
        else:
            found = await self._find_changed(
                request.caller.user_id, request.since.ephemeral, span, rows
            )
        filter_, second = request.filter.presence, int(self._clock.seconds())
        return [
            self._event(person, second)
            for user_id, person in found.items()
            if user_id not in ignored and (filter_.is_open or filter_.allows("m.presence", user_id))
        ]

    async def _find_all(self, user_id: UserID, rows: MembershipRows) -> People:
        """Return the users who share a room, for an initial sync."""
        present = self._presence.table.get_changed(None)
        if not present and not self._includes_offline:
            return {}
        joined = _joined(rows)
        found = await self._sharing(user_id, joined, present)
        if self._includes_offline:
            offline = (await self._all_local(joined)) - found.keys()
            found |= {other: LocalPresence(UserID(other)) for other in offline}
        return found

    async def _find_changed(
        self, user_id: UserID, since: int, span: SyncRange, rows: MembershipRows
    ) -> People:
        """Return the users whose presence changed, and those who have begun to share a room with
        the user."""
        changed = self._presence.table.get_changed(since)
        new_joins = await self._find_new_joins(span, rows)
        if not changed and not new_joins:
            return {}
        found = await self._sharing(user_id, _joined(rows), changed)
        for row in new_joins:
            found |= await self._find_newly_sharing(user_id, row)
        return found

    def _is_wanted(self, request: SyncRequest) -> bool:
        return self._presence.is_on and request.filter.presence.allows("m.presence", None)

    def _event(self, person: LocalPresence | RemotePresence, second: int) -> msgspec.Raw:
        """Return the event about a user, encoded once for all readers in the same second."""
        encoded = person.encoded_event
        if encoded is None or encoded[0] != second or encoded[1] is not person.published:
            content = self._presence.build_content(person, person.published)
            event = {"type": "m.presence", "sender": person.user_id, "content": content}
            encoded = person.encoded_event = (second, person.published, msgspec.json.encode(event))
        return msgspec.Raw(encoded[2])

    async def _find_new_joins(self, span: SyncRange, rows: MembershipRows) -> list[MembershipRow]:
        """Return the joins in the user's rooms, including their own: from memory, or from the
        database when the range begins before the changes in memory, such as after a restart."""
        joined = _joined(rows)
        recent = self._recent.memberships_since(span.since)
        if recent is None:
            recent = await self._store.get_changed_members(joined, span.since)
        return [row for row in recent if row.membership == "join" and row.room_nid in joined]

    async def _find_newly_sharing(self, user_id: UserID, row: MembershipRow) -> People:
        """Return the users who share a room because of a join: the local members whose presence is
        known if the user joined, otherwise the new member.

        An offline new member is included, because the client may have an outdated presence for
        them.
        """
        if row.user_id != user_id:
            other = UserID(row.user_id)
            return {other: self._presence.table.find(other) or LocalPresence(other)}
        ids = await self._memberships.local_members(row.room_nid)
        people = (
            self._presence.table.get_all()
            if len(ids) > MAX_SINGLE_LOOKUPS
            else [self._presence.table.find(UserID(id)) for id in ids]
        )
        return {
            person.user_id: person
            for person in people
            if person is not None and person.user_id in ids
        }

    async def _sharing(
        self, user_id: UserID, joined: set[int], people: Collection[LocalPresence | RemotePresence]
    ) -> People:
        """Return those of the users who are in one of these rooms, and the user."""
        found: People = {}
        unknown: People = {}
        for person in people:
            other = person.user_id
            if other == user_id:
                found[other] = person
            elif len(people) > MAX_SINGLE_LOOKUPS and domain_of(other) == self._server_name:
                unknown[other] = person
            elif await self._is_in(other, joined):
                found[other] = person
        for room_nid in joined:
            if not unknown:
                break
            for member in unknown.keys() & (await self._memberships.local_members(room_nid)):
                found[member] = unknown.pop(member)
        return found

    async def _is_in(self, user_id: UserID, room_nids: set[int]) -> bool:
        rows = await self._memberships.of_user(user_id)
        if len(rows) <= len(room_nids):
            return any(nid in room_nids and row.membership == "join" for nid, row in rows.items())
        return any(nid in rows and rows[nid].membership == "join" for nid in room_nids)

    async def _all_local(self, room_nids: set[int]) -> set[str]:
        found: set[str] = set()
        for room_nid in room_nids:
            found |= await self._memberships.local_members(room_nid)
        return found


def _joined(rows: MembershipRows) -> set[int]:
    return {room_nid for room_nid, row in rows.items() if row.membership == "join"}
