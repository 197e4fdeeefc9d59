"""Restores purged messages of a room that local users had forgotten, from copies of other servers.

Laws:
- Only messages purged because the room was forgotten are restored. Content that exceeded its
  retention period, or that an administrator purged, is never restored.
- One write restores a message's content in every table from which the purge removed it, except push
  actions, because the message is not new.
- Redacted messages stay without content.
"""

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import WriteTransaction
from storage.events.events import IS_FORGOTTEN, EventFlag
from storage.events.relations import Relation, RelationRow, add_relations
from storage.media.references import record_restored
from storage.retention.purging import PurgeCause, PurgedMessages
from storage.search.search import queue_former_outliers

_NOT_FORGOTTEN: Final = (2**31 - 1) ^ EventFlag.FORGOTTEN
_RESTORED: Final = (2**31 - 1) ^ (EventFlag.PURGED | EventFlag.FORGOTTEN)


class RefetchedMessage(msgspec.Struct, frozen=True):
    """A message received from another server."""

    event_nid: int
    pdu: bytes | None
    """The PDU as before the purge; None if it has no content, since it was redacted."""
    redacted_by: int | None
    """Number of a redaction that arrived after the purge."""
    relation: Relation | None
    redactions: frozenset[int] = frozenset()
    """Numbers of the redactions of it that were checked."""


class HistoryRefetchStore:
    """Marks messages that are no longer to be fetched from other servers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def stop_fetching(
        self, room_nid: int, before_ms: int, before_depth: int, limit: int
    ) -> int:
        """Stop fetching messages of a room that were sent before a time and are above a depth: at
        most `limit`. Return how many."""

        def write(txn: WriteTransaction) -> int:
            return txn.execute(
                f"UPDATE events SET flags = flags & {_NOT_FORGOTTEN} WHERE event_nid IN"
                " (SELECT event_nid FROM events"
                f" WHERE room_nid = ? AND {IS_FORGOTTEN} AND origin_server_ts < ? AND depth < ?"
                " ORDER BY depth, event_nid LIMIT ?)",
                (room_nid, before_ms, before_depth, limit),
            )

        return await self._database.write("stop_fetching_messages_before", write)


def restore_messages(
    txn: WriteTransaction, room_nid: int, restored_messages: Sequence[RefetchedMessage]
) -> int:
    """Restore the content of messages of a room, and show them again. Return how many."""
    rows = txn.query_in(
        "SELECT event_nid, redacted_by, event_id, depth, type, sender, origin_server_ts, flags"
        " FROM events"
        f" WHERE event_nid IN {{keys}} AND room_nid = ? AND {IS_FORGOTTEN}",
        [each.event_nid for each in restored_messages],
        after=(room_nid,),
    )
    redactions: dict[int, set[int]] = {nid: set() for nid, *_ in rows}
    for nid, redaction_nid in txn.query_in(
        "SELECT e.event_nid, x.event_nid FROM events AS e"
        " JOIN redactions AS x ON x.redacts = e.event_id"
        " WHERE e.event_nid IN {keys}",
        redactions,
    ):
        redactions[nid].add(redaction_nid)
    # if another redaction has arrived meanwhile, the message waits for the next request
    restored_messages = [
        each
        for each in restored_messages
        if each.event_nid in redactions and each.redactions == redactions[each.event_nid]
    ]
    checked = {each.event_nid for each in restored_messages}
    found = {nid: columns for nid, *columns in rows if nid in checked}
    if not found:
        return 0
    txn.execute_many(
        f"UPDATE events SET flags = flags & {_RESTORED} WHERE event_nid = ?",
        [(nid,) for nid in found],
    )
    # messages that were redacted before the purge have their redacted content already
    purged = [each for each in restored_messages if found[each.event_nid][0] == each.event_nid]
    txn.execute_many(
        "UPDATE events SET redacted_by = ? WHERE event_nid = ?",
        [(each.redacted_by, each.event_nid) for each in purged if each.pdu is None],
    )
    restored = [each for each in purged if each.pdu is not None]
    txn.execute_many(
        "UPDATE events SET pdu = ?, redacted_by = NULL WHERE event_nid = ?",
        [(each.pdu, each.event_nid) for each in restored],
    )
    record_restored(txn, [each.event_nid for each in restored])
    queue_former_outliers(txn, [each.event_nid for each in restored])
    position = txn.next_position()
    children = []
    for each in restored:
        _, event_id, depth, type_, sender, sent, flags = found[each.event_nid]
        if each.relation is not None and flags & EventFlag.TIMELINE:
            children.append(
                RelationRow(
                    each.relation, each.event_nid, event_id, room_nid, depth, type_, sender, sent
                )
            )
            txn.announce(Change(position, Topic.RELATION, detail=each.relation.target))
    add_relations(txn, children)
    # so that other nodes read the room's events again
    sql = "UPDATE purge_counts SET position = ? WHERE room_nid = ? AND cause = ?"
    txn.execute(sql, (position, room_nid, PurgeCause.FORGOTTEN.value))
    txn.announce(Change(position, Topic.PURGED, detail=PurgedMessages(room_nid, list(found))))
    return len(found)


def stop_fetching_messages(txn: WriteTransaction, nids: Collection[int]) -> None:
    """Stop fetching these messages from other servers."""
    sql = (
        f"UPDATE events SET flags = flags & {_NOT_FORGOTTEN} WHERE event_nid = ? AND {IS_FORGOTTEN}"
    )
    txn.execute_many(sql, [(nid,) for nid in nids])
