"""Receives transactions of other servers. All content except typing and presence is durable before
a transaction is acknowledged.

- An event whose predecessors are known is stored during the request, in one write. An event that
  cannot be processed yet, for example because earlier events or a signing key are missing, is
  stored in the inbox, also during the request. Missing data is fetched afterwards.
- A repeated transaction gets the same response from a cache. If the response is no longer cached,
  for example after a restart, the transaction is processed again without further effect: stored
  events are recognized by their ids, and EDU handlers accept repeated EDUs.
- The content is parsed event by event. If a body that consists of empty objects were parsed as a
  whole, it would take twenty times its size in memory and block the reactor.
- Each server has a queue, from which one transaction is processed at a time. So no server delays
  the others. If a server sends too many transactions concurrently, the excess ones are refused with
  429.

spec: server-server-api#transactions
"""

import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import compress
from operator import not_
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.peers.fair_semaphore import FairSemaphore
from federation.peers.federation_policy import FederationPolicy
from federation.peers.response_splitter import (
    MAX_EVENT_BYTES,
    TooManyEvents,
    Yielder,
    parse_event_piece,
    parse_piece,
    split_lists,
)
from federation.protocol.dense_json import has_too_many_values
from federation.protocol.errors import BadJson, LimitExceeded, MatrixError, TooLarge
from federation.protocol.events import Event, parse_event
from federation.protocol.ids import RoomID, ServerName
from federation.protocol.policy_server import NAMING, find_naming, is_naming, read_policy_server
from federation.receiver.edus import EduReceivers
from federation.rooms.concurrency import map_concurrently
from federation.rooms.engine import RoomEngine
from federation.rooms.joins.out_of_room_updates import OutOfRoomUpdates
from federation.rooms.memberships import Memberships
from federation.rooms.receipt_checks import Verdict
from federation.rooms.receive.inbox import Inbox, PduObserver, must_wait, outcome_label
from federation.rooms.receive.receiver import Receiver
from federation.rooms.receive.room_participants import RoomParticipants, can_be_verified_by
from storage.cache import LRU
from storage.federation.inbox import InboxFull

MAX_PDUS: Final = 50
MAX_EDUS: Final = 100
MAX_CONCURRENT_ROOMS: Final = 10
"""Rooms of one transaction that are processed at once."""
MAX_WAITING: Final = 10
"""Transactions of one server that are processed or wait. A usual server waits for each response."""

MAX_COMMAS_AT_ONCE: Final = 100_000
"""Commas in a body that is parsed at once, which takes a tenth of the time of splitting it. No list
in such a body has more entries. Other bodies are split."""

MAX_CACHED_RESPONSES: Final = 2
"""Cached responses to one server. A server repeats only the transaction that it sent last."""
MAX_CACHED_BYTES: Final = 32 << 20
"""Bytes of all cached responses. A usual response about fifty events has three thousand bytes."""
OVERHEAD_BYTES: Final = 500
"""Memory for a cached response besides its text."""

TO_DEVICE: Final = "m.direct_to_device"

Results = dict[str, dict[str, str]]
"""By event ID: an empty object, or `error` with a text."""


Piece = Mapping[str, Any] | msgspec.Raw
"""An event or an EDU, parsed or not."""


class _Form(msgspec.Struct):
    """The fields of a transaction. Its origin is taken from the signature of the request."""

    pdus: Sequence[msgspec.Raw]
    edus: Sequence[msgspec.Raw] = ()


_read_form: Final = msgspec.json.Decoder(_Form).decode


class _Kind(msgspec.Struct):
    edu_type: str = ""


class TransactionResponseCache:
    """A cache of the responses to the latest transactions of each server. Use this class only on
    the reactor thread.

    The sender influences how long a response is, and anybody can run many servers. So all responses
    together have a bound in bytes, and the servers that have sent nothing for longest are evicted
    first.
    """

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._servers: LRU[ServerName, dict[str, bytes]] = LRU(
            max_weight=max_bytes, weigh=_response_bytes
        )
        """By server and transaction id, the oldest first."""

    def find(self, server: ServerName, txn_id: str) -> bytes | None:
        """Return the response if it is cached."""
        of_server = self._servers.peek(server)
        return None if of_server is None else of_server.get(txn_id)

    def add(self, server: ServerName, txn_id: str, response: bytes) -> None:
        """Cache a response that is not cached yet."""
        known = self._servers.peek(server) or {}
        latest = [*known.items(), (txn_id, response)][-MAX_CACHED_RESPONSES:]
        self._servers.put(server, dict(latest))


def _response_bytes(_server: ServerName, responses: dict[str, bytes]) -> int:
    return sum(len(txn_id) + len(text) + OVERHEAD_BYTES for txn_id, text in responses.items())


