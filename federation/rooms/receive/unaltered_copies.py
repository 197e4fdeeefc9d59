"""The true copy of an event that came with another content than its sender hashed.

Whoever has an event can send it on with another content: its signatures hold all the same, since
they cover what a redaction leaves. The specification has such an event redacted, and if that copy
came first the sender's own would be known already. So its sender's server is asked before the
content is given up, and then a few others in the room.

Laws:
- Only for an event that is signed by whom it must be: else anybody could make us ask anybody.
- A request each to few servers, of a bounded time, and of all events of a batch, some at a time:
  else the copies of many events would be altered so that nobody asks for the rest. What was asked
  in vain, and who did not answer, is not asked again for a while; who says when to come again
  (429), not before that.
- The sender's own server is believed: what it sends, or answers, without the content has none. Most
  such copies are of redacted events, so those of the past, and in states, are looked at only where
  the room may depend on the content (`is_to_ask`).

spec: server-server-api#checks-performed-on-receipt-of-a-pdu,
server-server-api#get_matrixfederationv1eventeventid
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hmac import compare_digest
from typing import Final

import msgspec

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.policy import Policy
from federation.peers.requests import RefusedByRemote, asked_wait_ms
from federation.peers.shared_work import SharedWork
from federation.protocol.errors import BadEvent, MatrixError, RemoteError
from federation.protocol.event_signing import is_content_hash_valid
from federation.protocol.events import Event, compute_reference_hash, parse_event
from federation.protocol.ids import EventID, ServerName, domain_of
from federation.protocol.redaction import redact
from federation.remote.events import RemoteEvents
from federation.rooms.check import Candidate, Verdict, check_signed
from federation.rooms.concurrent import map_at_once
from federation.rooms.membership_templates import MEMBER
from federation.rooms.receive.batch import Outcome
from federation.rooms.receive.check_sources import Questions
from federation.rooms.room_servers import RoomServers, longest_in

AT_ONCE: Final = 20
"""Events of one batch that are asked for at the same time."""
LONGEST: Final = 30.0
"""Seconds after which no more of a batch are asked for."""
OTHERS: Final = 2
"""Servers in the room that are asked when the sender's does not know."""
SECONDS: Final = 8.0
"""That one server has to answer."""
REST_MS: Final = 60_000
"""Seconds for which nothing is asked again that was asked in vain."""
MOST_REMEMBERED: Final = 2_000
ALTERED: Final = BadEvent(
    "The content of the event is not what its hash says, and nobody tells what it was"
)


class TrueCopies:
    """Asks for them. For the reactor thread."""

    def __init__(
        self,
        remote: RemoteEvents,
        servers: RoomServers,
        policy: Policy,
        own: ServerName,
        seconds: Callable[[], float],
    ) -> None:
        """`own`: this server; `seconds`: a clock."""
        self._remote = remote
        self._servers = servers
        self._policy = policy
        self._own = own
        self._seconds = seconds
        self._backoff: PeerBackoff[str] = PeerBackoff(
            lambda: int(seconds() * 1000),
            BackoffSchedule(REST_MS, REST_MS),
            max_remembered=MOST_REMEMBERED,
        )
        """Of events, by id, and servers, by name."""
        self._asking: SharedWork[str, Event | None] = SharedWork()

    async def find_all(
        self, room_nid: int, events: Sequence[Event], origin: ServerName | None
    ) -> list[Event]:
        """`find` for events of a room, as far as there is time."""
        until = self._seconds() + LONGEST

        async def find(event: Event) -> Event | None:
            return None if self._seconds() > until else await self.find(room_nid, event, origin)

        return [event for event in await map_at_once(find, events, AT_ONCE) if event is not None]

    async def find(self, room_nid: int, event: Event, origin: ServerName | None) -> Event | None:
        """What stands in the place of an altered copy that came from `origin`: the true one; the
        copy itself, where the sender's server has no other; None where nobody tells."""
        if self._backoff.left_ms(event.event_id):
            return None

        async def ask() -> Event | None:
            return await self._find(room_nid, event, origin)

        found = await self._asking.run(event.event_id, ask)
        if found is None:
            self._backoff.pause(event.event_id, REST_MS)
            return None
        return found if is_content_hash_valid(found) else event

    async def _find(self, room_nid: int, event: Event, origin: ServerName | None) -> Event | None:
        home = domain_of(event.sender)
        others = [
            server
            for server in longest_in(await self._servers.in_room(room_nid))
            if server not in (home, origin)
        ]
        for server in [home, *others[:OTHERS]]:
            if (
                server == self._own
                or self._backoff.left_ms(server)
                or not self._policy.allows(server)
            ):
                continue
            try:
                pdu = await self._remote.get_event(server, event.event_id, seconds=SECONDS)
                # whose signatures were looked at are those of the copy: they cover the same
                told = parse_event(event.version, {**pdu, "signatures": event.pdu["signatures"]})
            except RefusedByRemote as error:
                if asked_wait_ms(error):
                    self._backoff.record_failure(server, error)
                continue
            except RemoteError:
                self._backoff.record_failure(server)
                continue
            except MatrixError:
                continue
            if not is_same(told, event):
                continue
            if server == home or is_content_hash_valid(told):
                return told
        return None


