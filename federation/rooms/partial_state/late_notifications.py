"""Messages that a part of a room's state refused when they came, and that all of it allows: to whom
they are news.

Laws:
- What arrives is shown to who is in the room, and counted as unread (`visibility.py`). These arrive
  after people have come who were not there when they were sent: who came later is notified of none,
  and what they may not see is news to nobody; it stands in the past.
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
from federation.rooms.receive.persist import Placements
from federation.rooms.resolve import StateResolver
from federation.rooms.snapshot import RoomSnapshot
from storage.events.events import EventFlag
from storage.partial_state.completion import LateNews
from storage.persist.room_writer import StateChange
from storage.rooms.memberships import MembershipRow, MembershipStore

NOTHING: Final = 0
"""What a message is to somebody: see `storage/push/event_push_actions.py`."""


class HeardLate(msgspec.Struct, frozen=True):
    """Such a message, upon the state that was before it."""

    stored: StoredEvent
    before: StateChange
    news: LateNews


class LateHearing:
    """Says of messages what they are to whom. For the reactor thread."""

    def __init__(
        self,
        placements: Placements,
        resolver: StateResolver,
        memberships: Memberships,
        store: MembershipStore,
    ) -> None:
        self._placements = placements
        self._resolver = resolver
        self._memberships = memberships
        self._store = store

    async def note(
        self, snapshot: RoomSnapshot, stored: StoredEvent, before: StateChange
    ) -> HeardLate:
        """The message as it is to those who were in the room."""
        said = await self._placements.classify(snapshot, stored.event, before)
        return HeardLate(
            stored, before, LateNews(stored.nid, said.flags, said.outcomes, said.thread_root)
        )

    async def choose(self, room_nid: int, heard: Sequence[HeardLate]) -> list[LateNews]:
        """Those of the messages that are news, in their order, as they are to those who are in the
        room now."""
        if not heard:
            return []
        ours = await self._memberships.local_members(room_nid)
        members = await self._store.get_memberships(room_nid, ours)
        news = []
        for each in heard:
            # numbers are given as events come
            later = {user: row for user, row in members.items() if row.event_nid > each.stored.nid}
            found = await self._to_newcomers(room_nid, each, later) if later else each.news
            if found is not None:
                flags = found.flags | (EventFlag.OUTCOMES if found.outcomes else 0)
                news.append(replace(found, flags=flags))
        return news

    async def _to_newcomers(
        self, room_nid: int, heard: HeardLate, members: Mapping[str, MembershipRow]
    ) -> LateNews | None:
        """The message where these came into the room after it, or changed their names; None if one
        of them may not see it."""
        event = heard.stored.event
        keys = {user: StateKey("m.room.member", user) for user in members}
        state = await self._resolver.load(
            room_nid, heard.before, [HISTORY_VISIBILITY, *keys.values()]
        )
        told = state.get(HISTORY_VISIBILITY)
        visibility = read_visibility(None if told is None else told.event)
        outcomes = dict(heard.news.outcomes)
        for user, key in keys.items():
            membership = state[key].event.membership if key in state else None
            if membership == "join":
                continue
            if not is_visible(
                event, UserID(user), visibility=visibility, membership=membership, joined_later=True
            ):
                return None
            outcomes[user] = NOTHING
        return replace(heard.news, outcomes=outcomes)
