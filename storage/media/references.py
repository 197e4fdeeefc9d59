"""References to files by events, profiles and account data. They decide when a file may be deleted.

Laws:
- An event refers to every content URI in it until it is redacted or purged. The references of an
  edit also end when the edited event is redacted or purged. Those of an `m.room.member` event end
  with a later membership event of the member, because a user who changes their avatar wants the old
  one deleted.
- A reference from a room counts while a local user has any membership there, such as a join, an
  invite or a leave, and has not forgotten the room. References to local files also count while
  remote users are in the room. References by membership events to files of an erased account do not
  count.
- The job that reads events by number writes the references of events (`select_batch`, `put_batch`).
  The write that changes a profile or account data writes their references. A write that may remove
  references records the event, room, user or file that may have lost them. The job checks it later.
- One write handles about as many content URIs as one event may have (`MAX_URIS`), because other
  writes wait for it.
- `unreferenced_ts` is the time since which nothing refers to a file. For a local file it is
  set only if an event or the profile of the uploader has referred to the file before, or if the
  uploader's account is erased. Otherwise the file may be attached to an encrypted message, whose
  references the server cannot see. A reference by the uploader's account data is not enough,
  because a sticker that was removed from a pack may be in encrypted messages.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from enum import IntEnum
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.events import EventFlag
from storage.events.relations import REPLACE
from storage.media.content_uris import MAX_URIS, ContentURI, find_content_uris

T = TypeVar("T")

_MEMBER, _ROOM_AVATAR, _ENCRYPTED = "m.room.member", "m.room.avatar", "m.room.encrypted"
_EVENTS: Final = "SELECT event_nid, room_nid, type, sender, pdu, redacted_by FROM events"
_TIMELINE: Final = int(EventFlag.TIMELINE)
UNREFERENCED: Final = "unreferenced"
"""The cause if a reference was removed or replaced."""
FORGOTTEN: Final = "forgotten"
"""The cause if this server purged a room that no local user remembers."""
EVENTS_PER_RECHECK: Final = 50
"""Rechecked events that are read at once."""
CHUNK: Final = 2 * MAX_URIS
"""References of a room, or files of a user, that are rechecked at once; more than one event has."""


class ReferenceRole(IntEnum):
    """The kind of an event's reference to a file."""

    SHOWN = 0
    MEMBER = 1
    ROOM = 2
    ATTACHED = 3
    """The sender declared that the file belongs to the event, which may be encrypted."""


class SettingKind(IntEnum):
    """Other data with references to files."""

    PROFILE = 0
    ACCOUNT_DATA = 1


class RecheckKind(IntEnum):
    """The kind of object that may have lost a reference."""

    EVENT = 0
    ROOM = 1
    USER = 2
    FILE = 3


class EventReferences(msgspec.Struct, frozen=True):
    """The references of an event."""

    event_nid: int
    room_nid: int
    role: ReferenceRole
    sender: str
    addresses: frozenset[ContentURI]
    is_live: bool = True
    """False for an edit of an event without content, and for a membership that a later one
    replaced."""


class ReferenceBatch(msgspec.Struct, frozen=True):
    """References of consecutive events, in the order of their numbers."""

    upto: int
    """All events up to this number have been read after this batch."""
    count: int
    references: Sequence[EventReferences]
    is_truncated: bool = False
    """It has so many references that it ends before the requested number of events."""


def get_referenced_condition(own: str) -> tuple[str, tuple[str, str]]:
    """Return the SQL condition that something refers to the file `k` of `tracked_media`, and its
    arguments. `own`: this server's name."""
    sql = (
        "(EXISTS (SELECT 1 FROM media_setting_references AS s WHERE s.media_nid = k.media_nid)"
        " OR EXISTS (SELECT 1 FROM media_event_references AS e WHERE e.media_nid = k.media_nid"
        # the avatar of an erased account
        f" AND NOT (e.role = {int(ReferenceRole.MEMBER)} AND k.origin = ?"
        " AND EXISTS (SELECT 1 FROM media AS o"
        " JOIN accounts AS a ON a.user_id = o.user_id"
        " WHERE o.media_id = k.media_id AND a.erased = 1))"
        " AND (EXISTS (SELECT 1 FROM memberships AS m"
        " WHERE m.room_nid = e.room_nid AND m.is_local = 1"
        " AND m.forgotten = 0)"
        " OR (k.origin = ? AND EXISTS (SELECT 1 FROM rooms AS r"
        " WHERE r.room_nid = e.room_nid AND r.joined_count > 0)))))"
    )
    return sql, (own, own)


