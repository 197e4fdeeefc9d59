"""Transactions: what other servers send us unasked. Everything in one is durable before it is
acknowledged.

- An event whose predecessors are known is taken in within the request, by one write. An event that
  waits for something goes into the inbox, which is part of the request too; what it waits for is
  fetched afterwards.
- A transaction that is repeated is answered as before, from memory. After a restart, or when much
  else came, it is taken in again, which changes nothing: events are known by their ids, and who
  takes in EDUs knows that they may come twice.
- What a transaction has is read when its turn comes, event by event: read at once, a body of
  nothing but empty objects would take twenty times its size, and others would wait for it.
- Each server has a queue of its own, in which one transaction is worked on at a time; a server that
  sends more at once than it may is told to wait. So none keeps the others waiting, whatever it
  sends.

spec: server-server-api#transactions
"""

import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import compress
from operator import not_
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.peers.event_lists import (
    MAX_EVENT,
    TooMany,
    Turns,
    read_event,
    read_piece,
    split_lists,
)
from federation.peers.fair_semaphore import FairSemaphore
from federation.peers.policy import Policy
from federation.protocol.dense_json import has_too_many_values
from federation.protocol.errors import BadJson, LimitExceeded, MatrixError, TooLarge
from federation.protocol.events import Event, parse_event
from federation.protocol.ids import RoomID, ServerName
from federation.protocol.policy_server import NAMING, find_naming, is_naming, read_policy_server
from federation.receiver.edus import EduReceivers
from federation.receiver.response_cache import RememberedAnswers
from federation.rooms.check import Verdict
from federation.rooms.concurrent import map_at_once
from federation.rooms.engine import RoomEngine
from federation.rooms.joins.out_of_room_updates import OutsideNews
from federation.rooms.memberships import Memberships
from federation.rooms.receive.inbox import Inbox, ReceiptObserver, must_wait, verdict_of
from federation.rooms.receive.participants import Insiders, can_be_proved_by
from federation.rooms.receive.receiver import Receiver
from storage.federation.inbox import InboxFull

MAX_PDUS: Final = 50
MAX_EDUS: Final = 100
ROOMS_AT_ONCE: Final = 10
"""Of one transaction."""
MAX_WAITING: Final = 10
"""Transactions of one server that may wait; an honest one sends the next when it has the answer to
the last."""

FEW_VALUES: Final = 100_000
"""Commas of a body that is looked through at once, which takes a tenth of the time that it takes in
pieces: no list in it has more parts. Others are taken apart."""

TO_DEVICE: Final = "m.direct_to_device"

Results = dict[str, dict[str, str]]
"""By the id of the event: nothing, or `error` with a text."""


Piece = Mapping[str, Any] | msgspec.Raw
"""An event or an EDU, read or not."""


class _Form(msgspec.Struct):
    """What has to be in a transaction; who it is from is told by its signature."""

    pdus: Sequence[msgspec.Raw]
    edus: Sequence[msgspec.Raw] = ()


_read_form: Final = msgspec.json.Decoder(_Form).decode


class _Kind(msgspec.Struct):
    edu_type: str = ""


