"""Lists, shows and removes the reports that users have sent, for administrators."""

from collections.abc import Sequence

import msgspec

from federation.protocol.errors import NotFound
from federation.protocol.ids import EventID
from federation.rooms.events import RoomEvents
from storage.moderation.reports import Report, ReportFilter, ReportKind, ReportStore

MAX_NUMBER = 2**63 - 1


class ReportAdministration:
    """Reads and removes reports."""

    def __init__(self, *, store: ReportStore, events: RoomEvents) -> None:
        self._store = store
        self._events = events

    async def get_page(
        self, kind: ReportKind, wanted: ReportFilter, offset: int, limit: int, *, newest_first: bool
    ) -> tuple[Sequence[Report], int]:
        """Return a page of the reports of one kind, and their total number."""
        return await self._store.get_page(kind, wanted, offset, limit, newest_first=newest_first)

    async def get(self, kind: ReportKind, report_nid: int) -> Report:
        """Return one report. Raises NotFound."""
        report = (
            await self._store.get_report(kind, report_nid) if 0 < report_nid <= MAX_NUMBER else None
        )
        if report is None:
            raise NotFound("There is no such report")
        return report

    async def get_event(self, report: Report) -> msgspec.Raw | None:
        """Return the reported event in federation format, redacted if it was redacted."""
        event_id = EventID(report.report.event_id or "")
        event = (await self._events.get_in_any_room([event_id])).get(event_id)
        return None if event is None else msgspec.Raw(event.pdu)

    async def do_remove(self, kind: ReportKind, report_nid: int) -> None:
        """Delete a report. Raises NotFound."""
        if not (0 < report_nid <= MAX_NUMBER and await self._store.remove_report(kind, report_nid)):
            raise NotFound("There is no such report")
