"""Restores the content of an event that was stored in redacted form, because its content hash did
not match.

One write adds the content to the event and to the tables derived from it.
"""

from typing import Final

import msgspec
from msgspec.structs import replace

from storage.directory.user_directory_queue import queue_directory_updates
from storage.engine.streams import Change, Topic
from storage.engine.transaction import WriteTransaction
from storage.events.events import EventFlag
from storage.events.relations import RelationRow, add_relations
from storage.media.references import record_restored
from storage.persist.state_effects import StateEffect
from storage.retention.room_retention import set_room_retention
from storage.rooms.memberships import put_memberships, select_memberships
from storage.rooms.rooms import move_head, select_head
from storage.rooms.spaces import set_children
from storage.rooms.summaries import set_summary_fields
from storage.search.search import queue_former_outliers

RESTORED_RETENTION_MS: Final = 24 * 3600 * 1000
"""How long a restored event stays in `restored_contents`. Nodes read the table each second."""


class RestoredContent(msgspec.Struct, frozen=True):
    """The content of a stored event."""

    event_nid: int
    event_id: str
    room_nid: int
    pdu: bytes
    relation: RelationRow | None
    """Its relation to another event, if it is in the timeline."""
    effect: StateEffect | None
    """Its effect on derived tables, if it is current state."""
    restored_ts: int
    """The time of the restoration, in milliseconds."""


def restore_content(txn: WriteTransaction, restored: RestoredContent, expected_head: int) -> bool:
    """Store the content unless the event was redacted or purged. Return whether it was stored.

    Current state also moves the head, so that nobody continues with a cached state. If the head has
    another version than `expected_head`, nothing is done.
    """
    if restored.effect is not None:
        head = select_head(txn, restored.room_nid)
        moved = replace(head, version=head.version + 1)
        if head.version != expected_head or not move_head(
            txn, restored.room_nid, head.version, moved
        ):
            return False
    changed = txn.execute(
        "UPDATE events SET pdu = ?"
        f" WHERE event_nid = ? AND redacted_by IS NULL AND (flags & {EventFlag.PURGED}) = 0",
        (restored.pdu, restored.event_nid),
    )
    if not changed:
        return False
    position = txn.next_position()
    txn.execute(
        "DELETE FROM restored_contents WHERE restored_ts < ?",
        (restored.restored_ts - RESTORED_RETENTION_MS,),
    )
    txn.insert_rows(
        "restored_contents",
        ("position", "event_id", "restored_ts"),
        [(position, restored.event_id, restored.restored_ts)],
    )
    txn.announce(Change(position, Topic.REDACTED, detail=restored.event_nid))
    queue_former_outliers(txn, [restored.event_nid])  # index its text
    record_restored(txn, [restored.event_nid])
    if restored.relation is not None:
        add_relations(txn, [restored.relation])
        txn.announce(Change(position, Topic.RELATION, detail=restored.relation.relation.target))
    if restored.effect is not None:
        _apply_effect(txn, restored, restored.effect, position)
    return True


def _apply_effect(
    txn: WriteTransaction, restored: RestoredContent, effect: StateEffect, position: int
) -> None:
    """Apply the part of the effect that a redacted event lacks. Memberships do not change."""
    if effect.summary:
        set_summary_fields(txn, restored.room_nid, effect.summary)
    if effect.retention is not None:
        set_room_retention(txn, restored.room_nid, effect.retention.max_lifetime)
    if effect.child is not None:
        set_children(txn, restored.room_nid, {restored.event_nid: effect.child})
    member = effect.membership
    if member is None:
        return
    old = select_memberships(txn, restored.room_nid, [member.user_id]).get(member.user_id)
    if old is not None and old.event_nid == restored.event_nid:
        named = replace(old, display_name=member.display_name, avatar_url=member.avatar_url)
        put_memberships(txn, [named])
        if not named.is_local:
            queue_directory_updates(txn, [(named.user_id, position)])
        txn.announce(Change(position, Topic.MEMBERSHIP, user_id=named.user_id, detail=named))
