"""Who tells the rest of a room's state: whom to ask for it, and whether anybody does any more.

A server whose users were put out of a room, or that the room's ACL denies, is refused by every
server there, and may never hear why, since nobody tells it anything. What it has of the state is
all that it gets: it is answered with that, as it is by a server that had all of the state when it
was put out. The same where nobody could be had for two days.

That is no end for good: an ACL may be lifted, and somebody of ours may be let in again, so others
go on being asked. One that says when to come again (429) is not asked before that.

spec: server-server-api#get_matrixfederationv1stateroomid; MSC3902 leaves this open
"""

from collections.abc import Callable, Sequence
from typing import Final

from federation.peers.peer_backoff import PeerBackoff
from federation.peers.policy import Policy
from federation.peers.requests import RefusedByRemote
from federation.protocol.ids import ServerName
from federation.rooms.room_servers import RoomServers
from storage.rooms.partial_rooms import PartialRoom

SERVERS_AN_ATTEMPT: Final = 4
FEWEST_ATTEMPTS: Final = 3
"""Whoever refuses may do so by a mistake of the moment."""
LONGEST_MS: Final = 2 * 24 * 3600 * 1000
"""After so long nobody waits, whatever the reason."""


class StateTellers:
    """Knows the servers of rooms that lack a part of their state, and what they answered last."""

    def __init__(self, servers: RoomServers, policy: Policy, now_ms: Callable[[], int]) -> None:
        self._servers = servers
        self._policy = policy
        self._backoff: PeerBackoff[ServerName] = PeerBackoff(now_ms)
        self._refusing: dict[int, set[ServerName]] = {}

    async def find(self, partial: PartialRoom) -> list[ServerName]:
        """The servers of the room that may be asked, first the one that let us in."""
        resident = ServerName(partial.resident)
        others = sorted(set(await self._servers.in_room(partial.room_nid)) - {resident})
        return [server for server in (resident, *others) if self._policy.allows(server)]

    def choose(
        self, partial: PartialRoom, known: Sequence[ServerName], attempts: int
    ) -> list[ServerName]:
        """Whom of them to ask after so many attempts in vain: the server that let us in, then
        others, each time others. Who asks to be left alone now is left out."""
        others = [server for server in known if server != partial.resident]
        at = attempts * (SERVERS_AN_ATTEMPT - 1) % max(len(others), 1)
        chosen = [*known[: len(known) - len(others)], *others[at:], *others[:at]][
            :SERVERS_AN_ATTEMPT
        ]
        return [server for server in chosen if not self._backoff.left_ms(server)]

    def note(self, room_nid: int, server: ServerName, error: Exception) -> None:
        """The server did not tell the state, for this reason."""
        self._backoff.record_failure(server, error)
        if isinstance(error, RefusedByRemote) and error.status == 403:
            self._refusing.setdefault(room_nid, set()).add(server)
        else:
            self._refusing.get(room_nid, set()).discard(server)

    def forget(self, room_nid: int) -> None:
        """The room's state has been told, or is of no use any more."""
        self._refusing.pop(room_nid, None)

    def is_in_vain(
        self, room_nid: int, known: Sequence[ServerName], attempts: int, age_ms: int
    ) -> bool:
        """Whether nobody should wait any longer, after so many attempts and so long since we
        joined."""
        if attempts < FEWEST_ATTEMPTS:
            return False
        return age_ms > LONGEST_MS or self._refusing.get(room_nid, set()).issuperset(known)
