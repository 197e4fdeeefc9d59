"""Reports of events, users and rooms, for administrators. The paths for reports of events and users
are those of Synapse's administration API. The paths for reports of rooms are this server's own.

`from` is an offset in the requested order. With `dir=f` (oldest first), a new report does not
shift the pages, but the deletion of a report does. Clients no longer send a `score`, so it is null.
"""

from typing import Annotated, Any, Final, Literal

from federation.api.endpoint import QueryNames
from federation.protocol.errors import InvalidParam
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.moderation.report_administration import ReportAdministration
from storage.moderation.reports import Report, ReportFilter, ReportKind

_EVENTS: Final = "/_synapse/admin/v1/event_reports"
_USERS: Final = "/_synapse/admin/v1/user_reports"
_ROOMS: Final = "/_mahalla/admin/v1/room_reports"
MAX_PAGE_SIZE: Final = 1000
"""The largest number of entries in one response."""
MAX_OFFSET: Final = 2**53
From = Annotated[int, QueryNames("from")]
Direction = Literal["f", "b"]


@endpoint("GET", _EVENTS, auth=Auth.ADMIN)
async def get_event_reports(
    reports: ReportAdministration,
    *,
    from_: From = 0,
    limit: int = 100,
    dir: Direction = "b",
    user_id: str = "",
    room_id: str = "",
    event_sender_user_id: UserID | None = None,
) -> dict[str, Any]:
    """Return reports of events. `user_id` and `room_id` match parts of the reporter's ID and of the
    room ID."""
    wanted = ReportFilter(reporter_part=user_id, room_part=room_id, target=event_sender_user_id)
    rows, response = await _get_page(reports, ReportKind.EVENT, wanted, from_, limit, dir)
    return {"event_reports": [_event_report(row) for row in rows], **response}


@endpoint("GET", f"{_EVENTS}/{{report_id}}", auth=Auth.ADMIN)
async def get_event_report(reports: ReportAdministration, *, report_id: int) -> dict[str, Any]:
    """Return one report with the reported event."""
    report = await reports.get(ReportKind.EVENT, report_id)
    return {**_event_report(report), "event_json": await reports.get_event(report)}


@endpoint("DELETE", f"{_EVENTS}/{{report_id}}", auth=Auth.ADMIN)
async def delete_event_report(reports: ReportAdministration, *, report_id: int) -> Empty:
    """Delete the report of an event."""
    await reports.do_remove(ReportKind.EVENT, report_id)
    return EMPTY


@endpoint("GET", _USERS, auth=Auth.ADMIN)
async def get_user_reports(
    reports: ReportAdministration,
    *,
    from_: From = 0,
    limit: int = 100,
    dir: Direction = "b",
    user_id: str = "",
    target_user_id: str = "",
) -> dict[str, Any]:
    """Return reports of users. `user_id` and `target_user_id` match parts of the IDs of the
    reporter and of the reported user."""
    wanted = ReportFilter(reporter_part=user_id, target_part=target_user_id)
    rows, response = await _get_page(reports, ReportKind.USER, wanted, from_, limit, dir)
    return {"user_reports": [_user_report(row) for row in rows], **response}


@endpoint("GET", f"{_USERS}/{{report_id}}", auth=Auth.ADMIN)
async def get_user_report(reports: ReportAdministration, *, report_id: int) -> dict[str, Any]:
    """Return one report of a user."""
    return _user_report(await reports.get(ReportKind.USER, report_id))


@endpoint("DELETE", f"{_USERS}/{{report_id}}", auth=Auth.ADMIN)
async def delete_user_report(reports: ReportAdministration, *, report_id: int) -> Empty:
    """Delete the report of a user."""
    await reports.do_remove(ReportKind.USER, report_id)
    return EMPTY


@endpoint("GET", _ROOMS, auth=Auth.ADMIN)
async def get_room_reports(
    reports: ReportAdministration,
    *,
    from_: From = 0,
    limit: int = 100,
    dir: Direction = "b",
    user_id: str = "",
    room_id: str = "",
) -> dict[str, Any]:
    """Return reports of rooms. `user_id` and `room_id` match parts of the reporter's ID and of the
    room ID."""
    wanted = ReportFilter(reporter_part=user_id, room_part=room_id)
    rows, response = await _get_page(reports, ReportKind.ROOM, wanted, from_, limit, dir)
    return {"room_reports": [_room_report(row) for row in rows], **response}


@endpoint("GET", f"{_ROOMS}/{{report_id}}", auth=Auth.ADMIN)
async def get_room_report(reports: ReportAdministration, *, report_id: int) -> dict[str, Any]:
    """Return one report of a room."""
    return _room_report(await reports.get(ReportKind.ROOM, report_id))


@endpoint("DELETE", f"{_ROOMS}/{{report_id}}", auth=Auth.ADMIN)
async def delete_room_report(reports: ReportAdministration, *, report_id: int) -> Empty:
    """Delete the report of a room."""
    await reports.do_remove(ReportKind.ROOM, report_id)
    return EMPTY


async def _get_page(
    reports: ReportAdministration,
    kind: ReportKind,
    wanted: ReportFilter,
    from_: int,
    limit: int,
    dir: Direction,
) -> tuple[list[Report], dict[str, Any]]:
    """Return the reports of a page, and the paging fields of the response. Raises InvalidParam."""
    if not 0 <= from_ <= MAX_OFFSET or not 0 <= limit <= MAX_PAGE_SIZE:
        raise InvalidParam(
            f"from must not be negative, and limit must be between 0 and {MAX_PAGE_SIZE}"
        )
    rows, count = await reports.get_page(kind, wanted, from_, limit, newest_first=dir == "b")
    response: dict[str, Any] = {"total": count}
    if rows and from_ + len(rows) < count:
        response["next_token"] = from_ + len(rows)
    return list(rows), response


def _event_report(row: Report) -> dict[str, Any]:
    sender = row.report.target_user_id
    return {**_room_report(row), "event_id": row.report.event_id, "sender": sender, "score": None}


def _room_report(row: Report) -> dict[str, Any]:
    room = {"room_id": row.report.room_id, "name": row.room_name, "canonical_alias": row.room_alias}
    return {**_common(row), **room}


def _user_report(row: Report) -> dict[str, Any]:
    return {**_common(row), "target_user_id": row.report.target_user_id}


def _common(row: Report) -> dict[str, Any]:
    report = row.report
    return {
        "id": row.report_nid,
        "received_ts": report.received_ts,
        "user_id": report.user_id,
        "reason": report.reason,
    }
