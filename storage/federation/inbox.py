"""Stores events that remote servers sent and this server acknowledged, but cannot process yet.

They lack, for example, an earlier event, a signing key, or the verdict of a policy server. An event
is stored until it is accepted, is refused, or has waited too long.

Each remote server has a quota of events. Smaller limits apply to its events that wait for verdicts
of policy servers: to all of them together, to those that wait for the same policy server, and to
those of the same room. So a slow policy server affects neither rooms without a policy server nor
rooms with another one. While an event of a room waits for a verdict, later events that the remote
server sends for this room count as waiting too, because they usually follow it. An event that names
the room's policy server may end the wait, so none of these smaller limits applies to it.

All servers together have a limit of events and of bytes. When half of it is used, the quota of each
server becomes small, so only very many servers could use up the rest. Events of servers that are
not in the room have separate, small limits. One machine may pose as any number of servers, so the
servers of one registered domain share a quota too.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class InboxLimits(msgspec.Struct, frozen=True):
    """Limits on waiting events."""

    per_server: int = 2000
    awaiting_verdict: int = 1500
    """Of one server, waiting for verdicts of policy servers."""
    awaiting_one_policy_server: int = 750
    """Of one server, waiting for verdicts of one policy server."""
    awaiting_verdict_per_room: int = 200
    bytes_per_server: int = 32 << 20
    per_domain: int = 4000
    bytes_per_domain: int = 64 << 20
    total: int = 20_000
    """Of all servers."""
    total_bytes: int = 256 << 20
    per_server_when_half_full: int = 100
    """Of one server, once half of the total events or bytes are used."""
    per_domain_when_half_full: int = 500
    per_outside_server: int = 50
    """Of one server, for rooms that it is not in."""
    per_outside_domain: int = 200
    outside_total: int = 1000
    outside_total_bytes: int = 16 << 20


class InboxFull(Exception):
    """The waiting events of this server have reached a limit, so no more are accepted now."""


class NewInboxRow(msgspec.Struct, frozen=True):
    """An event to be stored."""

    event_id: str
    pdu: bytes
    """JSON of the complete PDU."""
    names_policy_server: bool = False
    """It names the policy server of its room."""
    is_own: bool = False
    """Its sender is a user of the server that sent it. Copies from other servers may have been
    altered."""


class InboxRow(msgspec.Struct, frozen=True):
    """A waiting event."""

    inbox_nid: int
    event_id: str
    origin: str
    received_ts: int
    attempts: int
    is_out_of_room: bool
    """The server that sent it was not in the room at that time."""
    pdu: bytes


class _Share(msgspec.Struct, frozen=True):
    """A number of events and their bytes."""

    count: int
    size: int

    def __add__(self, other: "_Share") -> "_Share":
        return _Share(self.count + other.count, self.size + other.size)

    def fits(self, count: int, size: int) -> bool:
        return self.count <= count and self.size <= size


class InboxStore:
    """Reads and writes the table `federation_inbox`."""

    def __init__(self, *, database: Database, limits: InboxLimits | None = None) -> None:
        self._database = database
        self._limits = limits or InboxLimits()

    async def add(
        self,
        room_nid: int,
        origin: str,
        rows: Sequence[NewInboxRow],
        received_ts: int,
        *,
        policy_server: str | None,
        is_out_of_room: bool = False,
        domain: str = "",
    ) -> None:
        """Store events of a room; those that wait already are left alone. Raises InboxFull: then
        none is stored.

        `policy_server`: the policy server whose verdict they wait for. None: that of other waiting
        events of this server in the room, since most events follow earlier ones. `is_out_of_room`:
        the server is not in the room. A copy from a server in the room replaces one from outside,
        and a copy from the sender's own server replaces any other. `domain`: the registered domain
        of the server; empty: no limit per domain.
        """
        await self._database.write(
            "add_to_inbox",
            self._add,
            room_nid,
            origin,
            list(rows),
            received_ts,
            policy_server,
            is_out_of_room,
            domain,
        )

    async def get_of_room(self, room_nid: int, limit: int) -> list[InboxRow]:
        """Return waiting events of a room, one of each server before a second of any. The order
        within a server: fewest attempts, then oldest first.

        At most `limit` from servers in the room, then at most `limit` from others.
        """
        return await self._database.read("get_inbox", _select, room_nid, limit)

    async def get_rooms(self) -> list[int]:
        """Return the rooms with waiting events."""
        return await self._database.read("get_inbox_rooms", _select_rooms)

    async def count(self) -> int:
        """Count all waiting events."""
        return await self._database.read("count_inbox", _count)

    async def remove(self, inbox_nids: Iterable[int]) -> None:
        """Remove events that need not wait any longer."""
        await self._database.write("remove_from_inbox", _remove, list(inbox_nids))

    async def record_attempt(self, inbox_nids: Iterable[int]) -> None:
        """Record a failed attempt."""
        await self._database.write("record_inbox_attempt", _record_attempt, list(inbox_nids))

    def _add(
        self,
        txn: WriteTransaction,
        room_nid: int,
        origin: str,
        rows: list[NewInboxRow],
        received_ts: int,
        policy_server: str | None,
        is_out_of_room: bool,
        domain: str,
    ) -> None:
        names = [row.event_id for row in rows]
        own = {row.event_id for row in rows if row.is_own}
        stored: set[str] = set()
        replaced: list[int] = []
        for name, nid, by, was_out_of_room in txn.query_in(
            "SELECT event_id, inbox_nid, origin, is_out_of_room FROM federation_inbox"
            " WHERE event_id IN {keys}",
            names,
        ):
            if not is_out_of_room and (was_out_of_room or (name in own and by != origin)):
                replaced.append(nid)
            else:
                stored.add(name)
        _remove(txn, replaced)
        new = [row for row in rows if row.event_id not in stored]
        if policy_server is None:
            policy_server = _select_policy_server(txn, room_nid, origin)
        if not (
            self._fits_shared_limits(txn, origin, domain, new, is_out_of_room)
            and self._fits_server_limits(txn, room_nid, origin, new, policy_server)
        ):
            raise InboxFull(origin)
        first = txn.allocate("inbox", len(new))
        txn.execute_many(
            "INSERT INTO federation_inbox (inbox_nid, room_nid, received_ts, event_id,"
            " origin, pdu, policy_server,"
            " is_out_of_room, size, domain)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [
                (
                    first + at,
                    room_nid,
                    received_ts,
                    row.event_id,
                    origin,
                    row.pdu,
                    None if row.names_policy_server else policy_server,
                    int(is_out_of_room),
                    len(row.pdu),
                    domain,
                )
                for at, row in enumerate(new)
            ],
        )

    def _fits_shared_limits(
        self,
        txn: Transaction,
        origin: str,
        domain: str,
        new: Collection[NewInboxRow],
        is_out_of_room: bool,
    ) -> bool:
        """Whether the new events fit into the limits of all servers, of the domain and of this
        server."""
        if not new:
            return True
        limits, added = self._limits, _Share(len(new), sum(len(row.pdu) for row in new))
        together, of_domain, of_one = added, added, added
        for name, of, count, size in txn.query(
            "SELECT origin, domain, count(*), SUM(size) FROM federation_inbox"
            " WHERE is_out_of_room = ?"
            " GROUP BY origin, domain",
            (int(is_out_of_room),),
        ):
            share = _Share(count, int(size))
            together += share
            if domain and of == domain:
                of_domain += share
            if name == origin:
                of_one += share
        if is_out_of_room:
            return (
                together.fits(limits.outside_total, limits.outside_total_bytes)
                and of_domain.count <= limits.per_outside_domain
                and of_one.count <= limits.per_outside_server
            )
        if not (
            together.fits(limits.total, limits.total_bytes)
            and of_domain.fits(limits.per_domain, limits.bytes_per_domain)
            and of_one.size <= limits.bytes_per_server
        ):
            return False
        if together.fits(limits.total // 2, limits.total_bytes // 2):
            return True
        return (
            of_one.count <= limits.per_server_when_half_full
            and of_domain.count <= limits.per_domain_when_half_full
        )

    def _fits_server_limits(
        self,
        txn: Transaction,
        room_nid: int,
        origin: str,
        new: Collection[NewInboxRow],
        policy_server: str | None,
    ) -> bool:
        limits = self._limits
        ((stored_count,),) = txn.query(
            "SELECT count(*) FROM federation_inbox WHERE origin = ?", (origin,)
        )
        if stored_count + len(new) > limits.per_server:
            return not new
        more = sum(not row.names_policy_server for row in new)
        if policy_server is None or not more:
            return True
        ((awaiting_verdicts, by_one, of_room),) = txn.query(
            "SELECT count(*), count(CASE WHEN policy_server = ? THEN 1 END), count(CASE"
            " WHEN room_nid = ? THEN 1 END)"
            " FROM federation_inbox WHERE origin = ? AND policy_server IS NOT NULL",
            (policy_server, room_nid, origin),
        )
        return bool(
            awaiting_verdicts + more <= limits.awaiting_verdict
            and by_one + more <= limits.awaiting_one_policy_server
            and of_room + more <= limits.awaiting_verdict_per_room
        )


def _select_policy_server(txn: Transaction, room_nid: int, origin: str) -> str | None:
    row = txn.query_one(
        "SELECT policy_server FROM federation_inbox WHERE origin = ? AND room_nid = ?"
        " AND policy_server IS NOT NULL LIMIT 1",
        (origin, room_nid),
    )
    return None if row is None else str(row[0])


def _select(txn: Transaction, room_nid: int, limit: int) -> list[InboxRow]:
    rows = txn.query(
        "SELECT i.inbox_nid, i.event_id, i.origin, i.received_ts, i.attempts,"
        " i.is_out_of_room, i.pdu"
        " FROM federation_inbox AS i JOIN"
        " (SELECT inbox_nid, ROW_NUMBER() OVER (PARTITION BY is_out_of_room"
        " ORDER BY turn, attempts, inbox_nid) AS place FROM"
        " (SELECT inbox_nid, is_out_of_room, attempts, ROW_NUMBER() OVER"
        " (PARTITION BY is_out_of_room, origin ORDER BY attempts, inbox_nid) AS turn"
        " FROM federation_inbox"
        " WHERE room_nid = ?) AS turns)"
        " AS places ON places.inbox_nid = i.inbox_nid WHERE places.place <= ?"
        " ORDER BY i.is_out_of_room, places.place",
        (room_nid, limit),
    )
    return [
        InboxRow(nid, event_id, origin, received_ts, attempts, bool(is_out_of_room), pdu)
        for nid, event_id, origin, received_ts, attempts, is_out_of_room, pdu in rows
    ]


def _select_rooms(txn: Transaction) -> list[int]:
    return [
        room_nid
        for (room_nid,) in txn.query(
            "SELECT DISTINCT room_nid FROM federation_inbox ORDER BY room_nid"
        )
    ]


def _count(txn: Transaction) -> int:
    row = txn.query_one("SELECT count(*) FROM federation_inbox")
    return 0 if row is None else int(row[0])


def _remove(txn: WriteTransaction, inbox_nids: Collection[int]) -> None:
    txn.execute_many(
        "DELETE FROM federation_inbox WHERE inbox_nid = ?", [(nid,) for nid in inbox_nids]
    )


def _record_attempt(txn: WriteTransaction, inbox_nids: Collection[int]) -> None:
    txn.execute_many(
        "UPDATE federation_inbox SET attempts = attempts + 1 WHERE inbox_nid = ?",
        [(nid,) for nid in inbox_nids],
    )
