"""Who refers to which file: events, profiles, account data. What is here says when a file may go.

Laws:
- An event refers to every address in it while it has its content; an edit only while the event that
  it edits has its own; an `m.room.member` until a later one is the member's: who changes their
  picture means the old one to go.
- A reference from a room counts while somebody of this server is in the room, or was and has not
  forgotten it; to files of this server also while others are in the room.
- Rows of events are written by who follows the events by their numbers (`select_batch`,
  `put_batch`), rows of settings in the write that changes the setting. What may have lost a
  reference is noted in the write that takes it, and looked at later.
- One write looks at as many addresses as one event may have (`MOST`), or a little more: others wait
  for the writer.
- `unreferenced_ts` says since when nobody refers to a file. A file of this server to which its
  uploader never was seen to refer has none, whatever others say and take back: it may be attached
  to an encrypted message. Account data does not count as seen there: what is taken out of a pack of
  stickers may be in encrypted messages.
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
from storage.media.content_uris import MOST, MediaAddress, find_addresses

T = TypeVar("T")

_MEMBER, _ROOM_AVATAR, _ENCRYPTED = "m.room.member", "m.room.avatar", "m.room.encrypted"
_EVENTS: Final = "SELECT event_nid, room_nid, type, sender, pdu, redacted_by FROM events"
_TIMELINE: Final = int(EventFlag.TIMELINE)
UNREFERENCED: Final = "unreferenced"
"""The cause where a reference was taken back, or its place was taken by another."""
FORGOTTEN: Final = "forgotten"
"""The cause where this server purged what was said in a room that nobody of it remembers."""
EVENTS_AT_ONCE: Final = 50
"""Events of what may have lost a reference that are read at once."""
PART: Final = 2 * MOST
"""References of a room, or files of a user, that are looked at at once; more than one event has."""


class Role(IntEnum):
    """How an event refers to a file."""

    SHOWN = 0
    MEMBER = 1
    ROOM = 2
    ATTACHED = 3
    """Its sender said that it belongs to the event, which may be encrypted."""


class Setting(IntEnum):
    """What else refers to files."""

    PROFILE = 0
    ACCOUNT_DATA = 1


class Recheck(IntEnum):
    """What may have lost a reference."""

    EVENT = 0
    ROOM = 1
    USER = 2
    FILE = 3


class EventMentions(msgspec.Struct, frozen=True):
    """What an event refers to."""

    event_nid: int
    room_nid: int
    role: Role
    sender: str
    addresses: frozenset[MediaAddress]
    is_live: bool = True
    """False for an edit of an event that has lost its content, and for a membership in whose place
    there is a later one."""


class MentionBatch(msgspec.Struct, frozen=True):
    """Some events, in the order of their numbers."""

    upto: int
    """All events up to this number have been looked at after it."""
    count: int
    mentions: Sequence[EventMentions]
    is_cut: bool = False
    """They refer to so much that it ends before the number of events that was asked for."""


def referred_sql(own: str) -> tuple[str, tuple[str, str]]:
    """Whether anybody refers to the file `k` of `known_media`, as a condition, and its arguments.
    `own`: this server's name."""
    sql = (
        "(EXISTS (SELECT 1 FROM media_in_settings AS s WHERE s.media_nid = k.media_nid)"
        " OR EXISTS (SELECT 1 FROM media_in_events AS e WHERE e.media_nid = k.media_nid"
        # the picture of somebody whose account was erased
        f" AND NOT (e.role = {int(Role.MEMBER)} AND k.origin = ? AND EXISTS (SELECT 1 FROM media AS o"
        " JOIN accounts AS a ON a.user_id = o.user_id WHERE o.media_id = k.media_id AND a.erased = 1))"
        " AND (EXISTS (SELECT 1 FROM memberships AS m WHERE m.room_nid = e.room_nid AND m.is_local = 1"
        " AND m.forgotten = 0)"
        " OR (k.origin = ? AND EXISTS (SELECT 1 FROM rooms AS r WHERE r.room_nid = e.room_nid AND r.joined_count > 0)))))"
    )
    return sql, (own, own)


# What others write.


