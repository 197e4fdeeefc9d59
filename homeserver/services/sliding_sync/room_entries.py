"""Makes the entries of rooms in a response: reads what is new to the client in each room.

`room_json.py` makes the JSON of an entry. The rooms of a batch (`batches.py`) are read together. A
room that the user has left is shown as it was when they left. Of the later changes, the client gets
only those of the user's own membership.
"""

from collections.abc import Mapping, Sequence, Set
from itertools import chain, repeat
from operator import attrgetter
from typing import Any, Final

from federation.protocol.events import StateKey
from federation.protocol.ids import UserID
from federation.rooms.events import StoredEvent
from federation.rooms.joins.out_of_room import is_out_of_room
from federation.rooms.visibility import VisibleEvent
from homeserver.services.account_data.ignored_users import without_ignored
from homeserver.services.push.unread_counts import has_hidden_redaction
from homeserver.services.rooms.client_events import (
    NO_REDACTIONS,
    present_state,
    present_state_event,
    present_stripped,
)
from homeserver.services.sliding_sync.connections import SlidingConnection
from homeserver.services.sliding_sync.request import MEMBER, SlidingRequest
from homeserver.services.sliding_sync.required_state import StateRequest
from homeserver.services.sliding_sync.room_json import (
    complete_entry,
    is_too_large,
    make_contents,
    trim,
)
from homeserver.services.sliding_sync.room_order import INVITED_OR_KNOCKING
from homeserver.services.sliding_sync.room_update import RoomParts, SlidingRoomUpdate
from homeserver.services.sync.lazy_members import RoomMember
from homeserver.services.sync.room_update import after_gaps, visible_after_leaving

_event_nid: Final = attrgetter("event_nid")
_leaves_state: Final = attrgetter("leaves_state")
_shown: Final = attrgetter("shown")
_pdu: Final = attrgetter("event.pdu")
_pdu_event: Final = attrgetter("event.event")
_sender: Final = attrgetter("sender")
_state_key: Final = attrgetter("state_key")
_stored_pdu: Final = attrgetter("pdu")


