"""Rooms with a policy server: it is asked about every event of ours before it is sent, and about
events of others that lack its signature.

Laws:
- A room has one as long as its state names one and somebody of that server is in the room. The
  event that names it is nobody's business but the room's.
- What it has not signed is not sent, and soft-failed where others sent it. Its own words reach who
  wanted to send.
- One that does not answer is not asked again for half a minute, so that a room waits little for it;
  meanwhile its word is missing, and that counts as no. The past waits for it instead, since nobody
  is in a hurry to see that.
- One that says that it is asked too much is left alone for as long as it says. What others sent
  waits for it.
- About events of others it is asked before they get their turn in the room, about some of them at
  once, so that a slow one keeps nobody in the room waiting; and not for long, so that it does not
  keep the server that sent them waiting either. What it has said is remembered until they have
  their place, and longer.

spec: server-server-api#policy-servers
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import msgspec

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.identity import ServerIdentity
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.policy import Policy
from federation.peers.requests import RefusedByRemote, asked_wait_ms
from federation.protocol.errors import LimitExceeded, MatrixError, RemoteError
from federation.protocol.events import Event
from federation.protocol.ids import EventID, ServerName, domain_of
from federation.protocol.policy_server import (
    PolicyServer,
    is_signed_by_policy_server,
    needs_signature,
    read_policy_server,
    with_policy_signature,
)
from federation.remote.policy_servers import RemotePolicyServers
from federation.rooms.concurrent import map_at_once
from federation.rooms.room_servers import RoomServers
from storage.federation.policy_server_verdicts import PolicyJudgementStore

PAUSE_MS: Final = 30_000
AT_ONCE: Final = 5
"""Events about which one is asked."""
BEGUN_WITHIN_MS: Final = 2_500
"""After so long nothing more is asked about news that came together. The last answers may take five
seconds more."""


class RefusedByPolicyServer(MatrixError):
    """What the policy server said, passed on as it is."""

    status = 403

    def __init__(self, errcode: str, text: str) -> None:
        super().__init__(text)
        self._errcode = errcode

    def body(self) -> Mapping[str, object]:
        return {**super().body(), "errcode": self._errcode}


class _Heard(msgspec.Struct, frozen=True):
    """What one says of events of others."""

    said: Mapping[EventID, bool]
    """Whether it lets them pass; nothing about those that it has not looked at."""
    silence: RemoteError | None = None
    """Why it says nothing of these."""
    comes_later: bool = False
    """They may just be asked about later: it was asked too much, or for too long already."""


class PolicyServers:
    """Asks them. For the reactor thread."""

    def __init__(
        self,
        remote: RemotePolicyServers,
        servers: RoomServers,
        policy: Policy,
        identity: ServerIdentity,
        judgements: PolicyJudgementStore,
        now_ms: Callable[[], int],
    ) -> None:
        """`policy`: with whom this server talks at all."""
        self._remote = remote
        self._servers = servers
        self._policy = policy
        self._identity = identity
        self._judgements = judgements
        self._now_ms = now_ms
        self._busy: PeerBackoff[ServerName] = PeerBackoff(now_ms)
        """Servers that asked us to wait."""
        self._unreachable: PeerBackoff[ServerName] = PeerBackoff(
            now_ms, BackoffSchedule(PAUSE_MS, PAUSE_MS)
        )

    async def is_approved(self, room_nid: int, event: Event, named: Event | None) -> bool:
        """Whether an event of another server may be shown. `named`: what names the room's policy
        server now.

        Nothing is that the policy of this server does not take in.
        """
        if not self._policy.allows_event(event):
            return False
        server = await self._find(room_nid, named)
        if server is None or not needs_signature(event, server):
            return True
        heard = await self._hear(room_nid, server, [event])
        return heard.said.get(event.event_id, False)

    async def judge(
        self,
        room_nid: int,
        events: Collection[Event],
        named: Event | None,
        let_in: Collection[EventID],
    ) -> Mapping[EventID, bool | None]:
        """`is_approved` for some of these events, as far as that can be said without their place in
        the room; None: it can be said later.

        Of servers that are not in the room, nothing is asked about so but joins, knocks and
        departures that the room as it is now lets them have (`let_in`): they could make us ask
        about anything.
        """
        server = await self._find(room_nid, named)
        if server is None:
            return {}
        there = {self._identity.server_name, *await self._servers.in_room(room_nid)}
        asked = [
            event
            for event in events
            if self._policy.allows_event(event)
            and (domain_of(event.sender) in there or event.event_id in let_in)
            and needs_signature(event, server)
        ]
        heard = await self._hear(room_nid, server, asked, until=self._now_ms() + BEGUN_WITHIN_MS)
        unsaid = None if heard.comes_later else False
        return {event.event_id: heard.said.get(event.event_id, unsaid) for event in asked}

    async def find_refused(
        self, room_nid: int, events: Iterable[Event], named: Event | None
    ) -> set[EventID]:
        """Those of the events, which others tell of the past, that may not be shown. Raises
        RemoteError while it cannot be asked."""
        server = await self._find(room_nid, named)
        if server is None:
            return set()
        asked = [event for event in events if needs_signature(event, server)]
        heard = await self._hear(room_nid, server, asked)
        if heard.silence is not None:
            raise heard.silence
        return {event_id for event_id, allowed in heard.said.items() if not allowed}

    async def vouch(self, room_nid: int, event: Event, named: Event | None) -> Event:
        """An event of ours with the signature that it needs. Raises MatrixError (its refusal),
        RemoteError."""
        server = await self._find(room_nid, named)
        if server is None or not needs_signature(event, server):
            return event
        return with_policy_signature(event, server, await self._ask(server, event))

    async def _find(self, room_nid: int, named: Event | None) -> PolicyServer | None:
        """The room's, as the event says that names it."""
        server = read_policy_server(named)
        if server is None or server.server_name == self._identity.server_name:
            return server
        return server if server.server_name in await self._servers.in_room(room_nid) else None

    async def _hear(
        self,
        room_nid: int,
        server: PolicyServer,
        events: Collection[Event],
        *,
        until: int | None = None,
    ) -> _Heard:
        """Once it says nothing of one event, no more is asked; nor after `until`, in milliseconds
        since 1970."""
        said = {
            event.event_id: True for event in events if is_signed_by_policy_server(event, server)
        }
        unsigned = [event for event in events if event.event_id not in said]
        if not unsigned:
            return _Heard(said)
        names = [event.event_id for event in unsigned]
        known = await self._judgements.get_judgements(room_nid, server.public_key, names)
        new: dict[str, bool] = {}
        silence: RemoteError | None = None
        comes_later = False

        async def ask(event: Event) -> None:
            nonlocal silence, comes_later
            if silence is not None:
                return
            if until is not None and self._now_ms() > until:
                comes_later = True
                return
            try:
                await self._ask(server, event)
                new[event.event_id] = True
            except RefusedByPolicyServer:
                new[event.event_id] = False
            except RemoteError as error:
                silence = error
            except LimitExceeded as error:
                comes_later = True
                silence = RemoteError(server.server_name, error.text, retryable=True)
            except MatrixError as error:  # this server does not talk with it
                silence = RemoteError(server.server_name, error.text, retryable=True)

        await map_at_once(
            ask, [event for event in unsigned if event.event_id not in known], AT_ONCE
        )
        if new:
            await self._judgements.add_judgements(room_nid, server.public_key, new, self._now_ms())
        said |= {EventID(name): allowed for name, allowed in (*known.items(), *new.items())}
        return _Heard(said, silence, comes_later)

    async def _ask(self, server: PolicyServer, event: Event) -> str:
        """Its signature, checked. Raises RefusedByPolicyServer, LimitExceeded, RemoteError."""
        name = server.server_name
        if name == self._identity.server_name:
            raise RefusedByPolicyServer(
                "M_FORBIDDEN", "This room names a policy server that is none"
            )
        left = self._busy.left_ms(name)
        if left:
            raise LimitExceeded(retry_after_ms=left)
        if self._unreachable.left_ms(name):
            raise RemoteError(name, "the policy server did not answer a moment ago", retryable=True)
        try:
            signature = await self._remote.sign(server, event)
        except RefusedByRemote as error:
            self._busy.record_failure(name, error)
            wait_ms = asked_wait_ms(error)
            if wait_ms:
                raise LimitExceeded(retry_after_ms=wait_ms) from error
            if error.status >= 500:
                self._unreachable.record_failure(name)
                raise
            raise RefusedByPolicyServer(error.errcode, error.text) from error
        except RemoteError:
            self._unreachable.record_failure(name)
            raise
        if signature is None:
            raise RefusedByPolicyServer(
                "M_FORBIDDEN", f"The policy server {name} did not sign the event"
            )
        if not is_signed_by_policy_server(event, server, signature):
            raise RefusedByPolicyServer(
                "M_FORBIDDEN", f"The policy server {name} signs with another key than the room's"
            )
        return signature