def put_setting(
    txn: WriteTransaction, user_id: str, kind: Setting, name: str, value: bytes
) -> None:
    """A field of a profile, or account data, was set; an empty value: it was removed."""
    addresses = find_addresses(value)
    sql = "SELECT media_nid FROM media_in_settings WHERE user_id = ? AND kind = ? AND name = ?"
    before = {nid for (nid,) in txn.query(sql, (user_id, int(kind), name))}
    if not before and not addresses:
        return
    numbers = number_media(txn, addresses)
    if kind is Setting.PROFILE:
        _note_uploader(txn, [(numbers[address], address, user_id) for address in addresses])
    now = set(numbers.values())
    txn.execute_many(
        "DELETE FROM media_in_settings WHERE user_id = ? AND kind = ? AND name = ? AND media_nid = ?",
        [(user_id, int(kind), name, nid) for nid in before - now],
    )
    txn.execute_many(
        "INSERT INTO media_in_settings (user_id, kind, name, media_nid) VALUES (?, ?, ?, ?)",
        [(user_id, int(kind), name, nid) for nid in now - before],
    )
    _set_referenced(txn, now - before)
    note_rechecks(txn, Recheck.FILE, before - now)


def remove_settings(txn: WriteTransaction, user_id: str, kind: Setting) -> None:
    """All of the user's were removed."""
    sql = "DELETE FROM media_in_settings WHERE user_id = ? AND kind = ? RETURNING media_nid"
    note_rechecks(txn, Recheck.FILE, {nid for (nid,) in txn.query(sql, (user_id, int(kind)))})


def note_rechecks(
    txn: WriteTransaction,
    kind: Recheck,
    nids: Iterable[int],
    user_id: str = "",
    *,
    cause: str = UNREFERENCED,
) -> None:
    """References may have gone with these. `cause`: why, for the record of what is deleted then."""
    rows = [(int(kind), nid, user_id, cause) for nid in nids]
    if rows:
        txn.execute_many(
            "INSERT INTO media_rechecks (kind, nid, user_id, upto, cause) VALUES (?, ?, ?, 0, ?)"
            " ON CONFLICT (kind, nid, user_id) DO UPDATE SET upto = 0, cause = excluded.cause",
            rows,
        )


def note_erased(txn: WriteTransaction, user_id: str) -> None:
    """An account was erased: of what it has uploaded, what nobody is seen to refer to is to go."""
    note_rechecks(txn, Recheck.USER, [0], user_id)


def add_attachments(
    txn: WriteTransaction, event_id: str, addresses: Collection[MediaAddress]
) -> None:
    """The event's sender says that these files belong to it. Where it has lost its content already,
    so have they."""
    row = txn.query_one(
        "SELECT event_nid, room_nid, sender, redacted_by FROM events WHERE event_id = ?",
        (event_id,),
    )
    if row is None:
        return
    event_nid, room_nid, sender, redacted_by = row
    numbers = number_media(txn, addresses)
    _note_uploader(txn, [(numbers[address], address, sender) for address in addresses])
    _insert(txn, [(nid, event_nid, room_nid, int(Role.ATTACHED)) for nid in numbers.values()])
    if redacted_by is None:
        _set_referenced(txn, numbers.values())
    else:
        note_rechecks(txn, Recheck.EVENT, [event_nid])


# Following the events.


def select_batch(txn: Transaction, after: int, limit: int, at_most: int = 2**62) -> MentionBatch:
    """The next events after a number, `limit` of them and none above `at_most`, and what they refer
    to; fewer, where that is much.

    Encrypted ones are not looked into.
    """
    sql = "SELECT event_nid FROM events WHERE event_nid > ? AND event_nid <= ? ORDER BY event_nid LIMIT ?"
    numbers = _column(txn.query(sql, (after, at_most, limit)))
    upto = max(numbers, default=after)
    sql = f"{_EVENTS} WHERE event_nid > ? AND event_nid <= ? AND type <> '{_ENCRYPTED}' ORDER BY event_nid"
    rows = txn.query(sql, (after, upto)) if numbers else []
    found = [each for each in _mentions(txn, _with_files(rows)) if each.addresses]
    mentions = bounded(found, lambda each: len(each.addresses))
    is_cut = len(mentions) < len(found)
    if is_cut:
        upto = mentions[-1].event_nid
        numbers = {number for number in numbers if number <= upto}
    return MentionBatch(upto, len(numbers), mentions, is_cut)


def bounded(items: Sequence[T], addresses: Callable[[T], int]) -> Sequence[T]:
    """As many of the first as one write looks at, by how many addresses each has; one at least."""
    total = 0
    for number, item in enumerate(items):
        total += addresses(item)
        if total > MOST and number:
            return items[:number]
    return items


