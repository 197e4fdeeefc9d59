"""Fetches the unaltered copy of an event whose content does not match its content hash.

Any server that has an event can send it with another content. The signatures stay valid, because
they cover only the fields that a redaction keeps. By the specification, the receiver redacts such
an event. It then lacks its content until an unaltered copy happens to arrive
(`content_restore.py`). So before we redact it, we ask the sender's server for the event, and then a
few other servers in the room.

Laws:
- We ask only for events with all required signatures. Otherwise anybody could make us send requests
  to any server.
- For each event, a few servers get one request each, with a time limit. The events of a batch have
  a common time limit, and at most `AT_ONCE` of them are requested at the same time. So a server
  that alters many events causes a limited number of requests and a limited delay.
- Events that no server had are not requested again for a while, and servers that did not respond
  are not asked again for a while. After a 429 a server is not asked before the time it names.
- The sender's own server is trusted: if it sends the event altered, we redact the event and ask no
  other server.
- If no server has the original, an altered event in a transaction is refused, because a stored one
  would make the original a duplicate. An altered event that we fetched is stored in redacted form.
- Most events without content were redacted. So if an event looks redacted, a copy is requested in
  two cases only: the event is new (neither backfilled nor an outlier), or it is a state event other
  than a membership (`needs_unaltered_copy`).

spec: server-server-api#checks-performed-on-receipt-of-a-pdu,
server-server-api#get_matrixfederationv1eventeventid
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hmac import compare_digest
from typing import Final

import msgspec

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.client import RefusedByRemote, get_retry_after_ms
from federation.peers.federation_policy import FederationPolicy
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.shared_work import SharedWork
from federation.protocol.errors import BadEvent, MatrixError, RemoteError
from federation.protocol.event_signing import is_content_hash_valid
from federation.protocol.events import Event, compute_reference_hash, parse_event
from federation.protocol.ids import EventID, ServerName, domain_of
from federation.protocol.redaction import redact
from federation.remote.events import EventClient
from federation.rooms.concurrency import map_concurrently
from federation.rooms.membership_templates import MEMBER
from federation.rooms.receipt_checks import ReceivedPdu, Verdict, check_signed
from federation.rooms.receive.batch import Outcome
from federation.rooms.receive.check_sources import CheckServices
from federation.rooms.room_servers import RoomServers, sort_by_join

AT_ONCE: Final = 20
"""Events of one batch that are requested at the same time."""
BATCH_SECONDS: Final = 30.0
"""After this time no more events of a batch are requested."""
MAX_OTHER_SERVERS: Final = 2
"""Servers in the room to ask when the sender's does not have the event."""
REQUEST_SECONDS: Final = 8.0
"""Time limit of one request."""
BACKOFF_MS: Final = 60_000
"""Pause in milliseconds before we ask again for an event, or ask a server, without success."""
MAX_BACKOFFS: Final = 2_000
ALTERED: Final = BadEvent(
    "The content of the event does not match its hash, and no server has the original"
)


