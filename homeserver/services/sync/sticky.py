"""Sticky events as readers get them: all of a room's that they have not heard of, whatever the
timeline has room for.

Who is in the room is told of them, also of those from before their time: history visibility does
not apply. Those of users whom the reader ignores are left out, and what is kept no longer.

Proposal: MSC4354.
"""

from collections.abc import Collection, Mapping, Set

import msgspec

from federation.rooms.events import RoomEvents
from federation.rooms.sticky_events import StickyEvents
from federation.rooms.visibility import Seen, Visibility
from homeserver.api.requester import Requester
from homeserver.services.rooms.client_events import ClientEvents
from storage.rooms.memberships import MembershipRow
from storage.rooms.sticky_events import StickyRow


class StickyReader:
    """Reads the sticky events of rooms for one of their members."""

    def __init__(
        self,
        sticky: StickyEvents,
        events: RoomEvents,
        visibility: Visibility,
        client_events: ClientEvents,
    ) -> None:
        self._sticky = sticky
        self._events = events
        self._visibility = visibility
        self._client_events = client_events

    async def rooms(self) -> Set[int]:
        """The rooms that may have sticky events."""
        return await self._sticky.rooms()

    async def find(
        self, ranges: Mapping[int, tuple[int, int]], shown: Collection[int], ignored: Set[str]
    ) -> dict[int, list[StickyRow]]:
        """For each room (after, up to): its sticky events in between that are not `shown` already;
        only rooms with any."""
        found: dict[int, list[StickyRow]] = {}
        for room_nid, rows in (await self._sticky.in_rooms(ranges)).items():
            wanted = [
                row for row in rows if row.event_nid not in shown and row.sender not in ignored
            ]
            if wanted:
                found[room_nid] = wanted
        return found

    async def present(
        self,
        caller: Requester,
        own: Mapping[int, MembershipRow],
        found: Mapping[int, list[StickyRow]],
    ) -> dict[int, list[msgspec.Raw]]:
        """The events by room, as the caller's device gets them; only rooms with any."""
        events = await self._events.get_events(
            row.event_nid for rows in found.values() for row in rows
        )
        presented: dict[int, list[msgspec.Raw]] = {}
        for room_nid, rows in found.items():
            kept = [events[row.event_nid] for row in rows if row.event_nid in events]
            present = await self._visibility.without_expired(
                [event for event in kept if not event.is_purged]
            )
            if not present:
                continue
            visible = {
                seen.event.nid: seen
                for seen in await self._visibility.filter(
                    caller.user_id, own.get(room_nid), present
                )
            }
            # what came before they were there, and would not be theirs to see if it were not sticky
            further = [Seen(event, "leave") for event in present if event.nid not in visible]
            further = await self._visibility.without_erased(own.get(room_nid), further)
            all_seen = visible | {seen.event.nid: seen for seen in further}
            seen = [all_seen[event.nid] for event in present]
            presented[room_nid] = await self._client_events.present(
                caller.user_id, caller.device_id, seen, with_room_id=False, bundled_in=frozenset()
            )
        return presented
