"""The entries of rooms in an answer: timeline, state, name, people, counts.

All rooms of an answer are worked on together. Rooms that the user has left are shown as they were
then, whatever has happened since; of that they are told their own membership alone.
"""

from collections.abc import Mapping, Sequence, Set
from itertools import chain, repeat
from operator import attrgetter
from typing import Any, Final

from federation.protocol.events import StateKey
from federation.protocol.ids import UserID
from federation.rooms.events import StoredEvent
from federation.rooms.joins.out_of_room import is_outside
from homeserver.services.account_data.ignored_users import without_ignored
from homeserver.services.push.unread_counts import RoomUnread, has_hidden_redaction
from homeserver.services.rooms.client_events import (
    NO_REASONS,
    present_plainly,
    present_state,
    present_stripped,
)
from homeserver.services.sliding_sync.connections import Connection
from homeserver.services.sliding_sync.new_rooms import NewRooms
from homeserver.services.sliding_sync.order import OUTSIDE
from homeserver.services.sliding_sync.request import MEMBER, SlidingRequest
from homeserver.services.sliding_sync.required_state import (
    AskedState,
)
from homeserver.services.sliding_sync.room_entry import complete_entry, is_bumped, make_inside, trim
from homeserver.services.sliding_sync.room_work import RoomParts, RoomWork
from homeserver.services.sync.joined import after_holes, told_after_leaving
from homeserver.services.sync.lazy_members import Member
from homeserver.services.sync.timeline_pages import people_in

_event_nid: Final = attrgetter("event_nid")
_leaves_state: Final = attrgetter("leaves_state")
_shown: Final = attrgetter("shown")
_pdu: Final = attrgetter("event.pdu")
_stored_pdu: Final = attrgetter("pdu")