# Called by other writes.


def put_setting(
    txn: WriteTransaction, user_id: str, kind: SettingKind, name: str, value: bytes
) -> None:
    """Update the references of a profile field or account data; an empty value removes it."""
    addresses = find_content_uris(value)
    sql = (
        "SELECT media_nid FROM media_setting_references WHERE user_id = ? AND kind = ? AND name = ?"
    )
    before = {nid for (nid,) in txn.query(sql, (user_id, int(kind), name))}
    if not before and not addresses:
        return
    numbers = number_media(txn, addresses)
    if kind is SettingKind.PROFILE:
        _record_uploader(txn, [(numbers[address], address, user_id) for address in addresses])
    now = set(numbers.values())
    txn.execute_many(
        "DELETE FROM media_setting_references WHERE user_id = ? AND kind = ? AND name = ?"
        " AND media_nid = ?",
        [(user_id, int(kind), name, nid) for nid in before - now],
    )
    txn.execute_many(
        "INSERT INTO media_setting_references (user_id, kind, name, media_nid) VALUES (?, ?, ?, ?)",
        [(user_id, int(kind), name, nid) for nid in now - before],
    )
    _set_referenced(txn, now - before)
    record_rechecks(txn, RecheckKind.FILE, before - now)


def remove_settings(txn: WriteTransaction, user_id: str, kind: SettingKind) -> None:
    """Remove all references of a user's settings of one kind."""
    sql = "DELETE FROM media_setting_references WHERE user_id = ? AND kind = ? RETURNING media_nid"
    record_rechecks(txn, RecheckKind.FILE, {nid for (nid,) in txn.query(sql, (user_id, int(kind)))})


def record_rechecks(
    txn: WriteTransaction,
    kind: RecheckKind,
    nids: Iterable[int],
    user_id: str = "",
    *,
    cause: str = UNREFERENCED,
) -> None:
    """Record objects that may have lost references. `cause`: the reason for the record of a
    deletion."""
    rows = [(int(kind), nid, user_id, cause) for nid in nids]
    if rows:
        txn.execute_many(
            "INSERT INTO media_reference_rechecks (kind, nid, user_id, progress, cause)"
            " VALUES (?, ?, ?, 0, ?)"
            " ON CONFLICT (kind, nid, user_id) DO UPDATE SET progress = 0, cause = excluded.cause",
            rows,
        )


def record_erasure(txn: WriteTransaction, user_id: str) -> None:
    """Recheck the uploads of an erased account: unreferenced ones are to be deleted."""
    record_rechecks(txn, RecheckKind.USER, [0], user_id)


def add_attachments(
    txn: WriteTransaction, event_id: str, addresses: Collection[ContentURI]
) -> None:
    """Record that the event's sender attached these files to it. If the event has lost its content,
    so have they lost their reference."""
    row = txn.query_one(
        "SELECT event_nid, room_nid, sender, redacted_by FROM events WHERE event_id = ?",
        (event_id,),
    )
    if row is None:
        return
    event_nid, room_nid, sender, redacted_by = row
    numbers = number_media(txn, addresses)
    _record_uploader(txn, [(numbers[address], address, sender) for address in addresses])
    _insert(
        txn, [(nid, event_nid, room_nid, int(ReferenceRole.ATTACHED)) for nid in numbers.values()]
    )
    if redacted_by is None:
        _set_referenced(txn, numbers.values())
    else:
        record_rechecks(txn, RecheckKind.EVENT, [event_nid])


# Reading the events.


