"""Chooses the servers to fetch the rest of a room's state from, and decides when to stop waiting.

If our users were removed from a room, or the room's ACL denies this server, all servers in the room
refuse to send this server the state. This server may never learn the reason, because no server
sends it events any more. So requests stop waiting for the rest of the state if each server in the
room has refused to send it (403). They also stop two days after the join, whatever the reason. Both
happen only after three failed attempts. From then on, the partial state is used as if it were
complete.

The refusal need not be final. The ACL may change, or a local user may be invited again. So the
servers are still asked from time to time. A server that responds 429 is not asked before the time
that it names.

spec: server-server-api#get_matrixfederationv1stateroomid; MSC3902 does not say when to stop waiting
"""

from collections.abc import Callable, Sequence
from typing import Final

from federation.peers.client import RefusedByRemote
from federation.peers.federation_policy import FederationPolicy
from federation.peers.peer_backoff import PeerBackoff
from federation.protocol.ids import ServerName
from federation.rooms.room_servers import RoomServers
from storage.rooms.partial_rooms import PartialRoom

MAX_SERVERS_PER_ATTEMPT: Final = 4
MIN_ATTEMPTS: Final = 3
"""A server may refuse temporarily, by mistake."""
MAX_WAIT_MS: Final = 2 * 24 * 3600 * 1000
"""After this time no request waits any longer, whatever the reason."""


class StateSources:
    """The servers of rooms with partial state, and which of them refuse or have to be paused."""

    def __init__(
        self, *, servers: RoomServers, policy: FederationPolicy, now_ms: Callable[[], int]
    ) -> None:
        self._servers = servers
        self._policy = policy
        self._backoff: PeerBackoff[ServerName] = PeerBackoff(now_ms=now_ms)
        self._refusing: dict[int, set[ServerName]] = {}

    async def find(self, partial: PartialRoom) -> list[ServerName]:
        """Return the servers of the room to ask, the one that we joined through first."""
        resident = ServerName(partial.resident_server)
        others = sorted(set(await self._servers.in_room(partial.room_nid)) - {resident})
        return [server for server in (resident, *others) if self._policy.allows(server)]

    def choose(
        self, partial: PartialRoom, known: Sequence[ServerName], attempts: int
    ) -> list[ServerName]:
        """Choose servers for the next attempt: the one that we joined through, and others in turn.

        Servers that asked for a pause are left out.
        """
        others = [server for server in known if server != partial.resident_server]
        at = attempts * (MAX_SERVERS_PER_ATTEMPT - 1) % max(len(others), 1)
        chosen = [*known[: len(known) - len(others)], *others[at:], *others[:at]][
            :MAX_SERVERS_PER_ATTEMPT
        ]
        return [server for server in chosen if not self._backoff.left_ms(server)]

    def record_failure(self, room_nid: int, server: ServerName, error: Exception) -> None:
        """Record that the server did not send the state."""
        self._backoff.record_failure(server, error)
        if isinstance(error, RefusedByRemote) and error.status == 403:
            self._refusing.setdefault(room_nid, set()).add(server)
        else:
            self._refusing.get(room_nid, set()).discard(server)

    def delete(self, room_nid: int) -> None:
        """Delete what is recorded of a room whose state is complete or not needed any more."""
        self._refusing.pop(room_nid, None)

    def should_stop_waiting(
        self, room_nid: int, known: Sequence[ServerName], attempts: int, age_ms: int
    ) -> bool:
        """Return whether to stop waiting, after these attempts and this time since we joined."""
        if attempts < MIN_ATTEMPTS:
            return False
        return age_ms > MAX_WAIT_MS or self._refusing.get(room_nid, set()).issuperset(known)
