"""Lists a user's notifications. The list is computed from the push flags and push action rows that
are stored for unread counts. Nothing else is stored for it.

Laws:
- The newest notifications come first. For a page, rooms are read in the order of their newest
  events. Reading stops when the page is full and all events of the remaining rooms are older.
- The list leaves out events that the user may no longer see: events of rooms that they left, events
  from before they last joined, events that are redacted or expired by retention, and events that
  ignored users sent.
- The flags *notify* and *highlight* of an event are fixed when the event arrives. Other actions,
  such as the sound, come from the user's current rules if these give the same flags. An invite has
  no flags if this server was not in the room when the invite arrived: then the current rules decide
  everything.

spec: client-server-api#listing-notifications
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.history.retention import RoomRetentionCache
from federation.rooms.joins.out_of_room import OutOfRoomMemberships, is_out_of_room
from federation.rooms.memberships import Memberships
from federation.rooms.visibility import VisibleEvent
from homeserver.api.requester import Requester
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.push.default_rules import Action
from homeserver.services.push.unread_counts import UnreadCounts
from homeserver.services.push.user_rules import UserRuleCache, UserRules
from homeserver.services.rooms.client_events import ClientEvents
from storage.engine.streams import Streams
from storage.push.event_push_actions import (
    HIGHLIGHTED,
    MAIN,
    NOTIFIES,
    EventPushActionStore,
    NotifiedEvent,
    ReadPositions,
)
from storage.push.old_push_actions import OldPushActionStore
from storage.push.push_rule_history import PushRuleSpan
from storage.rooms.memberships import MembershipRow
from storage.rooms.recency import RoomRecencyStore
from storage.rooms.rooms import RoomStore

MAX_LIMIT: Final = 100
"""Notifications on one page."""
ROOM_BATCH: Final = 50
"""Rooms that one query reads."""
HIGHLIGHT: Final = "highlight"
_TOKEN: Final = re.compile(r"n([0-9]{1,18})", re.ASCII)


class Notifications:
    """Lists notifications. Used only on the reactor thread."""

    # More than ten: the list joins stored and computed notifications of all kinds.
    def __init__(
        self,
        *,
        outcomes: EventPushActionStore,
        old: OldPushActionStore,
        recency: RoomRecencyStore,
        rooms: RoomStore,
        memberships: Memberships,
        past_memberships: PastMemberships,
        events: RoomEvents,
        out_of_room: OutOfRoomMemberships,
        unread: UnreadCounts,
        rules: UserRuleCache,
        decisions: PushDecisions,
        ignored: IgnoredUsers,
        permissions: InvitePermissions,
        client_events: ClientEvents,
        streams: Streams,
        lifetimes: RoomRetentionCache | None,
    ) -> None:
        self._outcomes = outcomes
        self._floors = old
        self._recency = recency
        self._rooms = rooms
        self._memberships = memberships
        self._past_memberships = past_memberships
        self._events = events
        self._out_of_room = out_of_room
        self._unread = unread
        self._rules = rules
        self._decisions = decisions
        self._ignored = ignored
        self._permissions = permissions
        self._client_events = client_events
        self._streams = streams
        self._lifetimes = lifetimes

    async def get(
        self, caller: Requester, from_: str | None, limit: int, only: str | None
    ) -> Mapping[str, Any]:
        """Return a page of notifications. Raises InvalidParam."""
        if only not in (None, HIGHLIGHT):
            raise InvalidParam("`only` can only be `highlight`")
        before = self._streams.current() if from_ is None else _parse_token(from_)
        limit = max(1, min(limit, MAX_LIMIT))
        rows = {
            nid: row
            for nid, row in (await self._memberships.of_user(caller.user_id)).items()
            if row.membership == "join"
            or (row.membership == "invite" and not await self._permissions.hides(row))
        }
        undecided = await self._find_undecided(rows)
        own = {nid: row for nid, row in rows.items() if nid not in undecided}
        highlights_only = only == HIGHLIGHT
        found = await self._find(
            caller.user_id, own, before, limit, highlights_only=highlights_only
        )
        after = found[-1].position if len(found) == limit else 0
        invites = [row for row in undecided.values() if after < row.position <= before]
        decided = await self._decide(
            caller.user_id, invites, limit, highlights_only=highlights_only
        )
        found = sorted([*found, *decided], key=lambda each: each.position, reverse=True)[:limit]
        response: dict[str, Any] = {
            "notifications": await self._present(caller, rows, found, decided)
        }
        if len(found) == limit:
            response["next_token"] = f"n{found[-1].position - 1}"
        return response

    async def _find_undecided(
        self, rows: Mapping[int, MembershipRow]
    ) -> Mapping[int, MembershipRow]:
        """Return the invites without a stored decision: this server was not in the room when they
        came. It may be in the room now."""
        invites = {nid: row for nid, row in rows.items() if row.membership == "invite"}
        stored = await self._events.get_events(
            row.event_nid for row in invites.values() if not is_out_of_room(row)
        )
        return {
            nid: row
            for nid, row in invites.items()
            if is_out_of_room(row)
            or (row.event_nid in stored and stored[row.event_nid].position is None)
        }

    async def _decide(
        self,
        user_id: UserID,
        invites: Collection[MembershipRow],
        limit: int,
        *,
        highlights_only: bool,
    ) -> Mapping[NotifiedEvent, StoredEvent]:
        """Return the newest of these invites that notify the user by their present rules."""
        rules = await self._rules.of_user(user_id)
        order = sorted(invites, key=lambda row: row.position, reverse=True)
        found: dict[NotifiedEvent, StoredEvent] = {}
        for start in range(0, len(order), ROOM_BATCH):
            if len(found) >= limit:
                break
            chunk = order[start : start + ROOM_BATCH]
            events = await self._load_invites(user_id, chunk)
            for row in chunk:
                event = events.get(row.room_nid)
                if event is None or event.redacted_by is not None:
                    continue
                actions = rules.rule_set.find(
                    await self._decisions.prepare(event), user_id, row.display_name
                )
                if actions.notify and (actions.highlight or not highlights_only):
                    outcome = NOTIFIES | (HIGHLIGHTED if actions.highlight else 0)
                    found[NotifiedEvent(row.position, event.nid, row.room_nid, outcome)] = event
        return found

    async def _load_invites(
        self, user_id: UserID, rows: Collection[MembershipRow]
    ) -> Mapping[int, StoredEvent]:
        """Return the events of the invites by room."""
        out_of_room = [row for row in rows if is_out_of_room(row)]
        rooms = await self._rooms.get_rooms_by_nid([row.room_nid for row in out_of_room])
        stored = await self._events.get_events(
            row.event_nid for row in rows if not is_out_of_room(row)
        )
        inside = {event.room_nid: event for event in stored.values()}
        return {**await self._out_of_room.find_events(user_id, rooms, out_of_room), **inside}

    async def _find(
        self,
        user_id: UserID,
        own: Mapping[int, MembershipRow],
        before: int,
        limit: int,
        *,
        highlights_only: bool,
    ) -> Sequence[NotifiedEvent]:
        rules = await self._rules.of_user(user_id)
        ignored = await self._ignored.of_user(user_id)
        oldest_positions = await self._floors.get_floors(user_id)
        latest = await self._recency.get_latest_positions(own)
        order = sorted(latest, key=lambda nid: latest[nid], reverse=True)
        found: list[NotifiedEvent] = []
        for start in range(0, len(order), ROOM_BATCH):
            chunk = order[start : start + ROOM_BATCH]
            if len(found) == limit and latest[chunk[0]] < found[-1].position:
                break
            spans = [
                (
                    nid,
                    await self._spans(
                        rules, own[nid], oldest_positions.get(nid, 0), min(before, latest[nid])
                    ),
                )
                for nid in chunk
            ]
            found += await self._outcomes.get_notified(
                user_id, spans, ignored, highlights_only=highlights_only, limit=limit
            )
            found = sorted(found, key=lambda each: each.position, reverse=True)[:limit]
        return found

    async def _spans(
        self, rules: UserRules, row: MembershipRow, floor: int, upto: int
    ) -> Sequence[PushRuleSpan]:
        """Return the part of a room that counts: since the user joined, or only the invite; above
        `floor`."""
        after = (
            await self._past_memberships.get_joined_since(row)
            if row.membership == "join"
            else row.position - 1
        )
        if row.membership == "invite":
            upto = min(upto, row.position)
        after = max(after, floor)
        if after >= upto:
            return []
        room = (await self._rooms.get_rooms_by_nid([row.room_nid]))[row.room_nid]
        return rules.history.spans(room.room_id.lower(), after, upto)

    async def _present(
        self,
        caller: Requester,
        own: Mapping[int, MembershipRow],
        found: Sequence[NotifiedEvent],
        decided: Mapping[NotifiedEvent, StoredEvent],
    ) -> list[Mapping[str, Any]]:
        """Return notifications in client form. `decided`: invites without a stored decision, with
        their events."""
        rules = await self._rules.of_user(caller.user_id)
        stored = await self._events.get_events(
            each.event_nid for each in found if each not in decided
        )
        events = [(each, decided.get(each) or stored.get(each.event_nid)) for each in found]
        shown = [
            (each, event)
            for each, event in events
            if event is not None and (self._lifetimes is None or await self._lifetimes.shows(event))
        ]
        joined = {
            each.room_nid: own[each.room_nid]
            for each in found
            if own[each.room_nid].membership == "join"
        }
        read_positions = await self._unread.get_read_positions(caller.user_id, joined.values())
        forms = await self._client_events.present(
            caller.user_id,
            caller.device_id,
            [VisibleEvent(event, own[each.room_nid].membership) for each, event in shown],
            with_room_id=True,
        )
        return [
            {
                "room_id": event.event.room_id,
                "event": form,
                "ts": event.event.origin_server_ts,
                "read": _is_read(read_positions.get(each.room_nid), event),
                "actions": await self._actions(
                    caller.user_id, rules, own[each.room_nid], each, event
                ),
            }
            for (each, event), form in zip(shown, forms, strict=True)
        ]

    async def _actions(
        self,
        user_id: UserID,
        rules: UserRules,
        row: MembershipRow,
        each: NotifiedEvent,
        event: StoredEvent,
    ) -> Sequence[Action]:
        present = rules.rule_set.find(
            await self._decisions.prepare(event), user_id, row.display_name
        )
        is_highlight = each.outcome >= HIGHLIGHTED
        if present.notify and present.highlight == is_highlight:
            return present.raw
        return ["notify", {"set_tweak": HIGHLIGHT}] if is_highlight else ["notify"]


def _is_read(read: ReadPositions | None, event: StoredEvent) -> bool:
    position = event.position or 0
    return read is not None and position <= read.of(event.thread_root or MAIN)


def _parse_token(text: str) -> int:
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise InvalidParam("`from` is not a token that this endpoint returned")
    return int(match[1])