def select_batch(
    txn: Transaction, after: int, limit: int, upto_event: int = 2**62
) -> ReferenceBatch:
    """Return the next `limit` events after a number, none above `upto_event`, with their
    references; fewer if these are many.

    Encrypted events are not searched.
    """
    sql = (
        "SELECT event_nid FROM events WHERE event_nid > ? AND event_nid <= ?"
        " ORDER BY event_nid LIMIT ?"
    )
    numbers = _column(txn.query(sql, (after, upto_event, limit)))
    upto = max(numbers, default=after)
    sql = (
        f"{_EVENTS} WHERE event_nid > ? AND event_nid <= ? AND type <> '{_ENCRYPTED}'"
        " ORDER BY event_nid"
    )
    rows = txn.query(sql, (after, upto)) if numbers else []
    found = [each for each in _find_references(txn, _with_uris(rows)) if each.addresses]
    mentions = limit_by_uris(found, lambda each: len(each.addresses))
    is_truncated = len(mentions) < len(found)
    if is_truncated:
        upto = mentions[-1].event_nid
        numbers = {number for number in numbers if number <= upto}
    return ReferenceBatch(upto, len(numbers), mentions, is_truncated)


def limit_by_uris(items: Sequence[T], addresses: Callable[[T], int]) -> Sequence[T]:
    """Return as many of the first items as one write handles, by their number of content URIs; at
    least one."""
    total = 0
    for number, item in enumerate(items):
        total += addresses(item)
        if total > MAX_URIS and number:
            return items[:number]
    return items


def put_batch(txn: WriteTransaction, batch: ReferenceBatch) -> None:
    """Write the references of events."""
    if not batch.references:
        return
    nids = number_media(txn, {address for each in batch.references for address in each.addresses})
    pairs = [
        (nids[address], address, each) for each in batch.references for address in each.addresses
    ]
    live = [(nid, each) for nid, _, each in pairs if each.is_live]
    _insert(txn, [(nid, each.event_nid, each.room_nid, int(each.role)) for nid, each in live])
    _set_referenced(txn, {nid for nid, _ in live})
    _record_uploader(txn, [(nid, address, each.sender) for nid, address, each in pairs])
    record_rechecks(txn, RecheckKind.FILE, {nid for nid, _, each in pairs if not each.is_live})


def record_redaction(txn: WriteTransaction, event_nid: int) -> None:
    """Record the references of an event that is about to lose its content, in case they were not
    read yet, and recheck it."""
    batch = ReferenceBatch(
        event_nid,
        1,
        _find_references(txn, txn.query(f"{_EVENTS} WHERE event_nid = ?", (event_nid,))),
    )
    put_batch(txn, batch)
    record_rechecks(txn, RecheckKind.EVENT, [event_nid])


def record_purge(
    txn: WriteTransaction, room_nid: int, event_nids: Collection[int], cause: str
) -> None:
    """The same for messages of a room that are purged, with the cause. Messages without files cost
    no write.

    The caller chooses the messages by `limit_by_uris`.
    """
    rows = txn.query_in(
        f"{_EVENTS} WHERE type <> '{_ENCRYPTED}' AND event_nid IN {{keys}}", event_nids
    )
    put_batch(
        txn,
        ReferenceBatch(
            0, 0, [each for each in _find_references(txn, _with_uris(rows)) if each.addresses]
        ),
    )
    with_files = txn.query_in(
        "SELECT DISTINCT event_nid FROM media_event_references WHERE room_nid = ?"
        " AND event_nid IN {keys}",
        event_nids,
        before=(room_nid,),
    )
    record_rechecks(txn, RecheckKind.EVENT, _column(with_files), cause=cause)


def record_restored(txn: WriteTransaction, event_nids: Collection[int]) -> None:
    """Record the references of events whose content was restored, since the job has passed them. A
    caller with many chooses them by `limit_by_uris`."""
    rows = txn.query_in(
        f"{_EVENTS} WHERE type <> '{_ENCRYPTED}' AND event_nid IN {{keys}}", event_nids
    )
    put_batch(
        txn,
        ReferenceBatch(
            0, 0, [each for each in _find_references(txn, _with_uris(rows)) if each.addresses]
        ),
    )