class RoomEntries:
    """Makes entries of rooms."""

    def __init__(self, parts: RoomParts) -> None:
        self._parts = parts

    def begin(self, request: SlidingRequest, connection: SlidingConnection) -> set[RoomMember]:
        """Return the lazily loaded members that the client has confirmed by this `pos`."""
        return self._parts.lazy_members.get_confirmed(connection.key, request.pos)

    def end(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        members: set[RoomMember],
        pos: str,
    ) -> None:
        """Record the members that the response with this `pos` carries."""
        self._parts.lazy_members.add_sent(connection.key, request.pos, members, pos)

    def find_latest(self, update: SlidingRoomUpdate) -> int:
        """Return the position of the latest change that the user sees in the room, if it is in
        memory."""
        if update.own.membership != "join":
            return update.own.position
        return self._parts.recency.known.get(update.room.room_nid, 0)

    async def make(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        updates: Sequence[SlidingRoomUpdate],
        upto: int,
        confirmed_members: set[RoomMember],
        new_members: set[RoomMember],
    ) -> dict[str, dict[str, Any]]:
        """Return the entries by room ID, of rooms with changes. Fills in the updates, and adds to
        `new_members`."""
        plain: dict[str, dict[str, Any]] = {}
        others: list[SlidingRoomUpdate] = []
        for update in updates:
            entry = self._make_plain(request, connection, update, upto, confirmed_members)
            if entry is None:
                others.append(update)
            else:
                plain[update.room.room_id] = entry
        if not others:
            return plain
        made = await self._make(request, connection, others, upto, confirmed_members, new_members)
        if not plain:
            return made
        made |= plain
        ids = [update.room.room_id for update in updates]
        return {room_id: made[room_id] for room_id in ids if room_id in made}

    def _make_plain(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        update: SlidingRoomUpdate,
        upto: int,
        confirmed_members: set[RoomMember],
    ) -> dict[str, Any] | None:
        """Return the entry of a room that has only plain messages; None if there is more, or
        less."""
        sent, own, config = update.sent, update.own, update.config
        if sent is None or update.initial or not sent.covers(config):
            return None
        bump = self._parts.recency.known_bumps.get(update.room.room_nid)
        if bump is None or not update.has_new_events:
            return None
        timeline = self._parts.plain_messages.read(
            request.caller,
            own,
            update.since,
            upto,
            limit=config.timeline_limit,
            known_members=confirmed_members if config.required_state.lazy_members else None,
            with_counts=not request.stable,
        )
        if timeline is None:
            return None
        shown = timeline.shown
        if is_too_large(shown):
            return None
        update.shown, update.counts, update.bump = shown, timeline.counts, bump
        update.newest, update.state_unchanged, update.has_changes = timeline.events[-1], True, True
        update.timeline_members = members_of(shown)
        update.size = sum(map(len, map(_pdu, shown)))
        entry = make_contents(update, timeline.encoded, (), {}, request.stable, connection, upto)
        complete_entry(entry, update, request.stable)
        return entry

    async def _make(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        updates: Sequence[SlidingRoomUpdate],
        upto: int,
        confirmed_members: set[RoomMember],
        new_members: set[RoomMember],
    ) -> dict[str, dict[str, Any]]:
        """Return the entries of rooms, whatever is new in them."""
        shown = [update for update in updates if update.shows_room]
        joined = [update for update in shown if update.own.membership == "join"]
        ignored = await self._parts.ignored.of_user(request.caller.user_id)
        await self._fill_timelines(request.caller.user_id, shown, upto, ignored)
        await self._fill_states(shown, upto, confirmed_members, new_members)
        contents = await self._make_contents(request, connection, shown, upto)
        await self._fill_summaries(request, joined)
        await self._fill_counts(request, joined, ignored)
        entries: dict[str, dict[str, Any]] = {}
        for update in updates:
            if not update.shows_room:
                entry, update.has_changes = await self._make_out_of_room(request, update), True
            else:
                entry = contents[update.room.room_id]
                update.has_changes = _has_changes(request, update, entry)
                if not (update.has_changes or update.is_bumped):
                    continue
            complete_entry(entry, update, request.stable)
            entries[update.room.room_id] = entry
        return entries

    async def _make_contents(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        updates: Sequence[SlidingRoomUpdate],
        upto: int,
    ) -> dict[str, dict[str, Any]]:
        """Encode timelines and states, and measure their sizes."""
        client_events, caller = self._parts.client_events, request.caller
        wanted: set[int | None] = set()
        for update in updates:
            wanted.update(update.state.entries.values(), update.state.named.values())
        events = await self._parts.events.get_events(filter(None, wanted)) if wanted else {}
        reasons = (
            await client_events.find_redactions(caller.user_id, events.values())
            if events
            else NO_REDACTIONS
        )
        new = {update.room.room_nid for update in updates if update.is_new_timeline}
        encoded = await client_events.present(
            caller.user_id,
            caller.device_id,
            list(chain.from_iterable(map(_shown, updates))),
            with_room_id=False,
            bundled_in=None if len(new) == len(updates) else new,
        )
        contents: dict[str, dict[str, Any]] = {}
        begin = 0
        for update in updates:
            end = begin + len(update.shown)
            state = list(map(events.__getitem__, update.state.entries.values()))
            update.size = sum(map(len, map(_pdu, update.shown))) + sum(
                map(len, map(_stored_pdu, state))
            )
            required = present_state(state, reasons, with_room_id=False)
            contents[update.room.room_id] = make_contents(
                update, encoded[begin:end], required, events, request.stable, connection, upto
            )
            begin = end
        return contents

    async def _fill_summaries(
        self, request: SlidingRequest, joined: Sequence[SlidingRoomUpdate]
    ) -> None:
        """Read the summaries that may have changed."""
        changed = [update for update in joined if update.initial or update.state.summary_changed]
        if changed:
            nids = [update.room.room_nid for update in changed]
            summaries = await self._parts.summaries.summarize(request.caller.user_id, nids)
            for update in changed:
                update.summary = summaries.get(update.room.room_nid)

    async def _fill_counts(
        self, request: SlidingRequest, joined: Sequence[SlidingRoomUpdate], ignored: Set[str]
    ) -> None:
        """Read unread counts, and the newest events that move rooms up."""
        if not request.stable:
            rows = [update.own for update in joined]
            counts = await self._parts.unread.get_counts(request.caller.user_id, rows, ignored)
            for update in joined:
                update.counts = counts.get(update.room.room_nid)
        bumps = await self._parts.recency.bumps([update.room.room_nid for update in joined])
        for update in joined:
            update.bump = bumps.get(update.room.room_nid, 0)

    async def _make_out_of_room(
        self, request: SlidingRequest, update: SlidingRoomUpdate
    ) -> dict[str, Any]:
        """Return the entry of a room that the user is not in and never was: an invite, a knock, or
        the end of one."""
        if update.own.membership in INVITED_OR_KNOCKING:
            stripped = present_stripped(await self._parts.invited.get_stripped(update.own))
            entry: dict[str, Any] = {
                "stripped_state" if request.stable else "invite_state": stripped
            }
        else:
            own = await self._parts.invited.find_membership_event(update.room, update.own)
            if request.stable:
                entry = {"stripped_state": present_stripped([] if own is None else [own.event])}
            else:  # clients would take stripped state for an invite
                entry = {
                    "required_state": [present_state_event(own, with_room_id=False)]
                    if own is not None
                    else []
                }
        if not request.stable:
            entry |= {"notification_count": 0, "highlight_count": 0}
        return entry

    async def _fill_timelines(
        self, user_id: UserID, updates: Sequence[SlidingRoomUpdate], upto: int, ignored: Set[str]
    ) -> None:
        by_limit: dict[int, dict[int, tuple[int, int]]] = {}
        for update in updates:
            if update.sent is not None and not update.initial:
                update.expanded = update.config.timeline_limit > update.sent.timeline_limit
            since = 0 if update.initial or update.expanded else update.since
            ranges = by_limit.setdefault(update.config.timeline_limit, {})
            ranges[update.room.room_nid] = (since, _end(update, upto))
        arrivals = await self._get_arrivals(by_limit)
        for update in updates:
            arrived, update.limited = arrivals[update.room.room_nid]
            await self._fill_timeline(user_id, update, arrived, ignored)
        await self._add_earlier_members(
            user_id, [update for update in updates if update.lacks_members], ignored
        )

    async def _fill_timeline(
        self,
        user_id: UserID,
        update: SlidingRoomUpdate,
        arrived: Sequence[StoredEvent],
        ignored: Set[str],
    ) -> None:
        if update.left_before:
            arrived = visible_after_leaving(arrived, update.own, update.own.left_position)
        seen = await self._parts.visibility.filter(user_id, update.own, arrived)
        update.shown = without_ignored(seen, ignored)
        update.counts_changed = update.counts_changed or has_hidden_redaction(arrived, update.shown)
        update.shown, has_gap = after_gaps(update.shown, arrived)
        update.limited = update.limited or has_gap
        update.newest = arrived[-1] if arrived else None
        if len(update.shown) > 1:
            trim(update)
        update.timeline_members = members_of(update.shown)
        update.is_new_timeline = update.initial or update.limited or update.expanded
        update.state_unchanged = (
            not update.is_new_timeline
            and not update.left_before
            and all(map(_leaves_state, arrived))
        )

    async def _add_earlier_members(
        self, user_id: UserID, updates: Sequence[SlidingRoomUpdate], ignored: Set[str]
    ) -> None:
        """Add the members that the timelines need which the client has already."""
        if not updates:
            return
        parts = self._parts
        by_limit: dict[int, dict[int, tuple[int, int]]] = {}
        for update in updates:
            limit = max(
                update.config.timeline_limit,
                0 if update.sent is None else update.sent.timeline_limit,
            )
            by_limit.setdefault(limit, {})[update.room.room_nid] = (0, update.since)
        arrivals = await self._get_arrivals(by_limit)
        for update in updates:
            arrived, _ = arrivals[update.room.room_nid]
            seen = without_ignored(
                await parts.visibility.filter(user_id, update.own, arrived), ignored
            )
            update.timeline_members = update.timeline_members | members_of(seen)

    async def _get_arrivals(
        self, by_limit: Mapping[int, Mapping[int, tuple[int, int]]]
    ) -> dict[int, tuple[list[StoredEvent], bool]]:
        """Return, for each room, the latest events of a range, and whether there are more.

        `by_limit`: by the number of events at most, the rooms with their ranges (after, up to).
        """
        latest = {
            nid: range_
            for limit, ranges in by_limit.items()
            for nid, range_ in (await self._parts.timelines.get_latest(ranges, limit)).items()
        }
        events = await self._parts.events.get_events(
            chain.from_iterable(map(_event_nid, range_.arrivals) for range_ in latest.values())
        )
        return {
            nid: (list(map(events.__getitem__, map(_event_nid, range_.arrivals))), range_.limited)
            for nid, range_ in latest.items()
        }

    async def _fill_states(
        self,
        updates: Sequence[SlidingRoomUpdate],
        upto: int,
        confirmed_members: set[RoomMember],
        new_members: set[RoomMember],
    ) -> None:
        """Find the state that each entry needs: all that is asked for, or what changed."""
        roots = await self._find_roots(updates, upto)
        former = await self._find_former_roots(updates)
        await self._fill_initial_states(
            [update for update in updates if update.initial], roots, confirmed_members, new_members
        )
        for update in updates:
            if update.initial:
                continue
            nid, wanted, root = (
                update.room.room_nid,
                update.config.required_state,
                roots[update.room.room_nid],
            )
            if nid in former:
                update.state = await self._parts.states.get_changed(nid, former[nid], root, wanted)
            if update.sent is not None and not update.sent.required_state.covers(wanted):
                added = await self._parts.states.get_added(
                    nid, root, wanted, update.sent.required_state
                )
                update.state.entries |= added
            if wanted.lazy_members:
                await self._add_members(update, root, confirmed_members, new_members)
            elif update.state.changed_members:
                changed_members = [(nid, user_id) for user_id in update.state.changed_members]
                confirmed_members.difference_update(changed_members)
        for update in updates:
            if update.left_before and not is_out_of_room(update.own):
                _add_own_membership(update)

    async def _find_roots(
        self, updates: Sequence[SlidingRoomUpdate], upto: int
    ) -> Mapping[int, bytes | None]:
        """Return the states at the end of the range."""
        roots: dict[int, bytes | None] = {}
        others: dict[int, int] = {}
        for update in updates:
            if update.newest is not None and not update.left_before:
                roots[update.room.room_nid] = update.newest.current_root
            else:
                others[update.room.room_nid] = _state_end(update, upto)
        return {**roots, **await self._parts.current_states.at(others)} if others else roots

    async def _find_former_roots(
        self, updates: Sequence[SlidingRoomUpdate]
    ) -> Mapping[int, bytes | None]:
        """Return the states that the client has, for rooms whose state may have changed."""
        positions = {
            update.room.room_nid: _state_end(update, update.since)
            for update in updates
            if update.has_new_events and not update.initial and not update.state_unchanged
        }
        return await self._parts.current_states.at(positions) if positions else {}

    async def _fill_initial_states(
        self,
        updates: Sequence[SlidingRoomUpdate],
        roots: Mapping[int, bytes | None],
        confirmed_members: set[RoomMember],
        new_members: set[RoomMember],
    ) -> None:
        """Find all the state that is asked for, of rooms with which the client starts over."""
        if not updates:
            return
        requests: list[StateRequest] = []
        for update in updates:
            nid, wanted = update.room.room_nid, update.config.required_state
            members = update.timeline_members if wanted.lazy_members else ()
            requests.append(StateRequest(nid, roots[nid], wanted, members))
            if update.sent is not None:
                of_room = [member for member in confirmed_members if member[0] == nid]
                confirmed_members.difference_update(of_room)
            new_members.update(zip(repeat(nid), members))
        states = await self._parts.states.get_complete(requests)
        for update, state in zip(updates, states, strict=True):
            update.state = state

    async def _add_members(
        self,
        update: SlidingRoomUpdate,
        root: bytes | None,
        confirmed_members: set[RoomMember],
        new_members: set[RoomMember],
    ) -> None:
        """Add the lazily loaded members that the client lacks, or has from before they changed."""
        nid, state = update.room.room_nid, update.state
        needed, changed = set(update.timeline_members), state.changed_members.keys()
        if changed:
            if not update.limited:
                needed |= changed
            # a member that changed and is not sent now has to be sent when it is needed
            confirmed_members.difference_update([(nid, user_id) for user_id in changed - needed])
        missing = [
            user_id
            for user_id in needed
            if user_id in changed or (nid, user_id) not in confirmed_members
        ]
        if missing:
            state.entries |= await self._parts.states.get_members(nid, root, missing)
            new_members.update((nid, user_id) for user_id in missing)