class RoomEntries:
    """Makes entries."""

    def __init__(self, parts: RoomParts, new: NewRooms) -> None:
        self._parts = parts
        self._new = new

    def begin(self, request: SlidingRequest, connection: Connection) -> set[Member]:
        """The members that the client has for sure, now that it has come with this `pos`."""
        return self._parts.lazy_members.sent(connection.key, request.pos)

    def end(
        self, request: SlidingRequest, connection: Connection, members: set[Member], pos: str
    ) -> None:
        """These members go out with the answer that has this `pos`."""
        self._parts.lazy_members.note(connection.key, request.pos, members, pos)

    def find_latest(self, work: RoomWork) -> int:
        """The position of the latest thing that the user may hear of in the room, where it is
        joined as far as it is in memory."""
        if work.own.membership != "join":
            return work.own.position
        return self._parts.recency.known.get(work.room.room_nid, 0)

    def find_bump(self, room_nid: int) -> int | None:
        """The position of the newest event that moves the room up, as far as it is in memory."""
        return self._parts.recency.known_bumps.get(room_nid)

    async def make(
        self,
        request: SlidingRequest,
        connection: Connection,
        works: Sequence[RoomWork],
        upto: int,
        sent_members: set[Member],
        newly_sent: set[Member],
    ) -> dict[str, dict[str, Any]]:
        """The entries by room id; a room in which nothing is to be told has none. Fills timelines
        and states in."""
        told = [
            self._new.tell(request, connection, work, upto, newly_sent) if work.initial else None
            for work in works
        ]
        longer = [work for work, entry in zip(works, told, strict=True) if entry is None]
        others: Mapping[str, dict[str, Any]] = {}
        if longer:
            others = await self._make(request, connection, longer, upto, sent_members, newly_sent)
        entries: dict[str, dict[str, Any]] = {}
        for work, entry in zip(works, told, strict=True):
            found = others.get(work.room.room_id) if entry is None else entry
            if found is not None:
                entries[work.room.room_id] = found
        return entries

    async def _make(
        self,
        request: SlidingRequest,
        connection: Connection,
        works: Sequence[RoomWork],
        upto: int,
        sent_members: set[Member],
        newly_sent: set[Member],
    ) -> dict[str, dict[str, Any]]:
        """The same, whatever there is to be told of the rooms."""
        shown = [work for work in works if work.shows_room]
        parts = self._parts
        user_id, device_id = request.caller.user_id, request.caller.device_id
        ignored = await parts.ignored.of_user(user_id)
        await self._fill_timelines(user_id, shown, upto, ignored)
        await self._fill_states(shown, upto, sent_members, newly_sent)
        wanted: set[int | None] = set()
        for work in shown:
            wanted.update(work.state.entries.values(), work.state.named.values())
        events = await parts.events.get_events(filter(None, wanted)) if wanted else {}
        for work in shown:
            work.size = sum(map(len, map(_pdu, work.shown)))
            if work.state.entries:
                work.size += sum(
                    map(len, map(_stored_pdu, map(events.__getitem__, work.state.entries.values())))
                )
        reasons = (
            await parts.client_events.find_reasons(user_id, events.values())
            if events
            else NO_REASONS
        )
        anew = {work.room.room_nid for work in shown if work.anew}
        presented = await parts.client_events.present(
            user_id,
            device_id,
            list(chain.from_iterable(map(_shown, shown))),
            with_room_id=False,
            bundled_in=None if len(anew) == len(shown) else anew,
        )
        joined = [work for work in shown if work.own.membership == "join"]
        gathered = [work for work in joined if work.initial or work.state.naming_changed]
        if gathered:
            summaries = await parts.summaries.summarize(
                user_id, [work.room.room_nid for work in gathered]
            )
            for work in gathered:
                work.summary = summaries.get(work.room.room_nid)
        counts: Mapping[int, RoomUnread] = {}
        if not request.stable:
            counts = await parts.unread.get_counts(user_id, [work.own for work in joined], ignored)
        bumps = await parts.recency.bumps([work.room.room_nid for work in joined])
        entries: dict[str, dict[str, Any]] = {}
        begin = 0
        for work in works:
            nid = work.room.room_nid
            bump = bumps.get(nid, 0) if work.own.membership == "join" else 0
            bumped = is_bumped(work, bump)
            if not work.shows_room:
                entry, work.is_told = await self._make_outside(request, work), True
            else:
                end = begin + len(work.shown)
                named = map(events.__getitem__, work.state.entries.values())
                required = present_state(named, reasons, with_room_id=False)
                entry = make_inside(
                    work, presented[begin:end], required, events, request.stable, connection, upto
                )
                begin = end
                moved = (
                    request.stable
                    and work.sent is not None
                    and work.sent.is_direct != work.is_direct
                )
                recounted = nid in counts and work.may_be_recounted
                work.is_told = (
                    bool(entry) or work.initial or work.summary is not None or moved or recounted
                )
                if bumped and not work.config.timeline_limit:
                    # else, if nothing is shown, somebody wrote whom the user ignores: it can wait
                    work.is_told = True
                if not (work.is_told or bumped):
                    continue
            complete_entry(entry, work, bump, counts.get(nid), request.stable)
            entries[work.room.room_id] = entry
        return entries

    async def _make_outside(self, request: SlidingRequest, work: RoomWork) -> dict[str, Any]:
        """A room that the user is invited to, knocks at, or has turned away from without ever being
        in it."""
        if work.own.membership in OUTSIDE:
            stripped = present_stripped(await self._parts.invited.get_stripped(work.own))
            entry: dict[str, Any] = {
                "stripped_state" if request.stable else "invite_state": stripped
            }
        else:
            own = await self._parts.invited.find_own(work.room, work.own)
            if request.stable:
                entry = {"stripped_state": present_stripped([] if own is None else [own.event])}
            else:  # stripped state would be taken for an invite
                entry = {
                    "required_state": [present_plainly(own, with_room_id=False)]
                    if own is not None
                    else []
                }
        if not request.stable:
            entry |= {"notification_count": 0, "highlight_count": 0}
        return entry

    async def _fill_timelines(
        self, user_id: UserID, works: Sequence[RoomWork], upto: int, ignored: Set[str]
    ) -> None:
        parts = self._parts
        by_limit: dict[int, dict[int, tuple[int, int]]] = {}
        for work in works:
            if work.sent is not None and not work.initial:
                work.expanded = work.config.timeline_limit > work.sent.timeline_limit
            since = 0 if work.initial or work.expanded else work.since
            by_limit.setdefault(work.config.timeline_limit, {})[work.room.room_nid] = (
                since,
                _end(work, upto),
            )
        arrivals = await self._get_arrivals(by_limit)
        for work in works:
            arrived, work.limited = arrivals[work.room.room_nid]
            if work.left_before:
                arrived = told_after_leaving(arrived, work.own, work.own.left_position)
            work.shown = without_ignored(
                await parts.visibility.filter(user_id, work.own, arrived), ignored
            )
            work.is_recounted = work.is_recounted or has_hidden_redaction(arrived, work.shown)
            work.shown, has_hole = after_holes(work.shown, arrived)
            work.limited = work.limited or has_hole
            work.newest = arrived[-1] if arrived else None
            if len(work.shown) > 1:
                trim(work)
            work.speakers = people_in(work.shown)
            work.anew = work.initial or work.limited or work.expanded
            work.messages_alone = (
                not work.anew and not work.left_before and all(map(_leaves_state, arrived))
            )
        await self._add_known_speakers(
            user_id, [work for work in works if work.lacks_members], ignored
        )

    async def _add_known_speakers(
        self, user_id: UserID, works: Sequence[RoomWork], ignored: Set[str]
    ) -> None:
        """To those who speak in what is new those who do in what the client has already."""
        if not works:
            return
        parts = self._parts
        by_limit: dict[int, dict[int, tuple[int, int]]] = {}
        for work in works:
            limit = max(
                work.config.timeline_limit, 0 if work.sent is None else work.sent.timeline_limit
            )
            by_limit.setdefault(limit, {})[work.room.room_nid] = (0, work.since)
        arrivals = await self._get_arrivals(by_limit)
        for work in works:
            arrived, _ = arrivals[work.room.room_nid]
            seen = without_ignored(
                await parts.visibility.filter(user_id, work.own, arrived), ignored
            )
            work.speakers = work.speakers | people_in(seen)

    async def _get_arrivals(
        self, by_limit: Mapping[int, Mapping[int, tuple[int, int]]]
    ) -> dict[int, tuple[list[StoredEvent], bool]]:
        """For each room, the latest events of a stretch, and whether there are more. `by_limit`: by
        how many at most, the rooms with the position after which, and the one up to which, the
        stretch goes."""
        stretches = {
            nid: stretch
            for limit, ranges in by_limit.items()
            for nid, stretch in (await self._parts.timelines.get_latest(ranges, limit)).items()
        }
        events = await self._parts.events.get_events(
            chain.from_iterable(map(_event_nid, stretch.arrivals) for stretch in stretches.values())
        )
        return {
            nid: (list(map(events.__getitem__, map(_event_nid, stretch.arrivals))), stretch.limited)
            for nid, stretch in stretches.items()
        }

    async def _fill_states(
        self,
        works: Sequence[RoomWork],
        upto: int,
        sent_members: set[Member],
        newly_sent: set[Member],
    ) -> None:
        parts, states = self._parts, self._parts.states
        changing = {
            work.room.room_nid: _state_end(work, work.since)
            for work in works
            if work.has_news and not work.initial and not work.messages_alone
        }
        former = await parts.current_states.at(changing) if changing else {}
        elsewhere = {
            work.room.room_nid: _state_end(work, upto)
            for work in works
            if not _ends_with_newest(work)
        }
        roots = await parts.current_states.at(elsewhere) if elsewhere else {}
        begun: list[RoomWork] = []
        whole: list[AskedState] = []
        for work in works:
            nid, wanted = work.room.room_nid, work.config.required_state
            root = roots[nid] if nid in roots or work.newest is None else work.newest.current_root
            if work.initial:
                begun.append(work)
                whole.append(
                    AskedState(nid, root, wanted, work.speakers if wanted.lazy_members else ())
                )
                if work.sent is not None:  # the client begins anew with the room
                    sent_members.difference_update(
                        [member for member in sent_members if member[0] == nid]
                    )
                if wanted.lazy_members:
                    newly_sent.update(zip(repeat(nid), work.speakers))
                continue
            if nid in changing:
                work.state = await states.get_changed(nid, former[nid], root, wanted)
            if work.sent is not None and not work.sent.required_state.covers(wanted):
                work.state.entries |= await states.get_added(
                    nid, root, wanted, work.sent.required_state
                )
            if wanted.lazy_members:
                await self._add_members(work, root, sent_members, newly_sent)
            elif work.state.changed_members:
                sent_members.difference_update(
                    [(nid, user_id) for user_id in work.state.changed_members]
                )
        if begun:
            for work, state in zip(begun, await states.get_wholes(whole), strict=True):
                work.state = state
        for work in works:
            if work.left_before and not is_outside(work.own):
                _tell_own_membership(work)

    async def _add_members(
        self, work: RoomWork, root: bytes | None, sent_members: set[Member], newly_sent: set[Member]
    ) -> None:
        nid, state = work.room.room_nid, work.state
        needed, changed = set(work.speakers), state.changed_members.keys()
        if changed:
            if not work.limited:
                needed |= changed
            # who changed and is not told of here is no longer known to the client
            sent_members.difference_update([(nid, user_id) for user_id in changed - needed])
        missing = [
            user_id
            for user_id in needed
            if user_id in changed or (nid, user_id) not in sent_members
        ]
        if missing:
            state.entries |= await self._parts.states.get_members(nid, root, missing)
            newly_sent.update((nid, user_id) for user_id in missing)


def _end(work: RoomWork, upto: int) -> int:
    """Up to where the user is told of the room."""
    return upto if work.own.membership == "join" else min(upto, work.own.position)


def _state_end(work: RoomWork, upto: int) -> int:
    """Up to where the user is told of its state."""
    end = _end(work, upto)
    return end if work.own.left_position is None else min(end, work.own.left_position)


def _ends_with_newest(work: RoomWork) -> bool:
    """Whether the state at the end is the one at the newest event."""
    return work.newest is not None and not work.left_before


def _tell_own_membership(work: RoomWork) -> None:
    """In a state in which the user left, what their membership is now."""
    wanted, own = work.config.required_state, StateKey(MEMBER, work.own.user_id)
    is_needed = wanted.matches(*own) or (wanted.lazy_members and own.state_key in work.speakers)
    if own in work.state.entries or (
        is_needed and (work.initial or work.own.position > work.since)
    ):
        work.state.entries[own] = work.own.event_nid
