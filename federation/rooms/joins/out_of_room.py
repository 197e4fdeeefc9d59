"""Stores invites to our users, and knocks by our users, for rooms that this server is not in.

Each invite or knock is stored with the stripped state that came with it. This server cannot verify
memberships in such a room. So the first invite or knock stays in force until one of these laws lets
an event end or replace it:

- An invite or knock is ended by the user, or by an event that has it in its `auth_events`. Only
  servers in the room know the ID of the invite or knock, so only they can make such an event.
- The server that sent an invite may replace it by another invite. Invites from other servers are
  queued. If the first invite is retracted, the next one is shown. When the user accepts, the join
  is tried through the servers of all these invites.
- An invite from any server replaces a knock. If the invite does not have the knock in its
  `auth_events`, it may be forged. So the server that received the knock may still replace it by an
  invite of its own.
- Each invite or knock is stored with the room version named by the server that sent the invite or
  received the knock. An event that ends the invite or knock is parsed in this version.

spec: server-server-api#inviting-to-a-room
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import BadState, Forbidden
from federation.protocol.events import Event, encode_pdu, load_event
from federation.protocol.ids import EventID, RoomID, ServerName, UserID, domain_of
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from federation.protocol.stripped_state import StrippedEvent
from federation.rooms.events import StoredEvent
from federation.rooms.state_effects import state_effect
from storage.events.events import EventFlag, EventRow
from storage.rooms.memberships import MembershipRow
from storage.rooms.out_of_room_memberships import (
    OUT_OF_ROOM,
    MayNotReplace,
    OutOfRoomMembershipStore,
    OutOfRoomRow,
)
from storage.rooms.rooms import RoomRow

PENDING_MEMBERSHIPS: Final = frozenset({"invite", "knock"})
"""Memberships that another event is expected to end."""
MAX_STATE_BYTES: Final = 1 << 18
"""The limit of the stripped state that we store."""


class OutOfRoomInfo(msgspec.Struct, frozen=True):
    """The stripped state of a room that came with an invite or a knock, and the server that sent
    it."""

    server: ServerName
    state: tuple[StrippedEvent, ...]


class OutOfRoomMemberships:
    """Stores memberships in rooms that this server is not in. Use this class only on the reactor
    thread."""

    def __init__(
        self,
        *,
        store: OutOfRoomMembershipStore,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._identity = identity
        self._now_ms = now_ms

    async def store(
        self,
        event: Event,
        server: ServerName,
        state: Iterable[Mapping[str, Any]],
        pending_servers: Mapping[str, str] | None = None,
    ) -> bool:
        """Store a user's new membership and the stripped state; return False if they are joined.

        `pending_servers`: servers that still need the event, each with the ID of the event that it
        sent us and that this one ends (empty: unknown). Raises BadState when the room has another
        version; Forbidden when the user has an invite or a knock that the event may not end.
        """
        member = state_effect(event, self._identity).membership
        assert member is not None, "the event has one of the five memberships"
        room = await self._store.get_room(event.room_id, event.version.identifier, self._now_ms())
        if room.version != event.version.identifier:
            raise BadState(f"The room is known to have version {room.version}")
        row = OutOfRoomRow(
            room.room_nid,
            member.user_id,
            event.event_id,
            await self._find_trusted_server(room, event, server),
            event.version.identifier,
            encode_pdu(event),
            _encode_bounded(state),
        )

        def may_end(stored: OutOfRoomRow, present: MembershipRow) -> bool:
            return _may_end(event, stored, present)

        try:
            return await self._store.set_out_of_room(
                row, member, may_end, pending_servers, self._now_ms()
            )
        except MayNotReplace as error:
            raise Forbidden(
                f"{member.user_id} has other invites to this room already, or has knocked"
            ) from error

    async def _find_trusted_server(
        self, room: RoomRow, event: Event, server: ServerName
    ) -> ServerName:
        """Return the server that may replace the membership.

        If an invite may be the answer to a knock, it is the server that received the knock.
        """
        stored = None
        if event.membership == "invite" and event.state_key is not None:
            stored = (await self._store.get_out_of_room(room.room_nid, [event.state_key])).get(
                event.state_key
            )
        if stored is None or stored.event_id in event.auth_events:
            return server
        known = load_event(
            ROOM_VERSIONS[stored.version], EventID(stored.event_id), event.room_id, stored.pdu
        )
        return ServerName(stored.server) if known.membership == "knock" else server

    async def find(self, room_nid: int, user_id: UserID) -> OutOfRoomInfo | None:
        """Return the stripped state of the room that this user last got."""
        row = (await self._store.get_out_of_room(room_nid, [user_id])).get(user_id)
        if row is None:
            return None
        state = msgspec.json.decode(row.stripped_state, type=tuple[StrippedEvent, ...])
        return OutOfRoomInfo(ServerName(row.server), state)

    async def find_last(self, room: RoomRow, user_id: UserID, event_id: EventID) -> Event | None:
        """Return the user's membership event with that ID if it is the latest; else None."""
        row = (await self._store.get_out_of_room(room.room_nid, [user_id])).get(user_id)
        if row is None or row.event_id != event_id:
            return None
        return load_event(ROOM_VERSIONS[row.version], event_id, RoomID(room.room_id), row.pdu)

    async def find_version(
        self, room: RoomRow, user_id: UserID, cited: Collection[str] = ()
    ) -> RoomVersion:
        """Return the room version according to the first server that named it to this user.

        If `cited`, the `auth_events` of an event, contains a queued invite, return the version that
        the server of this invite named.
        """
        row = (await self._store.get_out_of_room(room.room_nid, [user_id])).get(user_id)
        if row is None:
            return ROOM_VERSIONS[room.version]
        if cited and row.event_id not in cited:
            queued = await self._store.get_queued_invites(room.room_nid, user_id)
            row = next((each for each in queued if each.event_id in cited), row)
        return ROOM_VERSIONS[row.version]

    async def find_servers(self, room_nid: int, user_id: UserID) -> Mapping[ServerName, EventID]:
        """Return the servers that sent this user an event of the room, with the event's ID."""
        first = (await self._store.get_out_of_room(room_nid, [user_id])).values()
        rows = (*first, *await self._store.get_queued_invites(room_nid, user_id))
        return {ServerName(row.server): EventID(row.event_id) for row in rows}

    async def cites_queued_invite(self, room: RoomRow, user_id: UserID, event: Event) -> bool:
        """Return whether an event has a queued invite in its `auth_events`."""
        return any(
            row.event_id in event.auth_events
            for row in await self._store.get_queued_invites(room.room_nid, user_id)
        )

    async def remove_queued_invite(self, room: RoomRow, user_id: UserID, event: Event) -> bool:
        """Remove the queued invite in the event's `auth_events`. Return False if there is none."""
        return await self._store.remove_queued_invites(room.room_nid, user_id, event.auth_events)

    async def find_event(self, room: RoomRow, row: MembershipRow) -> StoredEvent | None:
        """Return the event of a stored membership, as clients get it."""
        stored_row = (await self._store.get_out_of_room(row.room_nid, [row.user_id])).get(
            row.user_id
        )
        return None if stored_row is None else _to_event(room, row, stored_row)

    async def find_events(
        self, user_id: UserID, rooms: Mapping[int, RoomRow], rows: Iterable[MembershipRow]
    ) -> Mapping[int, StoredEvent]:
        """Return the same for memberships of one user, by room, in one query."""
        stored_rows = await self._store.get_out_of_room_of_user(user_id, rooms)
        return {
            row.room_nid: _to_event(rooms[row.room_nid], row, stored_rows[row.room_nid])
            for row in rows
            if row.room_nid in stored_rows
        }


