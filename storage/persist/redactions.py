"""Removes the content of a redacted event, from the event and from derived tables."""

import msgspec
from msgspec.structs import replace

from storage.directory.user_directory_queue import queue_directory_updates
from storage.email.outbox import withdraw_notification_emails
from storage.engine.streams import Change, Topic
from storage.engine.transaction import WriteTransaction
from storage.events.event_threads import select_thread_of
from storage.events.relations import remove_relation
from storage.media.references import record_redaction
from storage.persist.state_effects import StateEffect
from storage.retention.room_retention import set_room_retention
from storage.rooms.delayed_events import erase_contents
from storage.rooms.memberships import put_memberships, select_memberships
from storage.rooms.spaces import remove_child_of_event
from storage.rooms.sticky_events import remove_sticky_event
from storage.rooms.summaries import set_summary_fields


class Redaction(msgspec.Struct, frozen=True):
    """The removal of an event's content."""

    target_nid: int
    pruned_pdu: bytes
    effect: StateEffect | None
    """The effect of the pruned target, if it is current state."""


def redact_event(
    txn: WriteTransaction,
    room_nid: int,
    redaction_nid: int,
    position: int | None,
    redaction: Redaction,
) -> None:
    """Apply a redaction, given its number and, if it is in the timeline, its position. An event
    whose content is already gone stays as it is."""
    record_redaction(txn, redaction.target_nid)
    thread_root = select_thread_of(txn, room_nid, redaction.target_nid).root
    changed = txn.execute(
        "UPDATE events SET pdu = ?, redacted_by = ?, thread_root = ?"
        " WHERE event_nid = ? AND room_nid = ? AND redacted_by IS NULL",
        (redaction.pruned_pdu, redaction_nid, thread_root, redaction.target_nid, room_nid),
    )
    if not changed:
        return
    if position is None:
        position = txn.next_position()
    txn.announce(Change(position, Topic.REDACTED, detail=redaction.target_nid))
    remove_relation(txn, redaction.target_nid)
    remove_sticky_event(txn, redaction.target_nid)
    withdraw_notification_emails(txn, [redaction.target_nid])
    erase_contents(txn, [redaction.target_nid])
    if redaction.effect is None:
        return
    if redaction.effect.summary:
        set_summary_fields(txn, room_nid, redaction.effect.summary)
    if redaction.effect.retention is not None:
        set_room_retention(txn, room_nid, redaction.effect.retention.max_lifetime)
    child = redaction.effect.child
    if child is not None:
        remove_child_of_event(txn, room_nid, redaction.target_nid, child.child_id)
    member = redaction.effect.membership
    if member is not None:
        old = select_memberships(txn, room_nid, [member.user_id]).get(member.user_id)
        if old is not None and old.event_nid == redaction.target_nid:
            pruned = replace(old, display_name=None, avatar_url=None)
            put_memberships(txn, [pruned])
            if not pruned.is_local:
                queue_directory_updates(txn, [(pruned.user_id, position)])
            txn.announce(Change(position, Topic.MEMBERSHIP, user_id=member.user_id, detail=pruned))
