"""What users reported to the administrators: events, rooms, users."""

from enum import Enum

import msgspec

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


class ReportKind(Enum):
    """What is reported."""

    EVENT = "event"
    ROOM = "room"
    USER = "user"


class NewReport(msgspec.Struct, frozen=True):
    """A report, as it comes in."""

    received_ts: int
    kind: ReportKind
    user_id: str
    """Who reported."""
    room_id: str | None = None
    event_id: str | None = None
    target_user_id: str | None = None
    """The user who is reported, or who sent the event."""
    reason: str | None = None


class Report(msgspec.Struct, frozen=True):
    """A report, as it is kept."""

    report_nid: int
    report: NewReport


_COLUMNS = "report_nid, received_ts, kind, user_id, room_id, event_id, target_user_id, reason"


class ReportStore:
    """The table of reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_report(self, report: NewReport) -> int:
        """Keep a report; its number."""
        return await self._database.write("add_report", _insert, report)

    async def get_reports(self, kind: ReportKind, *, before: int | None = None, limit: int) -> list[Report]:
        """Reports of one kind, the newest first, from before the one with that number."""
        return await self._database.read("get_reports", _select, kind, before, limit)


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


def _select(txn: Transaction, kind: ReportKind, before: int | None, limit: int) -> list[Report]:
    rows = txn.query(
        f"SELECT {_COLUMNS} FROM reports WHERE kind = ? AND report_nid < ? ORDER BY report_nid DESC LIMIT ?",
        (kind.value, 2**63 - 1 if before is None else before, limit),
    )
    return [Report(nid, NewReport(received_ts, ReportKind(of), *rest)) for nid, received_ts, of, *rest in rows]