def members_of(timeline: Sequence[VisibleEvent]) -> set[str]:
    """Return the users whose memberships a timeline needs: senders, and targets of membership
    events."""
    events = list(map(_pdu_event, timeline))
    needed: set[str] = set(map(_sender, events))
    if any(map(_state_key, events)):
        needed.update(
            event.state_key for event in events if event.state_key and event.type == MEMBER
        )
    return needed


def _has_changes(
    request: SlidingRequest, update: SlidingRoomUpdate, entry: Mapping[str, Any]
) -> bool:
    """Whether anything is new, so that the request ends its wait."""
    if entry or update.initial or update.summary is not None:
        return True
    if request.stable and update.is_direct_changed:
        return True
    if update.counts is not None and update.may_have_new_counts:
        return True
    # with a timeline, a room that moves up without an event to show has one of an ignored user
    return update.is_bumped and not update.config.timeline_limit


def _end(update: SlidingRoomUpdate, upto: int) -> int:
    """Return the position up to which the user sees the room."""
    return upto if update.own.membership == "join" else min(upto, update.own.position)


def _state_end(update: SlidingRoomUpdate, upto: int) -> int:
    """Return the position up to which the user sees the room's state."""
    end = _end(update, upto)
    return end if update.own.left_position is None else min(end, update.own.left_position)


def _add_own_membership(update: SlidingRoomUpdate) -> None:
    """Show the user's present membership in the state of a room that they left."""
    wanted, own = update.config.required_state, StateKey(MEMBER, update.own.user_id)
    is_needed = wanted.matches(*own) or (
        wanted.lazy_members and own.state_key in update.timeline_members
    )
    if own in update.state.entries or (
        is_needed and (update.initial or update.own.position > update.since)
    ):
        update.state.entries[own] = update.own.event_nid