def number_media(
    txn: WriteTransaction, addresses: Collection[ContentURI]
) -> Mapping[ContentURI, int]:
    """Return the numbers of files; assign numbers to new ones."""
    ordered = sorted(addresses)
    found = (
        txn.query_each(
            "SELECT media_nid FROM tracked_media WHERE origin = ? AND media_id = ?", ordered
        )
        if ordered
        else []
    )
    numbers = {address: rows[0][0] for address, rows in zip(ordered, found, strict=True) if rows}
    new = [address for address in ordered if address not in numbers]
    if new:
        first = txn.allocate("media", len(new))
        numbers.update(zip(new, range(first, first + len(new)), strict=True))
        columns = ("media_nid", "origin", "media_id")
        txn.insert_rows("tracked_media", columns, [(numbers[address], *address) for address in new])
    return numbers


# Rechecks.


def do_rechecks(txn: WriteTransaction, own: str, upto_event: int, now_ms: int, limit: int) -> int:
    """Do at most `limit` recorded rechecks. Return how many. A large room, or a user with many
    uploads, takes several calls. `upto_event`: the events that have been read; rechecks of later
    ones wait."""
    rows = txn.query(
        "SELECT kind, nid, user_id, progress, cause FROM media_reference_rechecks"
        " WHERE kind <> 0 OR nid <= ?"
        " ORDER BY kind, nid, user_id LIMIT ?",
        (upto_event, limit),
    )
    if rows and rows[0][0] == RecheckKind.EVENT:
        rows = [row for row in rows if row[0] == RecheckKind.EVENT][:EVENTS_PER_RECHECK]
        return _recheck_events(txn, own, {nid: cause for _, nid, _, _, cause in rows}, now_ms)
    rechecked: set[int] = {nid for kind, nid, *_ in rows if kind == RecheckKind.FILE}
    done = [(kind, nid, user_id) for kind, nid, user_id, *_ in rows if kind == RecheckKind.FILE]
    for kind, nid, user_id, upto, _ in rows:
        if kind == RecheckKind.ROOM:
            sql = (
                "SELECT event_nid, media_nid FROM media_event_references"
                " WHERE room_nid = ? AND event_nid > ?"
            )
            found = txn.query(f"{sql} ORDER BY event_nid LIMIT {CHUNK}", (nid, upto))
            rechecked |= {media_nid for _, media_nid in found}
        elif kind == RecheckKind.USER:
            sql = "SELECT created_ts, media_id FROM media WHERE user_id = ? AND created_ts > ?"
            found = txn.query(f"{sql} ORDER BY created_ts LIMIT {CHUNK}", (user_id, upto))
            uploaded = number_media(txn, [ContentURI(own, media_id) for _, media_id in found])
            _record_uploader(
                txn, [(number, address, user_id) for address, number in uploaded.items()]
            )
            rechecked |= set(uploaded.values())
        else:
            continue
        if len(found) < CHUNK:
            done.append((kind, nid, user_id))
        else:  # some of the last event, or time, may be missing
            sql = (
                "UPDATE media_reference_rechecks SET progress = ? WHERE kind = ?"
                " AND nid = ? AND user_id = ?"
            )
            txn.execute(sql, (found[-1][0] - 1, kind, nid, user_id))
            break
    _set_unreferenced(txn, own, {UNREFERENCED: rechecked}, now_ms)
    txn.execute_many(
        "DELETE FROM media_reference_rechecks WHERE kind = ? AND nid = ? AND user_id = ?", done
    )
    return len(rows)