class Transactions:
    """Takes in transactions. For the reactor thread."""

    def __init__(
        self,
        engine: RoomEngine,
        memberships: Memberships,
        receiver: Receiver,
        inbox: Inbox,
        insiders: Insiders,
        edus: EduReceivers,
        outside: OutsideNews,
        policy: Policy,
        observer: ReceiptObserver,
        clock: IReactorTime,
    ) -> None:
        self._clock = clock
        self._engine = engine
        self._memberships = memberships
        self._receiver = receiver
        self._inbox = inbox
        self._insiders = insiders
        self._edus = edus
        self._outside = outside
        self._policy = policy
        self._observer = observer
        self._queue: FairSemaphore[ServerName] = FairSemaphore(
            sys.maxsize,
            1,
            max_waiting_per_key=MAX_WAITING - 1,
            refusal=lambda _server: LimitExceeded(
                "Wait for the answer to a transaction before you send the next", retry_after_ms=1000
            ),
        )
        """One transaction of a server at a time."""
        self._answers = RememberedAnswers()

    async def receive_body(self, origin: ServerName, txn_id: str, body: bytes) -> msgspec.Raw:
        """As `receive`, of a JSON text. Raises BadJson too."""
        try:
            form = await self._read_body(body)
        except TooMany as error:
            raise TooLarge(
                f"A transaction has at most {MAX_PDUS} PDUs and {MAX_EDUS} EDUs"
            ) from error
        except (ValueError, RecursionError) as error:
            raise BadJson(f"The body is no transaction: {error}") from error
        return await self.receive(origin, txn_id, form.pdus, form.edus)

    async def _read_body(self, body: bytes) -> _Form:
        """Raises ValueError, RecursionError."""
        if body.count(b",") <= FEW_VALUES:
            try:
                return _read_form(body)
            except RecursionError:
                # something in it nests too deeply for us: it is passed over, and takes nothing
                # along
                pass
        return await self._take_apart(body)

    async def _take_apart(self, body: bytes) -> _Form:
        """The parts of a body that may have very many, or nest as deep as they like. Raises
        ValueError, RecursionError."""
        most = MAX_PDUS + MAX_EDUS
        lists = await split_lists(body, ("pdus", "edus"), most, self._clock, longest=len(body))
        rest = _read_form(lists.rest)
        if rest.pdus or rest.edus:  # else they would be acknowledged, and lost
            raise ValueError("a list has a name that is not written as it is")
        return _Form(lists.found["pdus"], lists.found["edus"])

    async def receive(
        self, origin: ServerName, txn_id: str, pdus: Sequence[Piece], edus: Sequence[Piece]
    ) -> msgspec.Raw:
        """Take in a transaction; the answer, as JSON: what became of each PDU.

        Raises TooLarge, LimitExceeded, InvalidParam; DatabaseUnavailable.
        """
        if len(pdus) > MAX_PDUS or len(edus) > MAX_EDUS:
            raise TooLarge(f"A transaction has at most {MAX_PDUS} PDUs and {MAX_EDUS} EDUs")
        async with self._queue.hold(origin):
            answer = self._answers.find(origin, txn_id)
            if answer is None:
                answer = msgspec.json.encode({"pdus": await self._take_in(origin, pdus, edus)})
                self._answers.add(origin, txn_id, answer)
            return msgspec.Raw(answer)

    async def _take_in(
        self, origin: ServerName, pdus: Sequence[Piece], edus: Sequence[Piece]
    ) -> Results:
        by_room: dict[RoomID, list[tuple[Mapping[str, Any], int]]] = {}
        turns = Turns(self._clock)
        for piece in pdus:
            pdu, size = _read_event(piece), _size(piece)
            await turns.after(size)
            if isinstance(pdu.get("room_id"), str):
                by_room.setdefault(RoomID(pdu["room_id"]), []).append((pdu, size))

        async def take_in(room_id: RoomID) -> Results:
            return await self._take_in_room(origin, room_id, by_room[room_id], turns)

        # keys come before what they open: else a client would show for a moment that it cannot read
        # that
        to_device = [_is_to_device(edu) for edu in edus]
        await self._edus.receive(origin, self._read_edus(compress(edus, to_device)))
        results: Results = {}
        if by_room:
            for part in await map_at_once(take_in, by_room, ROOMS_AT_ONCE):
                results.update(part)
        await self._edus.receive(origin, self._read_edus(compress(edus, map(not_, to_device))))
        return results

    async def _read_edus(self, edus: Iterable[Piece]) -> AsyncIterator[Mapping[str, Any]]:
        turns = Turns(self._clock)
        for edu in edus:
            yield _read_edu(edu)
            await turns.after(_size(edu))

    async def _take_in_room(
        self,
        origin: ServerName,
        room_id: RoomID,
        pdus: Sequence[tuple[Mapping[str, Any], int]],
        turns: Turns,
    ) -> Results:
        """What became of the events of one room, which were so long. What is not of the form of an
        event has no id to answer under."""
        snapshot = await self._engine.find_snapshot(room_id)
        if snapshot is None:
            return {}  # without its version nobody can say what the ids of its events are
        results: Results = {}
        events: list[Event] = []
        is_here = bool(await self._memberships.local_members(snapshot.room.room_nid))
        for pdu, size in pdus:
            await turns.after(size)
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
                refusal = await self._outside.refusal(snapshot, origin, event)
                results[event.event_id] = {} if refusal is None else {"error": refusal}
            return results
        inside = await self._insiders.find(snapshot, origin, events)
        unknown = [
            event
            for event in events
            if event.event_id not in inside and not can_be_proved_by(event, origin)
        ]
        for event in unknown:  # not even a key is asked for
            results[event.event_id] = {
                "error": "Neither you nor the server of its sender is in the room"
            }
            events.remove(event)
        outcomes = await self._receiver.receive(room_id, events, origin=origin, may_wait=True)
        for event, outcome in zip(events, outcomes, strict=True):
            self._observer.pdu_received(verdict_of(outcome))
            if must_wait(outcome):
                continue
            if outcome.verdict in (Verdict.DROP, Verdict.REJECT) and outcome.error is not None:
                results[event.event_id] = {"error": outcome.error.text}
        waiting = [
            (event, outcome.is_unjudged)
            for event, outcome in zip(events, outcomes, strict=True)
            if must_wait(outcome) and not outcome.is_of_the_past
        ]
        unjudged = [event for event, is_unjudged in waiting if is_unjudged]
        naming = [event for event, is_unjudged in waiting if not is_unjudged and is_naming(event)]
        others = [
            event for event, is_unjudged in waiting if not is_unjudged and not is_naming(event)
        ]
        judge = await self._find_judge(room_id) if unjudged else None
        is_outside = origin not in await self._insiders.in_room(snapshot)
        for those in (unjudged, naming, others):  # most of the others follow the unjudged
            if not those:
                continue
            try:
                await self._inbox.add(
                    snapshot.room,
                    origin,
                    those,
                    judge=judge if those is unjudged else None,
                    is_outside=is_outside,
                    is_news=any(event.event_id in inside for event in those),
                )
            except (
                InboxFull
            ):  # not acknowledged; and no reason to refuse the rest of what the server sends
                results.update(
                    (event.event_id, {"error": "Too many events wait already"}) for event in those
                )
        if any(event.membership == "join" and results[event.event_id] == {} for event in events):
            self._inbox.newcomer(snapshot.room.room_nid)
        return results

    async def _find_judge(self, room_id: RoomID) -> ServerName:
        """The policy server for whose word events of the room wait; no name where it has been
        changed meanwhile."""
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
        return False  # nobody takes it in


def _read_event(pdu: Piece) -> Mapping[str, Any]:
    return read_event(pdu) if isinstance(pdu, msgspec.Raw) else pdu


def _read_edu(edu: Piece) -> Mapping[str, Any]:
    if not isinstance(edu, msgspec.Raw):
        return edu
    is_too_dense = len(memoryview(edu)) > MAX_EVENT and has_too_many_values(bytes(edu))
    return {} if is_too_dense else read_piece(edu)
