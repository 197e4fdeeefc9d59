"""Fetches events and states of rooms from other servers, with limits for each response.

This module checks only the form of a response, and verifies no event.

spec: server-server-api#retrieving-events,
server-server-api#backfilling-and-retrieving-missing-events,
server-server-api#retrieving-event-authorisation-information
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.peers.client import FederationClient, make_path
from federation.peers.response_splitter import Yielder, parse_event_piece, parse_piece, split_lists
from federation.protocol.errors import RemoteError
from federation.protocol.ids import EventID, RoomID, ServerName, is_event_id
from federation.remote.large_responses import ANSWER_SECONDS

Pdu = Mapping[str, Any]

MAX_STATE_EVENTS: Final = 500_000
"""Events of a state and its auth chain together."""
MAX_AUTH_CHAIN: Final = 20_000
"""Events of the auth chain of one event."""
MAX_PAGE_BYTES: Final = 16 << 20
MAX_STATE_BYTES: Final = 256 << 20
MAX_IDS_BYTES: Final = 24 << 20
MAX_SHORT_STATE_BYTES: Final = 4 << 20
MAX_SHORT_LIST_BYTES: Final = 1 << 20
"""Size of short lists of IDs and of auth chains, which need no slot (`large_responses.py`)."""
STATE_SLOTS: Final = ((3, 32 << 20), (1, MAX_STATE_BYTES))
LIST_SLOTS: Final = ((2, MAX_IDS_BYTES),)
"""Slots for longer responses, for all rooms: their number, and the largest size in bytes."""
IDS_PER_TURN: Final = 20_000
"""Ids that are checked between two turns of the reactor, some milliseconds."""
MAX_EVENT_BYTES: Final = 256 << 10
SECONDS: Final = 20


class StateIDs(msgspec.Struct, frozen=True):
    """A state and its auth chain, by event ID."""

    state: Sequence[EventID]
    auth_chain: Sequence[EventID]


class StatePDUs(msgspec.Struct, frozen=True):
    """A state and its auth chain. The events are parsed later, one by one."""

    state: Sequence[msgspec.Raw]
    auth_chain: Sequence[msgspec.Raw]


class _StateIDsAnswer(msgspec.Struct):
    pdu_ids: list[str]
    auth_chain_ids: list[str]


class EventAtTime(msgspec.Struct, frozen=True):
    """An event that another server named as the closest one to a time. The time is in
    milliseconds."""

    event_id: EventID
    origin_server_ts: int


class EventClient:
    """Sends the requests. Each method raises RemoteError, and Forbidden if the policy blocks the
    server.

    `seconds`: longest time for the response. Methods may use a shorter limit.
    """

    def __init__(self, *, requests: FederationClient, clock: IReactorTime) -> None:
        self._requests = requests
        self._clock = clock

    async def get_missing_events(
        self,
        server: ServerName,
        room_id: RoomID,
        *,
        earliest: Collection[EventID],
        latest: Collection[EventID],
        limit: int,
        min_depth: int = 0,
        seconds: float = SECONDS,
    ) -> list[Pdu]:
        """Return the events before `latest`, without it, back to `earliest`."""
        answer = await self._requests.post_bytes(
            server,
            make_path("/_matrix/federation/v1/get_missing_events/{}", room_id),
            {
                "earliest_events": list(earliest),
                "latest_events": list(latest),
                "limit": limit,
                "min_depth": min_depth,
            },
            seconds=_limit_seconds(server, seconds, SECONDS),
            max_bytes=MAX_PAGE_BYTES,
        )
        return await self._read(server, answer, "events", limit)

    async def get_backfill(
        self, server: ServerName, room_id: RoomID, from_: Collection[EventID], limit: int
    ) -> list[Pdu]:
        """Return these events and the events before them."""
        query = [*(("v", event_id) for event_id in from_), ("limit", str(limit))]
        path = make_path("/_matrix/federation/v1/backfill/{}", room_id)
        answer = await self._requests.get_bytes(
            server, path, query, seconds=SECONDS, max_bytes=MAX_PAGE_BYTES
        )
        return await self._read(server, answer, "pdus", limit)

    async def get_state_ids(
        self,
        server: ServerName,
        room_id: RoomID,
        event_id: EventID,
        *,
        seconds: float,
        max_bytes: int,
    ) -> StateIDs:
        """Return the state before an event by event IDs. Raises AnswerTooLong."""
        path = make_path("/_matrix/federation/v1/state_ids/{}", room_id)
        answer = await self._requests.get_as(
            _StateIDsAnswer,
            server,
            path,
            [("event_id", event_id)],
            seconds=_limit_seconds(server, seconds, ANSWER_SECONDS),
            max_bytes=max_bytes,
        )
        state = await _check_ids(server, answer.pdu_ids, self._clock)
        return StateIDs(state, await _check_ids(server, answer.auth_chain_ids, self._clock))

    async def get_state(
        self,
        server: ServerName,
        room_id: RoomID,
        event_id: EventID,
        *,
        seconds: float,
        max_bytes: int,
    ) -> StatePDUs:
        """Return the state before an event with its events. Raises AnswerTooLong."""
        path = make_path("/_matrix/federation/v1/state/{}", room_id)
        body = await self._requests.get_bytes(
            server,
            path,
            [("event_id", event_id)],
            seconds=_limit_seconds(server, seconds, ANSWER_SECONDS),
            max_bytes=max_bytes,
        )
        try:
            lists = await split_lists(body, ("pdus", "auth_chain"), MAX_STATE_EVENTS, self._clock)
        except ValueError as error:
            raise RemoteError(
                server, f"the answer is no state: {error}", retryable=False
            ) from error
        return StatePDUs(lists.lists["pdus"], lists.lists["auth_chain"])

    async def get_event(
        self, server: ServerName, event_id: EventID, *, seconds: float = SECONDS
    ) -> Pdu:
        """Return one event."""
        path = make_path("/_matrix/federation/v1/event/{}", event_id)
        answer = await self._requests.get(
            server,
            path,
            seconds=_limit_seconds(server, seconds, SECONDS),
            max_bytes=MAX_EVENT_BYTES,
        )
        pdus = _get_pdus(server, answer, "pdus", 1)
        if not pdus:
            raise RemoteError(server, "the answer lacks the event", retryable=False)
        return pdus[0]

    async def get_event_auth(
        self,
        server: ServerName,
        room_id: RoomID,
        event_id: EventID,
        *,
        seconds: float,
        max_bytes: int,
    ) -> list[Pdu]:
        """Return the auth chain of an event. Raises AnswerTooLong."""
        path = make_path("/_matrix/federation/v1/event_auth/{}/{}", room_id, event_id)
        answer = await self._requests.get_bytes(
            server, path, seconds=_limit_seconds(server, seconds, SECONDS), max_bytes=max_bytes
        )
        return await self._read(server, answer, "auth_chain", MAX_AUTH_CHAIN)

    async def _read(self, server: ServerName, answer: bytes, field: str, limit: int) -> list[Pdu]:
        """Return the first `limit` events in a list of a response.

        They are parsed one by one, as parsed JSON may take many times its length.
        """
        try:
            lists = await split_lists(answer, (field,), MAX_AUTH_CHAIN, self._clock)
            if not isinstance(parse_piece(lists.rest).get(field), list):
                raise ValueError(f"it has no list `{field}`")
        except ValueError as error:
            raise RemoteError(
                server, f"the answer has an unexpected form: {error}", retryable=False
            ) from error
        yielder, events = Yielder(clock=self._clock), list[Pdu]()
        for piece in lists.lists[field][:limit]:
            if event := parse_event_piece(piece):
                events.append(event)
            await yielder.after(len(memoryview(piece)))
        return events

    async def get_event_at(
        self, server: ServerName, room_id: RoomID, ts: int, direction: str
    ) -> EventAtTime:
        """Return the event next to a time; `direction` is `f` or `b`."""
        path = make_path("/_matrix/federation/v1/timestamp_to_event/{}", room_id)
        answer = await self._requests.get(
            server,
            path,
            [("ts", str(ts)), ("dir", direction)],
            seconds=SECONDS,
            max_bytes=MAX_EVENT_BYTES,
        )
        event_id, found_ts = answer.get("event_id"), answer.get("origin_server_ts")
        if not isinstance(event_id, str) or not is_event_id(event_id) or type(found_ts) is not int:
            raise RemoteError(server, "the answer names no event", retryable=False)
        return EventAtTime(EventID(event_id), found_ts)


def _limit_seconds(server: ServerName, seconds: float, limit: float) -> float:
    if seconds <= 0:
        raise RemoteError(server, "no time is left for the request", retryable=True)
    return min(seconds, limit)


def _get_pdus(server: ServerName, answer: object, field: str, limit: int) -> list[Pdu]:
    """Return the first `limit` PDUs in a field of a response. Skip values other than objects."""
    pdus = answer.get(field) if isinstance(answer, dict) else None
    if not isinstance(pdus, list):
        raise RemoteError(server, f"the answer has no list `{field}`", retryable=False)
    return [pdu for pdu in pdus[:limit] if isinstance(pdu, dict)]


async def _check_ids(server: ServerName, ids: Sequence[str], clock: IReactorTime) -> list[EventID]:
    if len(ids) > MAX_STATE_EVENTS:
        raise RemoteError(server, "the state has too many events", retryable=False)
    found: dict[EventID, None] = {}
    yielder = Yielder(clock=clock, bytes_per_turn=IDS_PER_TURN)
    for start in range(0, len(ids), IDS_PER_TURN):
        found.update(
            (EventID(event_id), None)
            for event_id in ids[start : start + IDS_PER_TURN]
            if is_event_id(event_id)
        )
        if start + IDS_PER_TURN < len(ids):
            await yielder.after(IDS_PER_TURN)
    return list(found)
