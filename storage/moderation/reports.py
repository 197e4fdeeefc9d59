"""Reports of events, rooms and users, which users send to the administrators."""

from collections.abc import Sequence
from enum import Enum

import msgspec

from storage.engine.database import Database
from storage.engine.interface import Row, SQLValue
from storage.engine.transaction import Transaction, WriteTransaction


class ReportKind(Enum):
    """The kind of reported object."""

    EVENT = "event"
    ROOM = "room"
    USER = "user"


class NewReport(msgspec.Struct, frozen=True):
    """A new report."""

    received_ts: int
    kind: ReportKind
    user_id: str
    """The user who reported."""
    room_id: str | None = None
    event_id: str | None = None
    target_user_id: str | None = None
    """The reported user, or the sender of the event."""
    reason: str | None = None


class Report(msgspec.Struct, frozen=True):
    """A stored report."""

    report_nid: int
    report: NewReport
    room_name: str | None
    """The current name of the room, if the server knows the room."""
    room_alias: str | None


class ReportFilter(msgspec.Struct, frozen=True):
    """A filter for reports. Parts of IDs match, and case is ignored. An empty part matches
    everything."""

    reporter_part: str = ""
    room_part: str = ""
    target_part: str = ""
    target: str | None = None
    """The reported user, or the sender of the event."""


_COLUMNS = "report_nid, received_ts, kind, user_id, room_id, event_id, target_user_id, reason"
_SELECT = (
    "SELECT p.report_nid, s.name, s.canonical_alias, p.received_ts, p.kind, p.user_id, p.room_id,"
    " p.event_id,"
    " p.target_user_id, p.reason FROM reports AS p LEFT JOIN rooms AS r ON r.room_id = p.room_id"
    " LEFT JOIN room_summaries AS s ON s.room_nid = r.room_nid"
)


class ReportStore:
    """Stores reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_report(self, report: NewReport) -> int:
        """Store a report. Return its number."""
        return await self._database.write("add_report", _insert, report)

    async def get_page(
        self, kind: ReportKind, wanted: ReportFilter, offset: int, limit: int, *, newest_first: bool
    ) -> tuple[Sequence[Report], int]:
        """Return a page of reports of one kind, and their total number. Reads all reports of the
        kind."""
        return await self._database.read(
            "get_report_page", _select_page, kind, wanted, offset, limit, newest_first
        )

    async def get_report(self, kind: ReportKind, report_nid: int) -> Report | None:
        """Return the report of this kind and number."""
        return await self._database.read("get_report", _select_one, kind, report_nid)

    async def remove_report(self, kind: ReportKind, report_nid: int) -> bool:
        """Delete a report. Return whether it existed."""
        return await self._database.write("remove_report", _delete, kind, report_nid)


def _insert(txn: WriteTransaction, report: NewReport) -> int:
    report_nid = txn.allocate("report")
    txn.execute(
        f"INSERT INTO reports ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            report_nid,
            report.received_ts,
            report.kind.value,
            report.user_id,
            report.room_id,
            report.event_id,
            report.target_user_id,
            report.reason,
        ),
    )
    return report_nid


def _select_page(
    txn: Transaction,
    kind: ReportKind,
    wanted: ReportFilter,
    offset: int,
    limit: int,
    newest_first: bool,
) -> tuple[list[Report], int]:
    conditions = "p.kind = ?"
    args: list[SQLValue] = [kind.value]
    parts = (
        ("user_id", wanted.reporter_part),
        ("room_id", wanted.room_part),
        ("target_user_id", wanted.target_part),
    )
    for column, part in parts:
        if part:
            escaped = "".join(f"!{sign}" if sign in "!%_" else sign for sign in part.lower())
            conditions += f" AND lower(p.{column}) LIKE ? ESCAPE '!'"
            args.append(f"%{escaped}%")
    if wanted.target is not None:
        conditions += " AND p.target_user_id = ?"
        args.append(wanted.target)
    count = txn.query_one(f"SELECT count(*) FROM reports AS p WHERE {conditions}", args)
    order = "DESC" if newest_first else "ASC"
    rows = txn.query(
        f"{_SELECT} WHERE {conditions} ORDER BY p.report_nid {order} LIMIT ? OFFSET ?",
        (*args, limit, offset),
    )
    return [_report(row) for row in rows], 0 if count is None else int(count[0])


def _select_one(txn: Transaction, kind: ReportKind, report_nid: int) -> Report | None:
    row = txn.query_one(
        f"{_SELECT} WHERE p.kind = ? AND p.report_nid = ?", (kind.value, report_nid)
    )
    return None if row is None else _report(row)


def _delete(txn: WriteTransaction, kind: ReportKind, report_nid: int) -> bool:
    return bool(
        txn.execute(
            "DELETE FROM reports WHERE kind = ? AND report_nid = ?", (kind.value, report_nid)
        )
    )


def _report(row: Row) -> Report:
    report_nid, room_name, room_alias, received_ts, kind, *rest = row
    return Report(
        report_nid, NewReport(received_ts, ReportKind(kind), *rest), room_name, room_alias
    )
