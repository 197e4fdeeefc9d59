"""Applies changes of a room's current state to the tables that are derived from it.

These tables hold memberships and their counts, remote servers in the room, the room's summary, the
children of a space, and the retention period. This module has no rules of Matrix: callers pass the
meaning of an event as plain values.
"""

from collections.abc import Mapping, Sequence

import msgspec

from storage.directory.user_directory_queue import queue_directory_updates
from storage.encryption.remote_devices import mark_newly_shared
from storage.engine.interface import SQLValue
from storage.engine.streams import Change, Topic
from storage.engine.transaction import WriteTransaction
from storage.media.references import RecheckKind, record_rechecks
from storage.retention.room_retention import set_room_retention
from storage.rooms.memberships import (
    MembershipRow,
    NewMembership,
    has_local_members,
    put_memberships,
    select_memberships,
)
from storage.rooms.room_servers import count_servers
from storage.rooms.spaces import NewChild, set_children
from storage.rooms.summaries import set_summary_fields


class NewRetention(msgspec.Struct, frozen=True):
    """The content of an `m.room.retention` event."""

    max_lifetime: int | None


class StateEffect(msgspec.Struct, frozen=True):
    """The effect of a state event on the derived tables while it is in the current state."""

    membership: NewMembership | None = None
    summary: Mapping[str, SQLValue] = msgspec.field(default_factory=dict)
    child: NewChild | None = None
    retention: NewRetention | None = None


NO_EFFECT = StateEffect()


def apply_effects(
    txn: WriteTransaction,
    room_nid: int,
    effects: Sequence[tuple[int, int, StateEffect]],
    *,
    is_new_room: bool = False,
) -> tuple[int, int]:
    """Apply the effects of new entries of the current state. Return the changes of the joined and
    invited counts. `is_new_room`: the room is new, so it has no other members."""
    summary: dict[str, SQLValue] = {}
    members: dict[str, list[tuple[int, int, NewMembership]]] = {}
    children: dict[int, NewChild] = {}
    lifetime: NewRetention | None = None
    for nid, position, effect in effects:
        summary.update(effect.summary)
        if effect.child is not None:
            children[nid] = effect.child
        if effect.membership is not None:
            members.setdefault(effect.membership.user_id, []).append(
                (nid, position, effect.membership)
            )
        lifetime = effect.retention or lifetime
    if lifetime is not None:
        set_room_retention(txn, room_nid, lifetime.max_lifetime)
    if summary:
        set_summary_fields(txn, room_nid, summary)
    if children:
        set_children(txn, room_nid, children)
    if not members:
        return 0, 0
    before = select_memberships(txn, room_nid, members)
    change = {"join": 0, "invite": 0}
    servers: dict[str, int] = {}
    positions: dict[str, int] = {}
    rows: list[MembershipRow] = []
    arrived: dict[bool, set[str]] = {True: set(), False: set()}
    """Users who join: local (True) and remote (False)."""
    for user_id, changes in members.items():
        old, (nid, position, new) = before.get(user_id), changes[-1]
        if (
            old is not None
            and old.is_local
            and old.event_nid == nid
            and len(changes) == 1
            and _is_as_before(old, new)
        ):
            # The server joins the room again: users who left before do not leave again, and may
            # have forgotten the room.
            continue
        if old is not None and old.membership in change:
            change[old.membership] -= 1
        if new.membership in change:
            change[new.membership] += 1
        was_in = old is not None and old.membership == "join"
        is_back = any(change.membership != "join" for _, _, change in changes)
        if new.membership == "join" and (not was_in or is_back):
            arrived[new.is_local].add(user_id)
        if not new.is_local:
            server = user_id.partition(":")[2]
            servers[server] = servers.get(server, 0) + (new.membership == "join") - was_in
            positions.setdefault(server, position)
        rows.append(_make_row(room_nid, nid, position, new, old, changes))
    is_first_local = (
        not is_new_room and bool(arrived[True]) and not has_local_members(txn, room_nid)
    )
    put_memberships(txn, rows)
    if arrived[False] or is_first_local:
        mark_newly_shared(txn, room_nid, arrived[False], is_first_local=is_first_local)
    _recheck_avatars(txn, [(before[row.user_id], row) for row in rows if row.user_id in before])
    for row in rows:
        txn.announce(Change(row.position, Topic.MEMBERSHIP, user_id=row.user_id, detail=row))
    remote = [(row.user_id, row.position) for row in rows if not row.is_local]
    if remote:
        queue_directory_updates(txn, remote)
    if servers:
        count_servers(txn, room_nid, servers, positions)
    return change["join"], change["invite"]


def _recheck_avatars(
    txn: WriteTransaction, changed: Sequence[tuple[MembershipRow, MembershipRow]]
) -> None:
    """Check references to avatars again: the media of replaced memberships may be unused, and the
    media of reinstated ones are in use."""
    nids = {old.event_nid for old, new in changed if old.avatar_url is not None}
    nids |= {new.event_nid for old, new in changed if new.event_nid < old.event_nid}
    record_rechecks(txn, RecheckKind.EVENT, nids)


def _is_as_before(old: MembershipRow, new: NewMembership) -> bool:
    """Return whether a user who left or was banned is reported with the same membership and
    profile."""
    reported = (new.membership, new.display_name, new.avatar_url)
    return new.membership in ("leave", "ban") and reported == (
        old.membership,
        old.display_name,
        old.avatar_url,
    )


def _find_periods(
    old: MembershipRow | None, changes: Sequence[tuple[int, int, NewMembership]]
) -> tuple[int | None, int | None]:
    """Return the position where the last period of membership ended, and where the present one
    began."""
    membership, ended, began = (
        (None, None, None)
        if old is None
        else (old.membership, old.left_position, old.joined_position)
    )
    for _, position, new in changes:
        if new.membership == "join":
            began = began if membership == "join" else position
            ended = None
        else:
            ended = position if membership == "join" else ended
            began = None
        membership = new.membership
    return ended, began


def _make_row(
    room_nid: int,
    nid: int,
    position: int,
    new: NewMembership,
    old: MembershipRow | None,
    changes: Sequence[tuple[int, int, NewMembership]],
) -> MembershipRow:
    ended, began = _find_periods(old, changes)
    return MembershipRow(
        room_nid,
        new.user_id,
        new.membership,
        nid,
        new.sender,
        position,
        new.is_local,
        new.display_name,
        new.avatar_url,
        forgotten=False,
        left_position=ended,
        joined_position=began if new.is_local else None,
    )