class Taken(msgspec.Struct, frozen=True):
    """What is taken in of what came."""

    given: Sequence[Candidate]
    true: Mapping[EventID, Candidate]
    """By their ids: the true copies, or what is taken as it came although it is not what its hash
    says."""
    refused: Collection[EventID]
    """They would stand in the way of the true ones: others than their senders' servers sent them,
    and nobody tells what they said."""

    @property
    def candidates(self) -> list[Candidate]:
        """What takes the place of those given, without the refused."""
        named = [(_id_of(each), each) for each in self.given]
        return [
            each if name is None else self.true.get(name, each)
            for name, each in named
            if name not in self.refused
        ]

    def answer(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """An outcome for each of those given, by those of `candidates`."""
        found = iter(outcomes)
        return [
            Outcome(name, Verdict.DROP, ALTERED) if name in self.refused else next(found)
            for name in map(_id_of, self.given)
        ]


async def take_true(
    questions: Questions,
    room_nid: int,
    candidates: Sequence[Candidate],
    signers: Mapping[EventID, Collection[ServerName]],
    *,
    origin: ServerName | None = None,
    is_news: bool = False,
) -> Taken:
    """Ask for the true copies of those that came altered. Looked at are events of whose signers is
    given; `origin`: whose transaction brought them."""
    altered: dict[EventID, Event] = {}
    for candidate in candidates:
        name = _id_of(candidate)
        if (
            name is not None
            and name in signers
            and is_to_ask(candidate, signers[name], origin, is_news=is_news)
        ):
            altered.setdefault(name, candidate.read())
    if not altered:
        return Taken(candidates, {}, ())
    known = await questions.events.get_anywhere(altered)  # they stay as they are
    asked = [event for name, event in altered.items() if name not in known]
    found = await questions.find_true(room_nid, asked, origin) if asked else []
    true = {event.event_id: Candidate(event.version, event.pdu, event) for event in found}
    return Taken(
        candidates, true, () if origin is None else altered.keys() - true.keys() - known.keys()
    )


def is_to_ask(
    candidate: Candidate,
    signers: Collection[ServerName],
    origin: ServerName | None,
    *,
    is_news: bool,
) -> bool:
    """Whether an event came altered, so that its true copy is asked for.

    What looks as after a redaction mostly was redacted. It is asked for as news, since a redaction
    comes after its target; and as state other than a membership, of which nothing that matters is
    left.
    """
    event = candidate.read()
    if candidate.hashed() is event or domain_of(event.sender) == origin:
        return False
    try:
        check_signed(event, signers)
    except MatrixError:
        return False
    if is_news or (event.state_key is not None and event.type != MEMBER):
        return True
    return redact(event.version, event.pdu).get("content") != event.content


def is_same(one: Event, other: Event) -> bool:
    """Whether two copies are of one event: an id proves it only where it is a hash."""
    hashes: list[bytes] = [
        compute_reference_hash(event.version, event.pdu) for event in (one, other)
    ]
    return (
        one.event_id == other.event_id and one.room_id == other.room_id and compare_digest(*hashes)
    )


def _id_of(candidate: Candidate) -> EventID | None:
    try:
        return candidate.read().event_id
    except MatrixError:
        return None  # it gets its outcome later
