"""Makes the JSON of a room in a response from the data that `room_entries.py` has read: timeline,
required state, name, heroes, counts. Shortens timelines that are too large."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec

from federation.rooms.events import StoredEvent
from homeserver.services.sliding_sync.connections import SlidingConnection
from homeserver.services.sliding_sync.required_state import AVATAR, NAME
from homeserver.services.sliding_sync.room_update import SlidingRoomUpdate
from homeserver.services.streams.sync_tokens import SyncToken, format_gap, format_room_token
from homeserver.services.sync.room_summary import RoomSummary
from storage.events.timelines import TimelinePlace

MAX_TIMELINE_BYTES: Final = 1024 * 1024
"""Bytes of the events of one room; one event is sent at least."""

_pdu: Final = attrgetter("event.pdu")


def make_contents(
    update: SlidingRoomUpdate,
    timeline: Sequence[msgspec.Raw],
    required: Sequence[msgspec.Raw],
    events: Mapping[int, StoredEvent],
    stable: bool,
    connection: SlidingConnection,
    upto: int,
) -> dict[str, Any]:
    """Make the fields that show the contents of the room; empty if nothing is new.

    `required`: the required state, encoded. `events`: the events of name and avatar, by number.
    """
    entry: dict[str, Any] = {}
    state = update.state
    if update.config.timeline_limit and (timeline or update.limited):
        _add_timeline(entry, update, timeline, stable, connection, upto)
    removed = (
        [{"type": key.type, "state_key": key.state_key} for key in state.removed] if stable else ()
    )
    if required or removed or update.initial:
        entry["required_state"] = [*required, *removed]
    if state.named:
        _add_naming(entry, update, events, stable)
    return entry


def complete_entry(entry: dict[str, Any], update: SlidingRoomUpdate, stable: bool) -> None:
    """Add the fields that every entry has."""
    if update.summary is not None:
        _add_summary(entry, update.summary)
    if update.counts is not None:
        total = update.counts.total
        entry["notification_count"], entry["highlight_count"] = (
            total.notifications,
            total.highlights,
        )
    if update.initial or update.is_bumped:
        entry["bump_stamp"] = update.bump or update.own.position
    if update.initial:
        entry["initial"] = True
    if update.is_direct:
        entry["is_dm"] = True
    elif stable and update.is_direct_changed and not update.initial:
        entry["is_dm"] = False
    if stable:
        entry["membership"] = update.own.membership
        if update.in_lists:
            entry["lists"] = list(update.in_lists)


def trim(update: SlidingRoomUpdate) -> None:
    """Leave out the oldest events of a timeline that is too large."""
    if is_too_large(update.shown):
        size = 0
        for index in range(len(update.shown) - 1, -1, -1):
            size += len(update.shown[index].event.pdu)
            if size > MAX_TIMELINE_BYTES and index < len(update.shown) - 1:
                update.shown, update.limited = update.shown[index + 1 :], True
                return


def is_too_large(events: Sequence[Any]) -> bool:
    """Whether the timeline is larger than a room may have."""
    return sum(map(len, map(_pdu, events))) > MAX_TIMELINE_BYTES


def _add_timeline(
    entry: dict[str, Any],
    update: SlidingRoomUpdate,
    timeline: Sequence[msgspec.Raw],
    stable: bool,
    connection: SlidingConnection,
    upto: int,
) -> None:
    entry["timeline"] = timeline
    entry["num_live"] = 0
    if connection.token is not None:
        position = connection.token.position
        if update.since == position and not update.is_new_timeline:
            entry["num_live"] = len(update.shown)
        else:
            entry["num_live"] = sum((each.event.position or 0) > position for each in update.shown)
    if update.shown:
        first = update.shown[0].event
        # the client goes back from before the first event
        before = TimelinePlace(first.depth, first.nid - 1)
        entry["prev_batch"] = format_gap(first) if update.limited else format_room_token(before)
    else:
        entry["prev_batch"] = str(SyncToken(upto, 0))
    if update.limited:
        entry["limited"] = True
    if update.expanded:
        entry["expanded_timeline" if stable else "unstable_expanded_timeline"] = True


def _add_naming(
    entry: dict[str, Any],
    update: SlidingRoomUpdate,
    events: Mapping[int, StoredEvent],
    stable: bool,
) -> None:
    """Add name and avatar, or null where one was unset."""
    named = update.state.named
    for key, field_name, content_key in ((NAME, "name", "name"), (AVATAR, "avatar", "url")):
        if key not in named:
            continue
        nid = named[key]
        value = events[nid].event.content.get(content_key) if nid is not None else None
        if isinstance(value, str) and value:
            entry[field_name] = value
        elif not update.initial and (stable or field_name == "avatar"):
            entry[field_name] = None


def _add_summary(entry: dict[str, Any], summary: RoomSummary) -> None:
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