def _set_unreferenced(
    txn: WriteTransaction, own: str, by_cause: Mapping[str, Collection[int]], now_ms: int
) -> None:
    """Mark those of these files that are unreferenced."""
    condition, args = get_referenced_condition(own)
    for cause, part in [
        (cause, part) for cause, nids in by_cause.items() for part in _chunks(sorted(nids))
    ]:
        placeholders = ", ".join("?" * len(part))
        txn.execute(
            "UPDATE tracked_media AS k SET unreferenced_ts = ?, cause = ?"
            f" WHERE media_nid IN ({placeholders})"
            " AND unreferenced_ts IS NULL AND (referenced_by_uploader = 1 OR origin <> ?"
            " OR NOT EXISTS (SELECT 1 FROM media AS u"
            f" WHERE u.media_id = k.media_id)) AND NOT {condition}",
            (now_ms, cause, *part, own, *args),
        )


def _recheck_events(txn: WriteTransaction, own: str, causes: Mapping[int, str], now_ms: int) -> int:
    """Remove outdated references of events, as many as one write handles. Return how many events.
    `causes`: by event number.

    A membership that is current again gets its references back. The edits of an event are recorded
    for a recheck of their own.
    """
    rows = sorted(txn.query_in(f"{_EVENTS} WHERE event_nid IN {{keys}}", causes))
    redacted = {row[0] for row in rows if row[5] is not None}
    still_shown = _select_still_shown(
        txn, own, [row[0] for row in rows if causes[row[0]] == FORGOTTEN]
    )
    rechecked: dict[str, set[int]] = {}
    checked, addresses = set(causes) - {row[0] for row in rows}, 0
    for each in _find_references(txn, rows):
        before = txn.query(
            "SELECT media_nid, role FROM media_event_references WHERE room_nid = ?"
            " AND event_nid = ?",
            (each.room_nid, each.event_nid),
        )
        addresses += len(before) + len(each.addresses)
        if addresses > MAX_URIS and checked:
            break
        checked.add(each.event_nid)
        referenced = set(number_media(txn, each.addresses).values()) if each.is_live else set()
        if each.role is ReferenceRole.MEMBER:
            _insert(
                txn, [(nid, each.event_nid, each.room_nid, int(each.role)) for nid in referenced]
            )
            _set_referenced(txn, referenced)
        referenced |= still_shown.get(each.event_nid, frozenset())
        loses_attached = each.event_nid in redacted or (
            not each.is_live and each.role is not ReferenceRole.MEMBER
        )
        removed = {
            nid
            for nid, role in before
            if nid not in referenced and (role != ReferenceRole.ATTACHED or loses_attached)
        }
        txn.execute_many(
            "DELETE FROM media_event_references WHERE media_nid = ? AND event_nid = ?",
            [(nid, each.event_nid) for nid in removed],
        )
        rechecked.setdefault(causes[each.event_nid], set()).update(removed)
    _set_unreferenced(txn, own, rechecked, now_ms)
    _record_edits(txn, checked)
    txn.execute_many(
        "DELETE FROM media_reference_rechecks WHERE kind = 0 AND nid = ?",
        [(nid,) for nid in checked],
    )
    return len(checked)


def _select_still_shown(
    txn: Transaction, own: str, event_nids: Collection[int]
) -> Mapping[int, Set[int]]:
    """Return the local files in events of rooms that only this server has forgotten: other servers
    still show these messages."""
    rows = txn.query_in(
        "SELECT e.event_nid, e.media_nid FROM events AS v"
        " JOIN rooms AS r ON r.room_nid = v.room_nid AND r.joined_count > 0"
        " JOIN media_event_references AS e ON e.room_nid = v.room_nid AND e.event_nid = v.event_nid"
        " JOIN tracked_media AS k ON k.media_nid = e.media_nid AND k.origin = ?"
        " WHERE v.event_nid IN {keys}",
        event_nids,
        before=(own,),
    )
    still_shown: dict[int, set[int]] = {}
    for event_nid, media_nid in rows:
        still_shown.setdefault(event_nid, set()).add(media_nid)
    return still_shown


