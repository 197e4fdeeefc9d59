"""An event as servers exchange it (a PDU): reading, naming, sizing, and the form that clients see.

An `Event` is a value: its bytes never change once it exists. What a reader needs besides (age, relations, membership
at the time) is made by the reader and never stored in it.

spec: server-server-api#pdus, rooms/v12#event-format, client-server-api#room-event-format
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from federation.protocol.ids import EventID, RoomID, UserID
from federation.protocol.room_versions import RoomVersion


class StateKey(NamedTuple):
    """What a state event replaces: the pair that room state is a map of."""

    type: str
    state_key: str


class Event:
    """A well-formed PDU of a known room version, with its id. Made by `parse_event`; never changed.

    `pdu` is the whole PDU as parsed JSON (read-only by convention; with `hashes` and `signatures`, and `unsigned` if it
    had any). All other attributes are views of it.
    """

    __slots__ = ("content", "depth", "event_id", "origin_server_ts", "pdu", "room_id", "sender", "state_key", "type", "version")

    version: RoomVersion
    event_id: EventID
    room_id: RoomID
    type: str
    state_key: str | None
    sender: UserID
    origin_server_ts: int
    depth: int
    content: Mapping[str, Any]
    pdu: Mapping[str, Any]

    @property
    def key(self) -> StateKey:
        """The state entry that this state event sets. Only for state events."""
        raise NotImplementedError

    @property
    def prev_events(self) -> Sequence[EventID]:
        """Ids only, whatever the event format."""
        raise NotImplementedError

    @property
    def auth_events(self) -> Sequence[EventID]:
        """Ids only, whatever the event format. In rooms that are named by their create event, without that event."""
        raise NotImplementedError

    @property
    def redacts(self) -> EventID | None:
        """The target of a redaction, wherever this version keeps it; None for other types and malformed values."""
        raise NotImplementedError

    @property
    def membership(self) -> str | None:
        """`content.membership` of m.room.member when it is a string, else None."""
        raise NotImplementedError


def parse_event(version: RoomVersion, pdu: Mapping[str, Any], *, event_id: EventID | None = None) -> Event:
    """Read a PDU of a room of that version; checks form, types, and sizes, not signatures, hashes or authorization.

    `event_id` is passed for events read from our own storage, so that the hash is not computed again.
    Raises `BadEvent` (a MatrixError, M_BAD_JSON) with what is wrong. spec: client-server-api#size-limits
    """
    raise NotImplementedError


def encode_pdu(event: Event) -> bytes:
    """The PDU as canonical JSON: the bytes that are stored and sent to other servers."""
    raise NotImplementedError


def compute_event_id(version: RoomVersion, pdu: Mapping[str, Any]) -> EventID:
    """spec: server-server-api#calculating-the-reference-hash-for-an-event"""
    raise NotImplementedError


def client_form_prefix(event: Event) -> bytes:
    """The event as clients see it, without `room_id` and `unsigned`, as JSON bytes that lack the closing brace.

    The reader appends `,"room_id":"…"`, `,"unsigned":{…}` and `}`. Computed once an event and cached by its keeper.
    `redacts` is given at the top level and in the content, whichever the version has. spec: client-server-api#room-event-format
    """
    raise NotImplementedError
