"""Rooms with a policy server: it is asked about every event of ours before it is sent, and about events of others that lack
its signature.

Laws:
- A room has one as long as its state names one and somebody of that server is in the room. The event that names it is
  nobody's business but the room's.
- What it has not signed is not sent, and soft-failed where others sent it. Its own words reach who wanted to send.
- One that does not answer is not asked again for half a minute, so that a room waits little for it; meanwhile its word is
  missing, and that counts as no. The past waits for it instead, since nobody is in a hurry to see that.
- About events of others it is asked before they get their turn in the room, about some of them at once, so that a slow one keeps
  nobody waiting. What it has said is remembered until they have their place, and longer.

spec: server-server-api#policy-servers
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from federation.identity import ServerIdentity
from federation.policy import Policy
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
from federation.requests import RefusedByRemote
from federation.rooms.concurrent import map_at_once
from federation.rooms.servers import RoomServers
from storage.policy_judgements import PolicyJudgementStore

PAUSE_MS: Final = 30_000
MAX_PAUSES: Final = 1_000
AT_ONCE: Final = 5
"""Events about which one is asked."""


class RefusedByPolicyServer(MatrixError):
    """What the policy server said, passed on as it is."""

    status = 403

    def __init__(self, errcode: str, text: str) -> None:
        super().__init__(text)
        self._errcode = errcode

    def body(self) -> Mapping[str, object]:
        return {**super().body(), "errcode": self._errcode}


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
        self._pauses: dict[ServerName, int] = {}

    async def is_approved(self, room_nid: int, event: Event, named: Event | None) -> bool:
        """Whether an event of another server may be shown. `named`: the room's `m.room.policy`, as it is now.

        Nothing is that the policy of this server does not take in.
        """
        if not self._policy.allows_event(event):
            return False
        server = await self._find(room_nid, named)
        if server is None or not needs_signature(event):
            return True
        said, _ = await self._hear(room_nid, server, [event])
        return said.get(event.event_id, False)

    async def judge(self, room_nid: int, events: Collection[Event], named: Event | None) -> Mapping[EventID, bool]:
        """`is_approved` for some of these events, as far as that can be said without their place in the room.

        Of servers that are not in the room, nothing but joins is asked about so: they could make us ask about anything.
        """
        server = await self._find(room_nid, named)
        if server is None:
            return {}
        there = {self._identity.server_name, *await self._servers.in_room(room_nid)}
        asked = [
            event
            for event in events
            if self._policy.allows_event(event)
            and (domain_of(event.sender) in there or event.membership == "join")
            and needs_signature(event)
        ]
        said, _ = await self._hear(room_nid, server, asked)
        return {event.event_id: said.get(event.event_id, False) for event in asked}

    async def find_refused(self, room_nid: int, events: Iterable[Event], named: Event | None) -> set[EventID]:
        """Those of the events, which others tell of the past, that may not be shown. Raises RemoteError while it cannot be asked."""
        server = await self._find(room_nid, named)
        if server is None:
            return set()
        asked = [event for event in events if needs_signature(event)]
        said, silence = await self._hear(room_nid, server, asked, all_or_none=True)
        if silence is not None:
            raise silence
        return {event_id for event_id, allowed in said.items() if not allowed}

    async def vouch(self, room_nid: int, event: Event, named: Event | None) -> Event:
        """An event of ours with the signature that it needs. Raises MatrixError (its refusal), RemoteError."""
        server = await self._find(room_nid, named)
        if server is None or not needs_signature(event):
            return event
        return with_policy_signature(event, server, await self._ask(server, event))

    async def _find(self, room_nid: int, named: Event | None) -> PolicyServer | None:
        """The room's, as the event says that names it."""
        server = read_policy_server(named)
        if server is None or server.server_name == self._identity.server_name:
            return server
        return server if server.server_name in await self._servers.in_room(room_nid) else None

    async def _hear(
        self, room_nid: int, server: PolicyServer, events: Collection[Event], *, all_or_none: bool = False
    ) -> tuple[Mapping[EventID, bool], RemoteError | None]:
        """(whether it lets events of others pass, why it says nothing of those that are left out). `all_or_none`: once it says
        nothing of one, no more is asked."""
        said = {event.event_id: True for event in events if is_signed_by_policy_server(event, server)}
        unsigned = [event for event in events if event.event_id not in said]
        if not unsigned:
            return said, None
        names = [event.event_id for event in unsigned]
        known = await self._judgements.get_judgements(room_nid, server.public_key, names)
        new: dict[str, bool] = {}
        silence: RemoteError | None = None

        async def ask(event: Event) -> None:
            nonlocal silence
            if silence is not None and all_or_none:
                return
            try:
                await self._ask(server, event)
                new[event.event_id] = True
            except RefusedByPolicyServer:
                new[event.event_id] = False
            except RemoteError as error:
                silence = error
            except MatrixError as error:  # not so fast; or this server does not talk with it
                silence = RemoteError(server.server_name, error.text, retryable=True)

        await map_at_once(ask, [event for event in unsigned if event.event_id not in known], AT_ONCE)
        if new:
            await self._judgements.add_judgements(room_nid, server.public_key, new, self._now_ms())
        return said | {EventID(name): allowed for name, allowed in (*known.items(), *new.items())}, silence

    async def _ask(self, server: PolicyServer, event: Event) -> str:
        """Its signature, checked."""
        name = server.server_name
        if name == self._identity.server_name:
            raise RefusedByPolicyServer("M_FORBIDDEN", "This room names a policy server that is none")
        if self._pauses.get(name, 0) > self._now_ms():
            raise RemoteError(name, "the policy server did not answer a moment ago", retryable=True)
        try:
            signature = await self._remote.sign(name, event)
        except RefusedByRemote as error:
            if error.status == 429:
                raise LimitExceeded(retry_after_ms=error.retry_after_ms) from error
            if error.status >= 500:
                self._pause(name)
                raise
            raise RefusedByPolicyServer(error.errcode, error.text) from error
        except RemoteError:
            self._pause(name)
            raise
        if signature is None or not is_signed_by_policy_server(event, server, signature):
            raise RefusedByPolicyServer(
                "M_FORBIDDEN", f"The policy server {name} signs with another key than the room's"
            )
        return signature

    def _pause(self, name: ServerName) -> None:
        self._pauses.pop(name, None)
        self._pauses[name] = self._now_ms() + PAUSE_MS
        if len(self._pauses) > MAX_PAUSES:
            del self._pauses[next(iter(self._pauses))]
