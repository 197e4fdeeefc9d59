"""Decides which received events concern the room: mostly those from servers and users in it.

We fetch missing events, and keys of servers other than the sending one, only for events that
concern the room. Otherwise anybody could make us send requests: any server that knows a room's ID
can send events that refer to nonexistent events, and one person can run any number of servers.

An event concerns the room if

- the server that sent it, or the server of its sender, is in the room,
- or its sender has, or once had, a membership in the room,
- or one of its auth events is a stored join of its sender, even if this join is an outlier,
- or one of its auth events is stored as unverified: a server in the room sent it with a state, but
  its signatures could not be verified then (`unverified_events.py`),
- or it is a user's own join, knock or leave that the current state of the room allows.

Any other event is refused if it needs the signature of another server than the one that sent it.
Otherwise, if it refers to missing events, it waits in the inbox until another server sends them
(`inbox.py`). For example, the first events of a new member may arrive before the join, because the
join comes from the server through which the member joined.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from federation.protocol.auth_rules import AuthError
from federation.protocol.errors import BadEvent
from federation.protocol.event_auth import auth_events_needed, check_auth
from federation.protocol.event_signing import required_signers
from federation.protocol.events import Event
from federation.protocol.ids import EventID, ServerName, domain_of
from federation.rooms.events import RoomEvents
from federation.rooms.receive.unverified_events import UnverifiedStateEvents
from federation.rooms.room_servers import RoomServers
from federation.rooms.snapshot import CREATE, RoomSnapshot
from storage.rooms.memberships import MembershipStore

SELF_MEMBERSHIPS: Final = frozenset({"join", "knock", "leave"})
"""Memberships that users set themselves. Their servers need not be in the room."""


class RoomParticipants:
    """Finds the events that concern a room. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        servers: RoomServers,
        memberships: MembershipStore,
        events: RoomEvents,
        unverified: UnverifiedStateEvents,
        own_name: ServerName,
    ) -> None:
        self._servers = servers
        self._memberships = memberships
        self._events = events
        self._unverified = unverified
        self._own_name = own_name

    async def in_room(self, snapshot: RoomSnapshot) -> Mapping[ServerName, int]:
        """Return the known servers in the room with the position of their join; 0 for this one."""
        return {**await self._servers.in_room(snapshot.room.room_nid), self._own_name: 0}

    async def find_relevant(
        self, snapshot: RoomSnapshot, origin: ServerName, events: Sequence[Event]
    ) -> Collection[EventID]:
        """Return the events from a server that justify requests to other servers.

        Makes a few queries, however many events there are.
        """
        present = await self.in_room(snapshot)
        if origin in present:
            return {event.event_id for event in events}
        room_nid = snapshot.room.room_nid
        # the server of the sender need not sign an invite by a third-party identifier
        undecided = [event for event in events if domain_of(event.sender) in _signers(event)]
        found = {event.event_id for event in undecided if domain_of(event.sender) in present}
        undecided = [event for event in undecided if event.event_id not in found]
        if undecided:
            known = await self._memberships.get_memberships(
                room_nid, {event.sender for event in undecided}
            )
            found.update(event.event_id for event in undecided if event.sender in known)
            undecided = [event for event in undecided if event.sender not in known]
        if undecided:
            names = {name for event in undecided for name in event.auth_events}
            cited = await self._events.get_by_id(room_nid, names)
            unverified = await self._unverified.find_stored(room_nid, names)
            by_id = {name: stored.event for name, stored in cited.items() if not stored.rejected}
            for event in undecided:
                own = [by_id[name] for name in event.auth_events if name in by_id]
                if (
                    any(
                        each.membership == "join" and each.state_key == event.sender for each in own
                    )
                    or not unverified.keys().isdisjoint(event.auth_events)
                    or (
                        event.membership in SELF_MEMBERSHIPS
                        and await allows_membership(snapshot, event, _signers(event))
                    )
                ):
                    found.add(event.event_id)
        return found


def can_be_verified_by(event: Event, server: ServerName) -> bool:
    """Return whether the key of that server is enough to verify the event."""
    return _signers(event) == {server}


def _signers(event: Event) -> Collection[ServerName]:
    try:
        return required_signers(event)
    except BadEvent:
        return frozenset()


async def allows_membership(
    snapshot: RoomSnapshot, event: Event, signers: Collection[ServerName]
) -> bool:
    """Return whether the current state of the room allows a user's own join, knock or leave."""
    if event.state_key != event.sender:
        return False
    stored = await snapshot.state.load(auth_events_needed(event.version, event) | {CREATE})
    state = {key: each.event for key, each in stored.items()}
    try:
        check_auth(event, state, create=await snapshot.create_event(), signed_by=signers)
    except AuthError:
        return False
    return True
