"""Finds the thread of an event: from its relation to a thread root, or from its parent's thread.

A redaction has the thread of the event that it redacts.

A redaction or a purge of an event removes the event's relation. So the same transaction stores the
thread root with the event (`events.thread_root`). The thread root is also stored with every event
that has push flags or push action rows, because unread messages are counted by thread.

spec: client-server-api#threaded-read-receipts
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from storage.engine.transaction import Transaction
from storage.events.relations import THREAD, Relation

MAX_HOPS = 3
"""The number of related events that are followed to find a thread."""
_LINKS = (
    "e.thread_root, r.rel_type, r.target, e.redacted_by, x.redacts FROM events AS e"
    " LEFT JOIN relations AS r ON r.event_nid = e.event_nid"
    " LEFT JOIN redactions AS x ON x.event_nid = e.event_nid"
)


class ThreadLinks(msgspec.Struct, frozen=True):
    """The relations of one event."""

    thread_root: str | None
    """The stored thread root."""
    rel_type: str | None
    target: str | None
    is_redacted: bool = False
    redacts: str | None = None


class EventThread(msgspec.Struct, frozen=True):
    """The thread and timeline that an event belongs to."""

    root: str | None
    """The root of its thread, whether or not this server has that event; None: no thread."""
    in_main: bool
    """In the main timeline. An event that is in a thread only through a redacted event, or through
    the event it redacts, is in the main timeline too: by the specification none of these relates to
    a thread, and clients show them where they have them."""
    top: str | None = None
    """For an event in no thread: the event it relates to in the end, which may be a thread root.
    Clients show relations of a thread root with its thread, as they show the root."""


class ThreadWalk:
    """Follows relations from event to event until the thread is known."""

    def __init__(self) -> None:
        self._root: str | None = None
        self._top: str | None = None
        self._is_loose = False
        self._hops = 0

    def step(self, links: ThreadLinks) -> str | None:
        """Take in an event's links. Return the ID of the next event to read, if any."""
        self._is_loose = self._is_loose or links.is_redacted
        if links.thread_root is not None or links.rel_type == THREAD:
            self._root = links.thread_root or links.target
            return None
        parent = links.target
        if parent is None and links.redacts is not None:
            self._is_loose = True
            parent = links.redacts
        if parent is None or self._hops == MAX_HOPS:
            return None
        self._hops += 1
        self._top = parent
        return parent

    @property
    def result(self) -> EventThread:
        """The result of the walk."""
        root = self._root
        return EventThread(
            root, root is None or self._is_loose, self._top if root is None else None
        )


def select_thread(txn: Transaction, room_nid: int, links: ThreadLinks) -> EventThread:
    """Return the thread of an event of a room with these links. One query a hop."""
    walk = ThreadWalk()
    parent = walk.step(links)
    while parent is not None:
        found = _select_links(txn, "e.event_id = ? AND e.room_nid = ?", parent, room_nid)
        parent = None if found is None else walk.step(found)
    return walk.result


def select_thread_of(txn: Transaction, room_nid: int, event_nid: int) -> EventThread:
    """Return the thread of a stored event."""
    links = _select_links(txn, "e.event_nid = ? AND e.room_nid = ?", event_nid, room_nid)
    return EventThread(None, in_main=True) if links is None else select_thread(txn, room_nid, links)


def select_roots(
    txn: Transaction, room_nid: int, event_nids: Iterable[int]
) -> dict[int, str | None]:
    """Return the thread roots of events of a room. One query a hop for all of them."""
    rows = txn.query_in(f"SELECT e.event_nid, {_LINKS} WHERE e.event_nid IN {{keys}}", event_nids)
    walks = {nid: ThreadWalk() for nid, *_ in rows}
    parents = {nid: walks[nid].step(_read_links(links)) for nid, *links in rows}
    while parent_ids := {parent for parent in parents.values() if parent is not None}:
        sql = f"SELECT e.event_id, {_LINKS} WHERE e.event_id IN {{keys}} AND e.room_nid = ?"
        found = {
            event_id: _read_links(links)
            for event_id, *links in txn.query_in(sql, parent_ids, after=(room_nid,))
        }
        parents = {
            nid: walks[nid].step(found[parent])
            for nid, parent in parents.items()
            if parent in found
        }
    return {nid: walk.result.root for nid, walk in walks.items()}


def links_of(relation: Relation | None) -> ThreadLinks:
    """Return the links of an event that is not stored yet."""
    return (
        ThreadLinks(None, None, None)
        if relation is None
        else ThreadLinks(None, relation.rel_type, relation.target)
    )


def _select_links(txn: Transaction, where: str, *args: str | int) -> ThreadLinks | None:
    row = txn.query_one(f"SELECT {_LINKS} WHERE {where}", args)
    return None if row is None else _read_links(row)


def _read_links(columns: Sequence[Any]) -> ThreadLinks:
    thread_root, rel_type, target, redacted_by, redacts = columns
    return ThreadLinks(thread_root, rel_type, target, redacted_by is not None, redacts)
