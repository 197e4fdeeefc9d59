"""Asks a room's policy server about our events before they are sent, and about remote events
that it has not signed.

Laws:
- A room has a policy server if its state names one and a user of that server is in the room. The
  state event that names it needs no approval.
- If the policy server refuses an event of our user, the event is not sent, and the user gets the
  policy server's own error text. If it refuses an event of another server, the event is
  soft-failed.
- A policy server that does not respond, or responds with a server error (5xx), is not asked again
  for half a minute, so that the room is delayed little. During this pause, new events count as
  refused. Older events that we fetch to fill a gap are not urgent, so they wait until the policy
  server responds.
- A policy server that responds 429 is not asked before the time that it names. Events from other
  servers wait in the inbox until then, and events of our users are refused with 429.
- The policy server is asked about remote events before their turn in the room's queue, and about
  several events concurrently. So a slow policy server does not delay the room. After a time limit,
  the remaining events wait in the inbox, so that the server that sent them is not delayed. The
  answers are stored for a week (`storage/federation/policy_server_verdicts.py`).

spec: server-server-api#policy-servers
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import msgspec

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.client import RefusedByRemote, get_retry_after_ms
from federation.peers.federation_policy import FederationPolicy
from federation.peers.identity import ServerIdentity
from federation.peers.peer_backoff import PeerBackoff
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
from federation.remote.policy_servers import PolicyServerClient
from federation.rooms.concurrency import map_concurrently
from federation.rooms.room_servers import RoomServers
from storage.federation.policy_server_verdicts import PolicyVerdictStore

PAUSE_MS: Final = 30_000
CONCURRENT_EVENTS: Final = 5
"""Events that one policy server is asked about at a time."""
START_WITHIN_MS: Final = 2_500
"""After this time no further request about new events is started. The last answers may take five
seconds more."""


class RefusedByPolicyServer(MatrixError):
    """The policy server refused the event. Its error is passed on unchanged."""

    status = 403

    def __init__(self, errcode: str, text: str) -> None:
        super().__init__(text)
        self._errcode = errcode

    def body(self) -> Mapping[str, object]:
        return {**super().body(), "errcode": self._errcode}


class _Answers(msgspec.Struct, frozen=True):
    """The answers of a policy server about remote events."""

    approved: Mapping[EventID, bool]
    """Whether it allows each event; events that it has not checked are missing."""
    failure: RemoteError | None = None
    """Why it did not answer about the missing ones."""
    may_retry: bool = False
    """The missing ones can be asked about later: the rate or time limit was reached."""


class PolicyServers:
    """Asks policy servers. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        remote: PolicyServerClient,
        servers: RoomServers,
        policy: FederationPolicy,
        identity: ServerIdentity,
        verdicts: PolicyVerdictStore,
        now_ms: Callable[[], int],
    ) -> None:
        """`policy`: the servers that this server talks to."""
        self._remote = remote
        self._servers = servers
        self._policy = policy
        self._identity = identity
        self._verdicts = verdicts
        self._now_ms = now_ms
        self._busy: PeerBackoff[ServerName] = PeerBackoff(now_ms=now_ms)
        """Policy servers that asked us to wait."""
        self._unreachable: PeerBackoff[ServerName] = PeerBackoff(
            now_ms=now_ms, schedule=BackoffSchedule(PAUSE_MS, PAUSE_MS)
        )

    async def is_approved(self, room_nid: int, event: Event, named: Event | None) -> bool:
        """Return whether a remote event may be shown.

        `named`: the state event that names the room's policy server now. Events that this server's
        own policy refuses are never shown.
        """
        if not self._policy.allows_event(event):
            return False
        server = await self._find(room_nid, named)
        if server is None or not needs_signature(event, server):
            return True
        found = await self._get_answers(room_nid, server, [event])
        return found.approved.get(event.event_id, False)

    async def approve_many(
        self,
        room_nid: int,
        events: Collection[Event],
        named: Event | None,
        let_in: Collection[EventID],
    ) -> Mapping[EventID, bool | None]:
        """Return `is_approved` for events, as far as it is known before their turn in the room.

        None: the answer may come later. For servers outside the room, only joins, knocks and leaves
        that the current state allows (`let_in`) are asked about. Else such servers could make us
        ask about anything.
        """
        server = await self._find(room_nid, named)
        if server is None:
            return {}
        present = {self._identity.server_name, *await self._servers.in_room(room_nid)}
        to_check = [
            event
            for event in events
            if self._policy.allows_event(event)
            and (domain_of(event.sender) in present or event.event_id in let_in)
            and needs_signature(event, server)
        ]
        found = await self._get_answers(
            room_nid, server, to_check, until=self._now_ms() + START_WITHIN_MS
        )
        default = None if found.may_retry else False
        return {event.event_id: found.approved.get(event.event_id, default) for event in to_check}

    async def find_refused(
        self, room_nid: int, events: Iterable[Event], named: Event | None
    ) -> set[EventID]:
        """Return which of the events that fill a gap may not be shown. Raises RemoteError while the
        policy server is unavailable."""
        server = await self._find(room_nid, named)
        if server is None:
            return set()
        to_check = [event for event in events if needs_signature(event, server)]
        found = await self._get_answers(room_nid, server, to_check)
        if found.failure is not None:
            raise found.failure
        return {event_id for event_id, allowed in found.approved.items() if not allowed}

    async def add_signature(self, room_nid: int, event: Event, named: Event | None) -> Event:
        """Return our event with the signature that it needs. Raises MatrixError (a refusal),
        RemoteError."""
        server = await self._find(room_nid, named)
        if server is None or not needs_signature(event, server):
            return event
        return with_policy_signature(event, server, await self._request_signature(server, event))

    async def _find(self, room_nid: int, named: Event | None) -> PolicyServer | None:
        """Return the room's policy server, given the event that names it."""
        server = read_policy_server(named)
        if server is None or server.server_name == self._identity.server_name:
            return server
        return server if server.server_name in await self._servers.in_room(room_nid) else None

    async def _get_answers(
        self,
        room_nid: int,
        server: PolicyServer,
        events: Collection[Event],
        *,
        until: int | None = None,
    ) -> _Answers:
        """Get the answers about events; stop after the first failure, and at `until`, in
        milliseconds since 1970."""
        approved = {
            event.event_id: True for event in events if is_signed_by_policy_server(event, server)
        }
        unsigned = [event for event in events if event.event_id not in approved]
        if not unsigned:
            return _Answers(approved)
        names = [event.event_id for event in unsigned]
        known = await self._verdicts.get_verdicts(room_nid, server.public_key, names)
        new: dict[str, bool] = {}
        failure: RemoteError | None = None
        may_retry = False

        async def ask(event: Event) -> None:
            nonlocal failure, may_retry
            if failure is not None:
                return
            if until is not None and self._now_ms() > until:
                may_retry = True
                return
            try:
                await self._request_signature(server, event)
                new[event.event_id] = True
            except RefusedByPolicyServer:
                new[event.event_id] = False
            except RemoteError as error:
                failure = error
            except LimitExceeded as error:
                may_retry = True
                failure = RemoteError(server.server_name, error.text, retryable=True)
            except MatrixError as error:  # our policy forbids requests to this server
                failure = RemoteError(server.server_name, error.text, retryable=True)

        await map_concurrently(
            ask, [event for event in unsigned if event.event_id not in known], CONCURRENT_EVENTS
        )
        if new:
            await self._verdicts.add_verdicts(room_nid, server.public_key, new, self._now_ms())
        approved |= {EventID(name): allowed for name, allowed in (*known.items(), *new.items())}
        return _Answers(approved, failure, may_retry)

    async def _request_signature(self, server: PolicyServer, event: Event) -> str:
        """Get and verify its signature. Raises RefusedByPolicyServer, LimitExceeded,
        RemoteError."""
        name = server.server_name
        if name == self._identity.server_name:
            raise RefusedByPolicyServer(
                "M_FORBIDDEN", "This room names our server as policy server, which it is not"
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
            wait_ms = get_retry_after_ms(error)
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
