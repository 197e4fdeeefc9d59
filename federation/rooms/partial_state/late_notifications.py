"""Decides which late messages count as new, and whom they notify.

A late message was refused by the partial state of a room, and is allowed by the complete state. It
becomes visible when the state is complete. Users who joined after the message arrived are not
notified of it.

Law: a message counts as new for all local members of the room or for none, because new messages are
shown to all of them as unread. So if one of the users who joined later may not see the message, it
does not count as new. It is then only part of the room's history.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from federation.protocol.events import StateKey
from federation.protocol.ids import UserID
from federation.protocol.visibility import HISTORY_VISIBILITY, is_visible, read_visibility
from federation.rooms.events import StoredEvent
from federation.rooms.memberships import Memberships
from federation.rooms.receive.persist import EventPersister
from federation.rooms.resolve import StateResolver
from federation.rooms.snapshot import RoomSnapshot
from storage.events.events import EventFlag
from storage.partial_state.completion import LateMessage
from storage.persist.room_writer import StateChange
from storage.rooms.memberships import MembershipRow, MembershipStore

NO_ACTIONS: Final = 0
"""Push actions of a message for a user: none. See `storage/push/event_push_actions.py`."""


class LateCandidate(msgspec.Struct, frozen=True):
    """A late message with the state before it."""

    stored: StoredEvent
    before: StateChange
    message: LateMessage


class LateNotifications:
    """Decides which late messages notify which users. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        persister: EventPersister,
        resolver: StateResolver,
        memberships: Memberships,
        store: MembershipStore,
    ) -> None:
        self._persister = persister
        self._resolver = resolver
        self._memberships = memberships
        self._store = store

    async def classify(
        self, snapshot: RoomSnapshot, stored: StoredEvent, before: StateChange
    ) -> LateCandidate:
        """Classify the message for the users who were in the room."""
        classification = await self._persister.classify(snapshot, stored.event, before)
        return LateCandidate(
            stored,
            before,
            LateMessage(
                stored.nid,
                classification.flags,
                classification.outcomes,
                classification.thread_root,
            ),
        )

    async def find_new_messages(
        self, room_nid: int, candidates: Sequence[LateCandidate]
    ) -> list[LateMessage]:
        """Return the messages that are new to the present members, in order, classified for
        them."""
        if not candidates:
            return []
        local_members = await self._memberships.local_members(room_nid)
        members = await self._store.get_memberships(room_nid, local_members)
        message = []
        for each in candidates:
            # event numbers increase in the order of arrival
            later = {user: row for user, row in members.items() if row.event_nid > each.stored.nid}
            found = (
                await self._adjust_for_later_joins(room_nid, each, later) if later else each.message
            )
            if found is not None:
                flags = found.flags | (EventFlag.HAS_PUSH_ACTIONS if found.outcomes else 0)
                message.append(replace(found, flags=flags))
        return message

    async def _adjust_for_later_joins(
        self, room_nid: int, candidate: LateCandidate, members: Mapping[str, MembershipRow]
    ) -> LateMessage | None:
        """Remove the notifications of users who joined, or changed their names, after the message.

        Return None if one of them may not see it.
        """
        event = candidate.stored.event
        keys = {user: StateKey("m.room.member", user) for user in members}
        state = await self._resolver.load(
            room_nid, candidate.before, [HISTORY_VISIBILITY, *keys.values()]
        )
        stored = state.get(HISTORY_VISIBILITY)
        visibility = read_visibility(None if stored is None else stored.event)
        outcomes = dict(candidate.message.outcomes)
        for user, key in keys.items():
            membership = state[key].event.membership if key in state else None
            if membership == "join":
                continue
            if not is_visible(
                event, UserID(user), visibility=visibility, membership=membership, joined_later=True
            ):
                return None
            outcomes[user] = NO_ACTIONS
        return replace(candidate.message, outcomes=outcomes)