class TransactionReceiver:
    """Receives transactions. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        engine: RoomEngine,
        memberships: Memberships,
        receiver: Receiver,
        inbox: Inbox,
        participants: RoomParticipants,
        edus: EduReceivers,
        outside: OutOfRoomUpdates,
        policy: FederationPolicy,
        observer: PduObserver,
        clock: IReactorTime,
    ) -> None:
        self._clock = clock
        self._engine = engine
        self._memberships = memberships
        self._receiver = receiver
        self._inbox = inbox
        self._participants = participants
        self._edus = edus
        self._outside = outside
        self._policy = policy
        self._observer = observer
        self._queue: FairSemaphore[ServerName] = FairSemaphore(
            permits=sys.maxsize,
            permits_per_key=1,
            max_waiting_per_key=MAX_WAITING - 1,
            refusal=lambda _server: LimitExceeded(
                "Wait for the response to a transaction before you send the next",
                retry_after_ms=1000,
            ),
        )
        """Admits one transaction of each server at a time."""
        self._answers = TransactionResponseCache()

    async def receive_body(self, origin: ServerName, txn_id: str, body: bytes) -> msgspec.Raw:
        """Process a transaction in JSON, as `receive`. Raises BadJson too."""
        try:
            form = await self._read_body(body)
        except TooManyEvents as error:
            raise TooLarge(
                f"A transaction has at most {MAX_PDUS} PDUs and {MAX_EDUS} EDUs"
            ) from error
        except (ValueError, RecursionError) as error:
            raise BadJson(f"The body is no transaction: {error}") from error
        return await self.receive(origin, txn_id, form.pdus, form.edus)

    async def _read_body(self, body: bytes) -> _Form:
        """Parse a body. Raises ValueError, RecursionError."""
        if body.count(b",") <= MAX_COMMAS_AT_ONCE:
            try:
                return _read_form(body)
            except RecursionError:
                # some value nests too deeply: splitting skips it and keeps the others
                pass
        return await self._split_body(body)

    async def _split_body(self, body: bytes) -> _Form:
        """Split a body that has very many values or nests deeply.

        Raises ValueError, RecursionError.
        """
        limit = MAX_PDUS + MAX_EDUS
        lists = await split_lists(
            body, ("pdus", "edus"), limit, self._clock, max_object_bytes=len(body)
        )
        rest = _read_form(lists.rest)
        if rest.pdus or rest.edus:  # otherwise they would be acknowledged and lost
            raise ValueError("a list has a name with escaped characters")
        return _Form(lists.lists["pdus"], lists.lists["edus"])

    async def receive(
        self, origin: ServerName, txn_id: str, pdus: Sequence[Piece], edus: Sequence[Piece]
    ) -> msgspec.Raw:
        """Process a transaction. Return the response in JSON, with the result of each PDU.

        Raises TooLarge, LimitExceeded, InvalidParam, DatabaseUnavailable.
        """
        if len(pdus) > MAX_PDUS or len(edus) > MAX_EDUS:
            raise TooLarge(f"A transaction has at most {MAX_PDUS} PDUs and {MAX_EDUS} EDUs")
        async with self._queue.hold(origin):
            answer = self._answers.find(origin, txn_id)
            if answer is None:
                answer = msgspec.json.encode({"pdus": await self._process(origin, pdus, edus)})
                self._answers.add(origin, txn_id, answer)
            return msgspec.Raw(answer)

    async def _process(
        self, origin: ServerName, pdus: Sequence[Piece], edus: Sequence[Piece]
    ) -> Results:
        by_room: dict[RoomID, list[tuple[Mapping[str, Any], int]]] = {}
        yielder = Yielder(clock=self._clock)
        for piece in pdus:
            pdu, size = _read_event(piece), _size(piece)
            await yielder.after(size)
            if isinstance(pdu.get("room_id"), str):
                by_room.setdefault(RoomID(pdu["room_id"]), []).append((pdu, size))

        async def process_room(room_id: RoomID) -> Results:
            return await self._process_room(origin, room_id, by_room[room_id], yielder)

        # room keys come before the events that they decrypt: otherwise a client would briefly show
        # a decryption error
        to_device = [_is_to_device(edu) for edu in edus]
        await self._edus.receive(origin, self._read_edus(compress(edus, to_device)))
        results: Results = {}
        if by_room:
            for part in await map_concurrently(process_room, by_room, MAX_CONCURRENT_ROOMS):
                results.update(part)
        await self._edus.receive(origin, self._read_edus(compress(edus, map(not_, to_device))))
        return results

    async def _read_edus(self, edus: Iterable[Piece]) -> AsyncIterator[Mapping[str, Any]]:
        yielder = Yielder(clock=self._clock)
        for edu in edus:
            yield _read_edu(edu)
            await yielder.after(_size(edu))

    async def _process_room(
        self,
        origin: ServerName,
        room_id: RoomID,
        pdus: Sequence[tuple[Mapping[str, Any], int]],
        yielder: Yielder,
    ) -> Results:
        """Process the events of one room, given with their sizes. Return the results.

        A malformed event is left out, as it has no event ID.
        """
        snapshot = await self._engine.find_snapshot(room_id)
        if snapshot is None:
            return {}  # the event IDs depend on the unknown room version
        results: Results = {}
        events: list[Event] = []
        is_here = bool(await self._memberships.local_members(snapshot.room.room_nid))
        for pdu, size in pdus:
            await yielder.after(size)
            version = (
                snapshot.version if is_here else await self._outside.find_version(snapshot, pdu)
            )
            try:
                event = parse_event(version, pdu)
            except MatrixError:
                self._observer.pdu_received(Verdict.DROP.value)
                continue
            if not self._policy.allows_event(event):
                self._observer.pdu_received(Verdict.DROP.value)
                results[event.event_id] = {
                    "error": f"The policy of this server refuses events of {event.sender}"
                }
                continue
            results[event.event_id] = {}
            events.append(event)
        if not events:
            return results
        if not is_here:
            for event in events:
                refusal = await self._outside.receive_or_explain(snapshot, origin, event)
                results[event.event_id] = {} if refusal is None else {"error": refusal}
            return results
        inside = await self._participants.find_relevant(snapshot, origin, events)
        unknown = [
            event
            for event in events
            if event.event_id not in inside and not can_be_verified_by(event, origin)
        ]
        for event in unknown:  # refused without fetching a key
            results[event.event_id] = {
                "error": "Neither you nor the server of its sender is in the room"
            }
            events.remove(event)
        outcomes = await self._receiver.receive(room_id, events, origin=origin, may_wait=True)
        for event, outcome in zip(events, outcomes, strict=True):
            self._observer.pdu_received(outcome_label(outcome))
            if must_wait(outcome):
                continue
            if outcome.verdict in (Verdict.DROP, Verdict.REJECT) and outcome.error is not None:
                results[event.event_id] = {"error": outcome.error.text}
        pending = [
            (event, outcome.awaits_policy_server)
            for event, outcome in zip(events, outcomes, strict=True)
            if must_wait(outcome) and not outcome.is_backfilled
        ]
        awaiting_policy = [event for event, awaits_policy in pending if awaits_policy]
        naming = [
            event for event, awaits_policy in pending if not awaits_policy and is_naming(event)
        ]
        remaining = [
            event for event, awaits_policy in pending if not awaits_policy and not is_naming(event)
        ]
        policy_server = await self._find_policy_server(room_id) if awaiting_policy else None
        is_out_of_room = origin not in await self._participants.in_room(snapshot)
        for group in (awaiting_policy, naming, remaining):  # most of the last follow the first
            if not group:
                continue
            try:
                await self._inbox.add(
                    snapshot.room,
                    origin,
                    group,
                    policy_server=policy_server if group is awaiting_policy else None,
                    is_out_of_room=is_out_of_room,
                    ends_pause=any(event.event_id in inside for event in group),
                )
            except InboxFull:
                # the events are refused, but not the rest of the transaction
                results.update(
                    (event.event_id, {"error": "Too many events wait already"}) for event in group
                )
        if any(event.membership == "join" and results[event.event_id] == {} for event in events):
            self._inbox.on_join(snapshot.room.room_nid)
        return results

    async def _find_policy_server(self, room_id: RoomID) -> ServerName:
        """Return the policy server of the room, or "" if it was changed meanwhile."""
        snapshot = await self._engine.get_snapshot(room_id)
        named = find_naming(await snapshot.state.load(NAMING))
        server = None if named is None else read_policy_server(named.event)
        return ServerName("") if server is None else server.server_name


def _size(piece: Piece) -> int:
    return len(memoryview(piece)) if isinstance(piece, msgspec.Raw) else 0


def _is_to_device(edu: Piece) -> bool:
    if not isinstance(edu, msgspec.Raw):
        return edu.get("edu_type") == TO_DEVICE
    try:
        return msgspec.json.decode(edu, type=_Kind).edu_type == TO_DEVICE
    except (ValueError, RecursionError):
        return False  # no handler will accept it


def _read_event(pdu: Piece) -> Mapping[str, Any]:
    return parse_event_piece(pdu) if isinstance(pdu, msgspec.Raw) else pdu


def _read_edu(edu: Piece) -> Mapping[str, Any]:
    if not isinstance(edu, msgspec.Raw):
        return edu
    is_too_dense = len(memoryview(edu)) > MAX_EVENT_BYTES and has_too_many_values(bytes(edu))
    return {} if is_too_dense else parse_piece(edu)
