"""Deliveries to remote servers, for administrators: show their state, and retry now. The paths are
those of Synapse's administration API.

Fields in addition to Synapse's:

- `error`: the last error.
- `asked_until_ts`: the end of the pause that the remote server requested with a status 429. Such a
  server is reachable, so `failure_ts` is null.
- `refused`: why the federation policy refuses the server, if it does.
- `rooms_missed`: the number of rooms in which the server missed events.
- `device_lists_missed`: the number of users whose device list changes the server missed.
- `messages_to_devices`: the number of to-device messages that wait for the server.

`last_successful_stream_ordering` is the stream position up to which the server has received every
event that concerns it.
"""

from typing import Annotated, Any, Final, Literal

from federation.api.endpoint import QueryNames
from federation.protocol.errors import InvalidParam
from federation.protocol.ids import ServerName
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.federation.destinations import DestinationAdministration
from storage.federation.destination_lists import DestinationSummary, Order

_PATH: Final = "/_synapse/admin/v1/federation/destinations"
MAX_PAGE_SIZE: Final = 1000
"""The largest number of entries in one response."""
From = Annotated[int, QueryNames("from")]
OrderBy = Literal[
    "destination",
    "retry_last_ts",
    "retry_interval",
    "failure_ts",
    "last_successful_stream_ordering",
]
Direction = Literal["f", "b"]


@endpoint("GET", _PATH, auth=Auth.ADMIN)
async def get_destinations(
    destinations: DestinationAdministration,
    *,
    from_: From = 0,
    limit: int = 100,
    destination: str = "",
    order_by: OrderBy = "destination",
    dir: Direction = "f",
) -> dict[str, Any]:
    """Return a page of the servers that share rooms with this one or have a queue. `destination`
    filters by a part of the server name."""
    _check_page(from_, limit)
    order: Order = "delivered_upto" if order_by == "last_successful_stream_ordering" else order_by
    rows, count = await destinations.get_page(destination, order, dir == "b", from_, limit)
    response: dict[str, Any] = {
        "destinations": [_describe(row, destinations) for row in rows],
        "total": count,
    }
    return _add_next_token(response, from_ + len(rows), count)


@endpoint("GET", f"{_PATH}/{{destination}}", auth=Auth.ADMIN)
async def get_destination(
    destinations: DestinationAdministration, *, destination: ServerName
) -> dict[str, Any]:
    """Return the state of one destination."""
    return _describe(await destinations.get(destination), destinations)


@endpoint("GET", f"{_PATH}/{{destination}}/rooms", auth=Auth.ADMIN)
async def get_destination_rooms(
    destinations: DestinationAdministration,
    *,
    destination: ServerName,
    from_: From = 0,
    limit: int = 100,
    dir: Direction = "f",
) -> dict[str, Any]:
    """Return the rooms that the destination is in or has missed events of. For a missed room,
    `stream_ordering` is the position of the first event that the destination has not received."""
    _check_page(from_, limit)
    rooms, count = await destinations.get_rooms(destination, dir == "b", from_, limit)
    response: dict[str, Any] = {
        "rooms": [
            {"room_id": room.room_id, "stream_ordering": room.position, "is_behind": room.is_behind}
            for room in rooms
        ],
        "total": count,
    }
    return _add_next_token(response, from_ + len(rooms), count)


@endpoint("POST", f"{_PATH}/{{destination}}/reset_connection", auth=Auth.ADMIN)
async def reset_connection(
    destinations: DestinationAdministration, *, destination: ServerName
) -> Empty:
    """Retry now, and reset the back-off."""
    await destinations.do_try_now(destination)
    return EMPTY


def _check_page(from_: int, limit: int) -> None:
    if from_ < 0 or not 1 <= limit <= MAX_PAGE_SIZE:
        raise InvalidParam(
            f"from must not be negative, and limit must be between 1 and {MAX_PAGE_SIZE}"
        )


def _add_next_token(response: dict[str, Any], end: int, count: int) -> dict[str, Any]:
    return {**response, "next_token": str(end)} if end < count else response


def _describe(row: DestinationSummary, destinations: DestinationAdministration) -> dict[str, Any]:
    return {
        "destination": row.server,
        "retry_last_ts": row.last_attempt_ts,
        "retry_interval": row.backoff_ms,
        "failure_ts": row.failing_since_ts,
        "last_successful_stream_ordering": row.delivered_upto,
        "error": row.error,
        "asked_until_ts": row.retry_after_ts or None,
        "refused": destinations.find_refusal(ServerName(row.server)),
        "rooms_missed": row.rooms_missed,
        "device_lists_missed": row.device_lists_missed,
        "messages_to_devices": row.messages_to_devices,
    }