def put_batch(txn: WriteTransaction, batch: MentionBatch) -> None:
    """Write what events refer to."""
    if not batch.mentions:
        return
    nids = number_media(txn, {address for each in batch.mentions for address in each.addresses})
    pairs = [
        (nids[address], address, each) for each in batch.mentions for address in each.addresses
    ]
    live = [(nid, each) for nid, _, each in pairs if each.is_live]
    _insert(txn, [(nid, each.event_nid, each.room_nid, int(each.role)) for nid, each in live])
    _set_referenced(txn, {nid for nid, _ in live})
    _note_uploader(txn, [(nid, address, each.sender) for nid, address, each in pairs])
    note_rechecks(txn, Recheck.FILE, {nid for nid, _, each in pairs if not each.is_live})


def note_redaction(txn: WriteTransaction, event_nid: int) -> None:
    """The event is about to lose its content: what it referred to may not have been looked at
    yet."""
    batch = MentionBatch(
        event_nid, 1, _mentions(txn, txn.query(f"{_EVENTS} WHERE event_nid = ?", (event_nid,)))
    )
    put_batch(txn, batch)
    note_rechecks(txn, Recheck.EVENT, [event_nid])


def note_purged(
    txn: WriteTransaction, room_nid: int, event_nids: Collection[int], cause: str
) -> None:
    """Messages of a room are about to lose their content for good, and why: as `note_redaction`.
    Messages without files cost no write.

    Who purges chooses them by `bounded`.
    """
    rows = txn.query_in(
        f"{_EVENTS} WHERE type <> '{_ENCRYPTED}' AND event_nid IN {{keys}}", event_nids
    )
    put_batch(
        txn,
        MentionBatch(0, 0, [each for each in _mentions(txn, _with_files(rows)) if each.addresses]),
    )
    with_files = txn.query_in(
        "SELECT DISTINCT event_nid FROM media_in_events WHERE room_nid = ? AND event_nid IN {keys}",
        event_nids,
        before=(room_nid,),
    )
    note_rechecks(txn, Recheck.EVENT, _column(with_files), cause=cause)


def note_restored(txn: WriteTransaction, event_nids: Collection[int]) -> None:
    """Events have their content again: who follows the numbers has passed them by. Who restores
    many chooses them by `bounded`."""
    rows = txn.query_in(
        f"{_EVENTS} WHERE type <> '{_ENCRYPTED}' AND event_nid IN {{keys}}", event_nids
    )
    put_batch(
        txn,
        MentionBatch(0, 0, [each for each in _mentions(txn, _with_files(rows)) if each.addresses]),
    )


def number_media(
    txn: WriteTransaction, addresses: Collection[MediaAddress]
) -> Mapping[MediaAddress, int]:
    """The numbers of files, new ones where they have none yet."""
    wanted = sorted(addresses)
    found = (
        txn.query_each(
            "SELECT media_nid FROM known_media WHERE origin = ? AND media_id = ?", wanted
        )
        if wanted
        else []
    )
    numbers = {address: rows[0][0] for address, rows in zip(wanted, found, strict=True) if rows}
    new = [address for address in wanted if address not in numbers]
    if new:
        first = txn.allocate("media", len(new))
        numbers.update(zip(new, range(first, first + len(new)), strict=True))
        columns = ("media_nid", "origin", "media_id")
        txn.insert_rows("known_media", columns, [(numbers[address], *address) for address in new])
    return numbers


# Looking at what may have lost a reference.


def do_rechecks(txn: WriteTransaction, own: str, upto_event: int, now_ms: int, limit: int) -> int:
    """Look at some of what was noted, `limit` at most; how many it were. A large room, and somebody
    who has uploaded much, takes several times. `upto_event`: which events have been looked at;
    those above it wait."""
    rows = txn.query(
        "SELECT kind, nid, user_id, upto, cause FROM media_rechecks WHERE kind <> 0 OR nid <= ?"
        " ORDER BY kind, nid, user_id LIMIT ?",
        (upto_event, limit),
    )
    if rows and rows[0][0] == Recheck.EVENT:
        rows = [row for row in rows if row[0] == Recheck.EVENT][:EVENTS_AT_ONCE]
        return _recheck_events(txn, own, {nid: cause for _, nid, _, _, cause in rows}, now_ms)
    lost: set[int] = {nid for kind, nid, *_ in rows if kind == Recheck.FILE}
    done = [(kind, nid, user_id) for kind, nid, user_id, *_ in rows if kind == Recheck.FILE]
    for kind, nid, user_id, upto, _ in rows:
        if kind == Recheck.ROOM:
            sql = "SELECT event_nid, media_nid FROM media_in_events WHERE room_nid = ? AND event_nid > ?"
            found = txn.query(f"{sql} ORDER BY event_nid LIMIT {PART}", (nid, upto))
            lost |= {media_nid for _, media_nid in found}
        elif kind == Recheck.USER:
            sql = "SELECT created_ts, media_id FROM media WHERE user_id = ? AND created_ts > ?"
            found = txn.query(f"{sql} ORDER BY created_ts LIMIT {PART}", (user_id, upto))
            uploaded = number_media(txn, [MediaAddress(own, media_id) for _, media_id in found])
            _note_uploader(
                txn, [(number, address, user_id) for address, number in uploaded.items()]
            )
            lost |= set(uploaded.values())
        else:
            continue
        if len(found) < PART:
            done.append((kind, nid, user_id))
        else:  # of the last event, or time, some may be missing
            sql = "UPDATE media_rechecks SET upto = ? WHERE kind = ? AND nid = ? AND user_id = ?"
            txn.execute(sql, (found[-1][0] - 1, kind, nid, user_id))
            break
    _set_unreferenced(txn, own, {UNREFERENCED: lost}, now_ms)
    txn.execute_many("DELETE FROM media_rechecks WHERE kind = ? AND nid = ? AND user_id = ?", done)
    return len(rows)


