"""The new sticky events of a room that the timeline of the response does not contain.

Every member of the room gets them, also events from before the member joined: history visibility
does not apply. Events of ignored users and expired events are left out. If there are
more than `federation.rooms.sticky_events.MAX_PER_ROOM`, only the newest are sent.

Proposal: MSC4354.
"""

from collections.abc import Collection, Mapping, Set

import msgspec

from federation.rooms.events import RoomEvents
from federation.rooms.sticky_events import StickyEvents
from federation.rooms.visibility import Visibility, VisibleEvent
from homeserver.api.requester import Requester
from homeserver.services.rooms.client_events import ClientEvents
from storage.rooms.memberships import MembershipRow
from storage.rooms.sticky_events import StickyRow


class StickyEventReader:
    """Reads sticky events for a member of their rooms."""

    def __init__(
        self,
        *,
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
        """Return the rooms that may have sticky events."""
        return await self._sticky.rooms()

    async def find(
        self, ranges: Mapping[int, tuple[int, int]], shown: Collection[int], ignored: Set[str]
    ) -> dict[int, list[StickyRow]]:
        """Return, for each room (after, up to), its sticky events that are not `shown` already."""
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
        """Encode the events for the caller's device, by room."""
        events = await self._events.get_events(
            row.event_nid for rows in found.values() for row in rows
        )
        presented: dict[int, list[msgspec.Raw]] = {}
        for room_nid, rows in found.items():
            loaded = [events[row.event_nid] for row in rows if row.event_nid in events]
            visible_events = await self._visibility.without_expired(
                [event for event in loaded if not event.is_purged]
            )
            if not visible_events:
                continue
            visible = {
                seen.event.nid: seen
                for seen in await self._visibility.filter(
                    caller.user_id, own.get(room_nid), visible_events
                )
            }
            # events from before the join, which are visible only because they are sticky
            expired = [
                VisibleEvent(event, "leave") for event in visible_events if event.nid not in visible
            ]
            expired = await self._visibility.without_erased(own.get(room_nid), expired)
            all_seen = visible | {seen.event.nid: seen for seen in expired}
            seen = [all_seen[event.nid] for event in visible_events]
            presented[room_nid] = await self._client_events.present(
                caller.user_id, caller.device_id, seen, with_room_id=False, bundled_in=frozenset()
            )
        return presented
