"""Endpoints with which other servers in a room fetch events, auth chains, history, and the state
before an event.

spec: server-server-api#retrieving-events,
server-server-api#backfilling-and-retrieving-missing-events,
server-server-api#retrieving-event-authorisation-information
"""

from typing import Any, Literal

import msgspec

from federation.api.endpoint import ServerAuth, endpoint
from federation.api.request import Peer
from federation.api.responses import Response
from federation.protocol.ids import EventID, RoomID
from federation.rooms.serving.rooms import ServedRooms, TransactionForm
from storage.events.timelines import Direction

DEFAULT_LIMIT = 10


@endpoint(
    "GET", "/_matrix/federation/v1/event/{event_id}", auth=ServerAuth.SERVER, resource="federation"
)
async def get_event(
    rooms: ServedRooms, form: TransactionForm, peer: Peer, *, event_id: EventID
) -> dict[str, Any]:
    """Return one event."""
    return form.wrap(await rooms.get_event(peer.server_name, event_id))


@endpoint(
    "GET", "/_matrix/federation/v1/state/{room_id}", auth=ServerAuth.SERVER, resource="federation"
)
async def get_state(
    rooms: ServedRooms, peer: Peer, *, room_id: RoomID, event_id: EventID
) -> Response:
    """Return the state before an event."""
    return await rooms.get_state(peer.server_name, room_id, event_id)


@endpoint(
    "GET",
    "/_matrix/federation/v1/state_ids/{room_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def get_state_ids(
    rooms: ServedRooms, peer: Peer, *, room_id: RoomID, event_id: EventID
) -> dict[str, Any]:
    """Return the state before an event by event IDs."""
    served = await rooms.get_state_ids(peer.server_name, room_id, event_id)
    return {"pdu_ids": served.state, "auth_chain_ids": served.auth_chain}


@endpoint(
    "GET",
    "/_matrix/federation/v1/event_auth/{room_id}/{event_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def get_event_auth(
    rooms: ServedRooms, peer: Peer, *, room_id: RoomID, event_id: EventID
) -> dict[str, Any]:
    """Return the auth chain of an event."""
    return {"auth_chain": await rooms.get_auth_chain(peer.server_name, room_id, event_id)}


@endpoint(
    "GET",
    "/_matrix/federation/v1/backfill/{room_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def get_backfill(
    rooms: ServedRooms,
    form: TransactionForm,
    peer: Peer,
    *,
    room_id: RoomID,
    v: list[EventID],
    limit: int,
) -> dict[str, Any]:
    """Return events and their predecessors."""
    return form.wrap(await rooms.get_before(peer.server_name, room_id, v, limit))


class MissingEventsRequest(msgspec.Struct, frozen=True):
    """A request for the events between the `latest` and the `earliest` ones."""

    earliest_events: list[str]
    latest_events: list[str]
    limit: int = DEFAULT_LIMIT
    min_depth: int = 0


@endpoint(
    "POST",
    "/_matrix/federation/v1/get_missing_events/{room_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def get_missing_events(
    rooms: ServedRooms, peer: Peer, *, room_id: RoomID, body: MissingEventsRequest
) -> dict[str, Any]:
    """Return the events between the events that a server has and later ones."""
    events = await rooms.get_between(
        peer.server_name,
        room_id,
        earliest=[EventID(name) for name in body.earliest_events],
        latest=[EventID(name) for name in body.latest_events],
        limit=body.limit,
        min_depth=body.min_depth,
    )
    return {"events": events}


@endpoint(
    "GET",
    "/_matrix/federation/v1/timestamp_to_event/{room_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def get_event_by_timestamp(
    rooms: ServedRooms, peer: Peer, *, room_id: RoomID, ts: int, dir: Literal["f", "b"]
) -> dict[str, Any]:
    """Return the event next to a time."""
    event_id, found_ts = await rooms.find_closest(peer.server_name, room_id, ts, Direction(dir))
    return {"event_id": event_id, "origin_server_ts": found_ts}