def _set_unreferenced(
    txn: WriteTransaction, own: str, by_cause: Mapping[str, Collection[int]], now_ms: int
) -> None:
    """Those of these files to which nobody refers are to go."""
    condition, args = referred_sql(own)
    for cause, part in [
        (cause, part) for cause, nids in by_cause.items() for part in _chunks(sorted(nids))
    ]:
        places = ", ".join("?" * len(part))
        txn.execute(
            f"UPDATE known_media AS k SET unreferenced_ts = ?, cause = ? WHERE media_nid IN ({places})"
            " AND unreferenced_ts IS NULL AND (by_uploader = 1 OR origin <> ?"
            f" OR NOT EXISTS (SELECT 1 FROM media AS u WHERE u.media_id = k.media_id)) AND NOT {condition}",
            (now_ms, cause, *part, own, *args),
        )


def _recheck_events(txn: WriteTransaction, own: str, causes: Mapping[int, str], now_ms: int) -> int:
    """Take away what events refer to no longer, of as many of these as one write looks at; how many
    it were. `causes`: by their numbers.

    A membership that is the member's again refers to its files again. The edits of an event are
    noted, to be looked at in their turn.
    """
    rows = sorted(txn.query_in(f"{_EVENTS} WHERE event_nid IN {{keys}}", causes))
    redacted = {row[0] for row in rows if row[5] is not None}
    kept = _kept_for_others(txn, own, [row[0] for row in rows if causes[row[0]] == FORGOTTEN])
    lost: dict[str, set[int]] = {}
    looked_at, addresses = set(causes) - {row[0] for row in rows}, 0
    for each in _mentions(txn, rows):
        before = txn.query(
            "SELECT media_nid, role FROM media_in_events WHERE room_nid = ? AND event_nid = ?",
            (each.room_nid, each.event_nid),
        )
        addresses += len(before) + len(each.addresses)
        if addresses > MOST and looked_at:
            break
        looked_at.add(each.event_nid)
        stay = set(number_media(txn, each.addresses).values()) if each.is_live else set()
        if each.role is Role.MEMBER:
            _insert(txn, [(nid, each.event_nid, each.room_nid, int(each.role)) for nid in stay])
            _set_referenced(txn, stay)
        stay |= kept.get(each.event_nid, frozenset())
        loses_attached = each.event_nid in redacted or (
            not each.is_live and each.role is not Role.MEMBER
        )
        gone = {
            nid
            for nid, role in before
            if nid not in stay and (role != Role.ATTACHED or loses_attached)
        }
        txn.execute_many(
            "DELETE FROM media_in_events WHERE media_nid = ? AND event_nid = ?",
            [(nid, each.event_nid) for nid in gone],
        )
        lost.setdefault(causes[each.event_nid], set()).update(gone)
    _set_unreferenced(txn, own, lost, now_ms)
    _note_edits(txn, looked_at)
    txn.execute_many(
        "DELETE FROM media_rechecks WHERE kind = 0 AND nid = ?", [(nid,) for nid in looked_at]
    )
    return len(looked_at)