class UnalteredCopies:
    """Fetches unaltered copies of events. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        remote: EventClient,
        servers: RoomServers,
        policy: FederationPolicy,
        own_name: ServerName,
        seconds: Callable[[], float],
    ) -> None:
        """`own_name`: this server; `seconds`: returns the time."""
        self._remote = remote
        self._servers = servers
        self._policy = policy
        self._own = own_name
        self._seconds = seconds
        self._backoff: PeerBackoff[str] = PeerBackoff(
            now_ms=lambda: int(seconds() * 1000),
            schedule=BackoffSchedule(BACKOFF_MS, BACKOFF_MS),
            max_records=MAX_BACKOFFS,
        )
        """Keyed by event ID and by server name."""
        self._lookups: SharedWork[str, Event | None] = SharedWork()

    async def find_all(
        self, room_nid: int, events: Sequence[Event], origin: ServerName | None
    ) -> list[Event]:
        """Call `find` for events of a room, until the time is over."""
        until = self._seconds() + BATCH_SECONDS

        async def find(event: Event) -> Event | None:
            return None if self._seconds() > until else await self.find(room_nid, event, origin)

        return [
            event for event in await map_concurrently(find, events, AT_ONCE) if event is not None
        ]

    async def find(self, room_nid: int, event: Event, origin: ServerName | None) -> Event | None:
        """Return the event to use for an altered copy from `origin`, or None if no server has it.

        This is the unaltered copy, or the altered one if the sender's server has no other.
        """
        if self._backoff.left_ms(event.event_id):
            return None

        async def ask() -> Event | None:
            return await self._find(room_nid, event, origin)

        found = await self._lookups.run(event.event_id, ask)
        if found is None:
            self._backoff.pause(event.event_id, BACKOFF_MS)
            return None
        return found if is_content_hash_valid(found) else event

    async def _find(self, room_nid: int, event: Event, origin: ServerName | None) -> Event | None:
        sender_server = domain_of(event.sender)
        others = [
            server
            for server in sort_by_join(await self._servers.in_room(room_nid))
            if server not in (sender_server, origin)
        ]
        for server in [sender_server, *others[:MAX_OTHER_SERVERS]]:
            if (
                server == self._own
                or self._backoff.left_ms(server)
                or not self._policy.allows(server)
            ):
                continue
            try:
                pdu = await self._remote.get_event(server, event.event_id, seconds=REQUEST_SECONDS)
                # the verified signatures are those of the altered copy; they cover the same fields
                copy = parse_event(event.version, {**pdu, "signatures": event.pdu["signatures"]})
            except RefusedByRemote as error:
                if get_retry_after_ms(error):
                    self._backoff.record_failure(server, error)
                continue
            except RemoteError:
                self._backoff.record_failure(server)
                continue
            except MatrixError:
                continue
            if not is_same(copy, event):
                continue
            if server == sender_server or is_content_hash_valid(copy):
                return copy
        return None


class UnalteredBatch(msgspec.Struct, frozen=True):
    """The events of a batch to receive, after altered copies were replaced."""

    received: Sequence[ReceivedPdu]
    unaltered: Mapping[EventID, ReceivedPdu]
    """Unaltered copies by event ID, or altered ones that are received as they are."""
    refused: Collection[EventID]
    """Altered copies that did not come from the sender's server, and whose original no server has.
    Storing them would make the original a duplicate."""

    @property
    def candidates(self) -> list[ReceivedPdu]:
        """The given events with replacements, without the refused ones."""
        named = [(_id_of(each), each) for each in self.received]
        return [
            each if name is None else self.unaltered.get(name, each)
            for name, each in named
            if name not in self.refused
        ]

    def get_outcomes(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Return an outcome for each given event, from the outcomes of `candidates`."""
        found = iter(outcomes)
        return [
            Outcome(name, Verdict.DROP, ALTERED) if name in self.refused else next(found)
            for name in map(_id_of, self.received)
        ]


async def replace_altered(
    services: CheckServices,
    room_nid: int,
    candidates: Sequence[ReceivedPdu],
    signers: Mapping[EventID, Collection[ServerName]],
    *,
    origin: ServerName | None = None,
    is_new: bool = False,
) -> UnalteredBatch:
    """Fetch unaltered copies of altered events.

    Only events in `signers` are checked. `origin`: the server whose transaction brought them.
    """
    altered: dict[EventID, Event] = {}
    for candidate in candidates:
        name = _id_of(candidate)
        if (
            name is not None
            and name in signers
            and needs_unaltered_copy(candidate, signers[name], origin, is_new=is_new)
        ):
            altered.setdefault(name, candidate.read())
    if not altered:
        return UnalteredBatch(candidates, {}, ())
    known = await services.events.get_in_any_room(altered)  # stored events stay unchanged
    lookups = [event for name, event in altered.items() if name not in known]
    found = await services.find_unaltered(room_nid, lookups, origin) if lookups else []
    true = {
        event.event_id: ReceivedPdu(version=event.version, pdu=event.pdu, event=event)
        for event in found
    }
    return UnalteredBatch(
        candidates, true, () if origin is None else altered.keys() - true.keys() - known.keys()
    )


def needs_unaltered_copy(
    candidate: ReceivedPdu,
    signers: Collection[ServerName],
    origin: ServerName | None,
    *,
    is_new: bool,
) -> bool:
    """Return whether an event was altered and its unaltered copy is worth a request.

    An event that looks redacted mostly was redacted. We still ask for it if it is new, since a
    redaction comes after its target; and if it is a state event other than a membership, because
    nothing that matters is left of that.
    """
    event = candidate.read()
    if candidate.hashed() is event or domain_of(event.sender) == origin:
        return False
    try:
        check_signed(event, signers)
    except MatrixError:
        return False
    if is_new or (event.state_key is not None and event.type != MEMBER):
        return True
    return redact(event.version, event.pdu).get("content") != event.content


def is_same(one: Event, other: Event) -> bool:
    """Return whether two copies are of one event: an ID proves that only if it is a hash."""
    hashes: list[bytes] = [
        compute_reference_hash(event.version, event.pdu) for event in (one, other)
    ]
    return (
        one.event_id == other.event_id and one.room_id == other.room_id and compare_digest(*hashes)
    )


def _id_of(candidate: ReceivedPdu) -> EventID | None:
    try:
        return candidate.read().event_id
    except MatrixError:
        return None  # the batch gives it its outcome