def _record_edits(txn: WriteTransaction, event_nids: Collection[int]) -> None:
    """Record rechecks of the edits of these events, with the same cause; edits themselves have
    none."""
    for part in _chunks(sorted(event_nids)):
        placeholders = ", ".join("?" * len(part))
        txn.execute(
            "INSERT INTO media_reference_rechecks (kind, nid, user_id, progress, cause)"
            " SELECT DISTINCT 0, r.event_nid, '', 0, c.cause FROM media_reference_rechecks AS c"
            " JOIN events AS p ON p.event_nid = c.nid"
            " JOIN relations AS r ON r.target = p.event_id AND r.room_nid = p.room_nid"
            f" AND r.rel_type = '{REPLACE}'"
            " JOIN media_event_references AS e ON e.room_nid = r.room_nid"
            " AND e.event_nid = r.event_nid"
            f" WHERE c.kind = 0 AND c.user_id = '' AND c.nid IN ({placeholders}) AND NOT EXISTS"
            " (SELECT 1 FROM relations AS s"
            f" WHERE s.event_nid = p.event_nid AND s.rel_type = '{REPLACE}')"
            " ON CONFLICT DO NOTHING",
            part,
        )


def _with_uris(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if b"mxc:" in bytes(row[4])]


def _find_references(txn: Transaction, rows: Sequence[Row]) -> list[EventReferences]:
    """Return the references of these events."""
    found = [
        EventReferences(nid, room_nid, _role(type), sender, find_content_uris(bytes(pdu)))
        for nid, room_nid, type, sender, pdu, _ in rows
    ]
    outdated = _column(
        txn.query_in(
            "SELECT r.event_nid FROM relations AS r"
            " JOIN events AS p ON p.event_id = r.target AND p.room_nid = r.room_nid"
            f" WHERE r.rel_type = '{REPLACE}' AND p.redacted_by IS NOT NULL"
            f" AND (p.flags & {_TIMELINE}) <> 0"
            " AND p.sender = r.sender AND p.type = r.type AND p.state_key IS NULL"
            " AND r.event_nid IN {keys}",
            [each.event_nid for each in found],
        )
    )
    outdated |= _column(
        txn.query_in(
            "SELECT e.event_nid FROM events AS e"
            " JOIN memberships AS m ON m.room_nid = e.room_nid AND m.user_id = e.state_key"
            " WHERE m.event_nid > e.event_nid AND e.event_nid IN {keys}",
            [each.event_nid for each in found if each.role is ReferenceRole.MEMBER],
        )
    )
    return [replace(each, is_live=False) if each.event_nid in outdated else each for each in found]


def _role(type: str) -> ReferenceRole:
    return {_MEMBER: ReferenceRole.MEMBER, _ROOM_AVATAR: ReferenceRole.ROOM}.get(
        type, ReferenceRole.SHOWN
    )


def _insert(txn: WriteTransaction, rows: Sequence[tuple[int, int, int, int]]) -> None:
    txn.execute_many(
        "INSERT INTO media_event_references (media_nid, event_nid, room_nid, role)"
        " VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        rows,
    )


def _record_uploader(txn: WriteTransaction, found: Iterable[tuple[int, ContentURI, str]]) -> None:
    """Record the references by these users to files that they uploaded."""
    txn.execute_many(
        "UPDATE tracked_media SET referenced_by_uploader = 1 WHERE media_nid = ?"
        " AND referenced_by_uploader = 0"
        " AND EXISTS (SELECT 1 FROM media AS m"
        " WHERE m.media_id = tracked_media.media_id AND m.user_id = ?)",
        [
            (nid, user_id)
            for nid, address, user_id in found
            if user_id.endswith(f":{address.origin}")
        ],
    )


def _set_referenced(txn: WriteTransaction, media_nids: Iterable[int]) -> None:
    for part in _chunks(sorted(media_nids)):
        placeholders = ", ".join("?" * len(part))
        sql = (
            "UPDATE tracked_media SET unreferenced_ts = NULL"
            f" WHERE media_nid IN ({placeholders}) AND unreferenced_ts IS NOT NULL"
        )
        txn.execute(sql, part)


def _column(rows: Iterable[tuple[int, ...]]) -> set[int]:
    return {row[0] for row in rows}


def _chunks(values: Sequence[int], size: int = 500) -> Iterable[Sequence[int]]:
    return (values[start : start + size] for start in range(0, len(values), size))