def _kept_for_others(
    txn: Transaction, own: str, event_nids: Collection[int]
) -> Mapping[int, Set[int]]:
    """The files of this server in events of rooms that only this server has forgotten: others have
    the messages still, and show them."""
    rows = txn.query_in(
        "SELECT e.event_nid, e.media_nid FROM events AS v JOIN rooms AS r ON r.room_nid = v.room_nid AND r.joined_count > 0"
        " JOIN media_in_events AS e ON e.room_nid = v.room_nid AND e.event_nid = v.event_nid"
        " JOIN known_media AS k ON k.media_nid = e.media_nid AND k.origin = ? WHERE v.event_nid IN {keys}",
        event_nids,
        before=(own,),
    )
    kept: dict[int, set[int]] = {}
    for event_nid, media_nid in rows:
        kept.setdefault(event_nid, set()).add(media_nid)
    return kept


def _note_edits(txn: WriteTransaction, event_nids: Collection[int]) -> None:
    """The edits of these events, by the same cause; edits themselves have none."""
    for part in _chunks(sorted(event_nids)):
        places = ", ".join("?" * len(part))
        txn.execute(
            "INSERT INTO media_rechecks (kind, nid, user_id, upto, cause)"
            " SELECT DISTINCT 0, r.event_nid, '', 0, c.cause FROM media_rechecks AS c"
            " JOIN events AS p ON p.event_nid = c.nid"
            f" JOIN relations AS r ON r.target = p.event_id AND r.room_nid = p.room_nid AND r.rel_type = '{REPLACE}'"
            " JOIN media_in_events AS e ON e.room_nid = r.room_nid AND e.event_nid = r.event_nid"
            f" WHERE c.kind = 0 AND c.user_id = '' AND c.nid IN ({places}) AND NOT EXISTS (SELECT 1 FROM relations AS s"
            f" WHERE s.event_nid = p.event_nid AND s.rel_type = '{REPLACE}') ON CONFLICT DO NOTHING",
            part,
        )


def _with_files(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if b"mxc:" in bytes(row[4])]


def _mentions(txn: Transaction, rows: Sequence[Row]) -> list[EventMentions]:
    """What these events refer to."""
    found = [
        EventMentions(nid, room_nid, _role(type), sender, find_addresses(bytes(pdu)))
        for nid, room_nid, type, sender, pdu, _ in rows
    ]
    dead = _column(
        txn.query_in(
            "SELECT r.event_nid FROM relations AS r JOIN events AS p ON p.event_id = r.target AND p.room_nid = r.room_nid"
            f" WHERE r.rel_type = '{REPLACE}' AND p.redacted_by IS NOT NULL AND (p.flags & {_TIMELINE}) <> 0"
            " AND p.sender = r.sender AND p.type = r.type AND p.state_key IS NULL AND r.event_nid IN {keys}",
            [each.event_nid for each in found],
        )
    )
    dead |= _column(
        txn.query_in(
            "SELECT e.event_nid FROM events AS e JOIN memberships AS m ON m.room_nid = e.room_nid AND m.user_id = e.state_key"
            " WHERE m.event_nid > e.event_nid AND e.event_nid IN {keys}",
            [each.event_nid for each in found if each.role is Role.MEMBER],
        )
    )
    return [replace(each, is_live=False) if each.event_nid in dead else each for each in found]


def _role(type: str) -> Role:
    return {_MEMBER: Role.MEMBER, _ROOM_AVATAR: Role.ROOM}.get(type, Role.SHOWN)


def _insert(txn: WriteTransaction, rows: Sequence[tuple[int, int, int, int]]) -> None:
    txn.execute_many(
        "INSERT INTO media_in_events (media_nid, event_nid, room_nid, role) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        rows,
    )


def _note_uploader(txn: WriteTransaction, found: Iterable[tuple[int, MediaAddress, str]]) -> None:
    """These users refer to these files; who uploaded it is remembered to have done so."""
    txn.execute_many(
        "UPDATE known_media SET by_uploader = 1 WHERE media_nid = ? AND by_uploader = 0"
        " AND EXISTS (SELECT 1 FROM media AS m WHERE m.media_id = known_media.media_id AND m.user_id = ?)",
        [
            (nid, user_id)
            for nid, address, user_id in found
            if user_id.endswith(f":{address.origin}")
        ],
    )


def _set_referenced(txn: WriteTransaction, media_nids: Iterable[int]) -> None:
    for part in _chunks(sorted(media_nids)):
        places = ", ".join("?" * len(part))
        sql = f"UPDATE known_media SET unreferenced_ts = NULL WHERE media_nid IN ({places}) AND unreferenced_ts IS NOT NULL"
        txn.execute(sql, part)


def _column(rows: Iterable[tuple[int, ...]]) -> set[int]:
    return {row[0] for row in rows}


def _chunks(values: Sequence[int], size: int = 500) -> Iterable[Sequence[int]]:
    return (values[start : start + size] for start in range(0, len(values), size))
