"""The form of a room's entry in an answer: timeline, required state, names, people, counts."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec

from federation.rooms.events import StoredEvent
from homeserver.services.push.unread_counts import RoomUnread
from homeserver.services.sliding_sync.connections import Connection
from homeserver.services.sliding_sync.required_state import AVATAR, NAME
from homeserver.services.sliding_sync.room_work import RoomWork
from homeserver.services.streams.sync_tokens import SyncToken, format_gap, format_place
from homeserver.services.sync.room_summary import Summary
from storage.events.timelines import Place

LARGEST_TIMELINE: Final = 1024 * 1024
"""In bytes, of the events of one room; one event at least is told."""

_pdu: Final = attrgetter("event.pdu")


def make_inside(
    work: RoomWork,
    timeline: Sequence[msgspec.Raw] | msgspec.Raw,
    required: Sequence[msgspec.Raw],
    events: Mapping[int, StoredEvent],
    stable: bool,
    connection: Connection,
    upto: int,
) -> dict[str, Any]:
    """The parts that come from the room itself; empty if there is nothing to tell.

    `required`: the required state as it is told, as far as it is set. `events`: name and avatar of
    the room by number.
    """
    entry: dict[str, Any] = {}
    state = work.state
    if work.config.timeline_limit and (timeline or work.limited):
        entry["timeline"] = timeline
        entry["num_live"] = 0
        if connection.token is not None:
            position = connection.token.position
            if work.since == position and not work.anew:
                entry["num_live"] = len(work.shown)
            else:
                entry["num_live"] = sum(
                    (each.event.position or 0) > position for each in work.shown
                )
        if work.shown:
            first = work.shown[0].event
            # what the client asks for from here is what came before the first event, this one left
            # out
            entry["prev_batch"] = (
                format_gap(first)
                if work.limited
                else format_place(Place(first.depth, first.nid - 1))
            )
        else:
            entry["prev_batch"] = str(SyncToken(upto, 0))
        if work.limited:
            entry["limited"] = True
        if work.expanded:
            entry["expanded_timeline" if stable else "unstable_expanded_timeline"] = True
    removed = (
        [{"type": key.type, "state_key": key.state_key} for key in state.removed] if stable else ()
    )
    if required or removed or work.initial:
        entry["required_state"] = [*required, *removed]
    for key, field_name, content_key in ((NAME, "name", "name"), (AVATAR, "avatar", "url")):
        if key not in state.named:
            continue
        nid = state.named[key]
        value = events[nid].event.content.get(content_key) if nid is not None else None
        if isinstance(value, str) and value:
            entry[field_name] = value
        elif not work.initial and (stable or field_name == "avatar"):
            entry[field_name] = None
    return entry


def complete_entry(
    entry: dict[str, Any], work: RoomWork, bump: int, counts: RoomUnread | None, stable: bool
) -> None:
    """Add what every entry has. `bump`: the position of the newest event that moves the room up; 0:
    none does. `counts`: None where they are not told."""
    if work.summary is not None:
        _add_people(entry, work.summary)
    if counts is not None:
        total = counts.total
        entry["notification_count"], entry["highlight_count"] = (
            total.notifications,
            total.highlights,
        )
    if work.initial or is_bumped(work, bump):
        entry["bump_stamp"] = bump or work.own.position
    if work.initial:
        entry["initial"] = True
    if work.is_direct:
        entry["is_dm"] = True
    elif stable and work.is_no_longer_direct:
        entry["is_dm"] = False
    if stable:
        entry["membership"] = work.own.membership
        if work.in_lists:
            entry["lists"] = list(work.in_lists)


def _add_people(entry: dict[str, Any], summary: Summary) -> None:
    entry["joined_count"] = summary.json["m.joined_member_count"]
    entry["invited_count"] = summary.json["m.invited_member_count"]
    if not summary.heroes:
        return
    heroes = []
    for hero in summary.heroes:
        shown = {
            "user_id": hero.user_id,
            "displayname": hero.display_name,
            "avatar_url": hero.avatar_url,
        }
        heroes.append({key: value for key, value in shown.items() if value is not None})
    entry["heroes"] = heroes


def is_bumped(work: RoomWork, bump: int) -> bool:
    return (bump or work.own.position) > work.since


def are_too_long(size: int) -> bool:
    """Whether events of so many bytes are more than is told of one room."""
    return size > LARGEST_TIMELINE


def trim(work: RoomWork) -> None:
    """Leave out the oldest events of what is too long; the client asks for them when it wants
    them."""
    if not are_too_long(sum(map(len, map(_pdu, work.shown)))):
        return
    size = 0
    for index in range(len(work.shown) - 1, -1, -1):
        size += len(work.shown[index].event.pdu)
        if size > LARGEST_TIMELINE and index < len(work.shown) - 1:
            work.shown, work.limited = work.shown[index + 1 :], True
            return
