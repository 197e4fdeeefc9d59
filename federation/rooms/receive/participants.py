"""Whose events are worth asking other servers about: those of servers that have to do with the
room.

A server that knows no more than a room's id may send events for it that follow what nobody has; and
whoever has one machine may be any number of servers. So nothing is fetched, and no key asked for,
on behalf of an event unless

- the server that brings it is in the room, or its sender's is,
- or its sender has, or ever had, a membership of the room,
- or it cites a membership of its sender that is here, though it may have no place yet, or something
  that servers in the room have told of its state and that could not be checked yet
  (`unverified_events.py`),
- or it is a membership that the room as it is now lets the sender have.

Others wait without that (`inbox.py`), since the join of a newcomer may come after what the newcomer
says: it comes from the server that let them in.
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
from federation.rooms.receive.unverified_events import UnprovedStates
from federation.rooms.room_servers import RoomServers
from federation.rooms.snapshot import CREATE, RoomSnapshot
from storage.rooms.memberships import MembershipStore

OWN_DOING: Final = frozenset({"join", "knock", "leave"})
"""What users do of themselves, whose servers need not be in the room."""


class Insiders:
    """Tells them from others. For the reactor thread."""

    def __init__(
        self,
        servers: RoomServers,
        memberships: MembershipStore,
        events: RoomEvents,
        unproved: UnprovedStates,
        own_name: ServerName,
    ) -> None:
        self._servers = servers
        self._memberships = memberships
        self._events = events
        self._unproved = unproved
        self._own_name = own_name

    async def in_room(self, snapshot: RoomSnapshot) -> Mapping[ServerName, int]:
        """The servers in the room, as far as is known here, and the position since which each is
        there: 0 for this one."""
        return {**await self._servers.in_room(snapshot.room.room_nid), self._own_name: 0}

    async def find(
        self, snapshot: RoomSnapshot, origin: ServerName, events: Sequence[Event]
    ) -> Collection[EventID]:
        """Those of the events of the room, brought by that server, on whose behalf others may be
        asked. A few queries, however many."""
        there = await self.in_room(snapshot)
        if origin in there:
            return {event.event_id for event in events}
        room_nid = snapshot.room.room_nid
        # an invite by a third-party identifier need not be signed by the server of whom it names as
        # its sender
        others = [event for event in events if domain_of(event.sender) in _signers(event)]
        found = {event.event_id for event in others if domain_of(event.sender) in there}
        others = [event for event in others if event.event_id not in found]
        if others:
            known = await self._memberships.get_memberships(
                room_nid, {event.sender for event in others}
            )
            found.update(event.event_id for event in others if event.sender in known)
            others = [event for event in others if event.sender not in known]
        if others:
            names = {name for event in others for name in event.auth_events}
            cited = await self._events.get_by_id(room_nid, names)
            noted = await self._unproved.find_noted(room_nid, names)
            members = {name: stored.event for name, stored in cited.items() if not stored.rejected}
            for event in others:
                own = [members[name] for name in event.auth_events if name in members]
                if (
                    any(
                        each.membership == "join" and each.state_key == event.sender for each in own
                    )
                    or not noted.keys().isdisjoint(event.auth_events)
                    or (
                        event.membership in OWN_DOING
                        and await lets_in(snapshot, event, _signers(event))
                    )
                ):
                    found.add(event.event_id)
        return found


def can_be_proved_by(event: Event, server: ServerName) -> bool:
    """Whether no key but of that server is needed to know whose the event is."""
    return _signers(event) == {server}


def _signers(event: Event) -> Collection[ServerName]:
    try:
        return required_signers(event)
    except BadEvent:
        return frozenset()


async def lets_in(snapshot: RoomSnapshot, event: Event, signers: Collection[ServerName]) -> bool:
    """Whether the room as it is now lets a user of any server join, knock or leave so."""
    if event.state_key != event.sender:
        return False
    stored = await snapshot.state.load(auth_events_needed(event.version, event) | {CREATE})
    state = {key: each.event for key, each in stored.items()}
    try:
        check_auth(event, state, create=await snapshot.create_event(), signed_by=signers)
    except AuthError:
        return False
    return True