def _to_event(room: RoomRow, row: MembershipRow, stored_row: OutOfRoomRow) -> StoredEvent:
    event = load_event(
        ROOM_VERSIONS[stored_row.version],
        EventID(stored_row.event_id),
        RoomID(room.room_id),
        stored_row.pdu,
    )
    return StoredEvent(
        event=event,
        row=EventRow(
            OUT_OF_ROOM,
            stored_row.event_id,
            row.room_nid,
            row.position,
            event.depth,
            event.type,
            event.state_key,
            event.sender,
            event.origin_server_ts,
            int(EventFlag.TIMELINE),
            None,
            None,
            None,
            stored_row.pdu,
            None,
        ),
    )


def _may_end(event: Event, stored: OutOfRoomRow, present: MembershipRow) -> bool:
    """Return whether an event may replace a stored membership."""
    if (
        present.membership not in PENDING_MEMBERSHIPS
        or event.sender == present.user_id
        or stored.event_id in event.auth_events
    ):
        return True
    if present.membership == "knock" and event.membership == "invite":
        return True
    return domain_of(event.sender) in (stored.server, domain_of(UserID(present.sender)))


def is_out_of_room(row: MembershipRow) -> bool:
    """Return whether a membership is of a room that this server is not in."""
    return row.event_nid == OUT_OF_ROOM


def _encode_bounded(state: Iterable[Mapping[str, Any]]) -> bytes:
    """Encode as much of the state as fits."""
    stored: list[bytes] = []
    left = MAX_STATE_BYTES
    for event in state:
        encoded = msgspec.json.encode(event)
        if len(encoded) <= left:
            stored.append(encoded)
            left -= len(encoded) + 1
    return b"[" + b",".join(stored) + b"]"
