"""Events in the form in which servers exchange them (PDUs): parsing, ids, sizes, and the client
form.

An `Event` is immutable. Data for one client (age, relations, the user's membership) is added to the
client form. In a received PDU, `unsigned` contains data that the sending server added. No hash and
no signature covers `unsigned`. So it is dropped on receipt, and does not count in the size.

Three functions make an `Event`:

- `parse_event`: from a received PDU. It checks form, types and sizes, but not signatures, hashes
  or authorization.
- `load_event`: from our own stored bytes, without any checks. Fields are decoded when they are
  first read.
- `event_signing.build_event`: a new event.

spec: server-server-api#pdus, rooms/v12#event-format, client-server-api#room-event-format
"""

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

from federation.protocol.canonical_json import (
    MAX_SAFE_INTEGER,
    MAX_SENT_DEPTH,
    check_depth,
    check_strict,
    encode_canonical,
    encode_checked,
)
from federation.protocol.errors import BadEvent, BadJson, EventTooLarge
from federation.protocol.ids import (
    MAX_ID_BYTES,
    EventID,
    RoomID,
    UserID,
    is_event_id,
    is_hash_id,
    is_user_id,
)
from federation.protocol.redaction import redact
from federation.protocol.room_versions import EventFormat, RoomVersion

MAX_PDU_BYTES: Final = 65536
"""Of a whole PDU as canonical JSON, signatures included. spec: client-server-api#size-limits"""
STICKY: Final = "msc4354_sticky"
MAX_PREV_EVENTS: Final = 20
MAX_AUTH_EVENTS: Final = 10
_MAX_INT64: Final = 2**63 - 1

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class StateKey(NamedTuple):
    """The type and state key of a state event: the key of the map that room state is."""

    type: str
    state_key: str


class Event:
    """A well-formed PDU of a known room version, with its id. It is never changed.

    `pdu` is the complete PDU as parsed JSON, with `hashes` and `signatures` and without
    `unsigned`. All other attributes are views of it. `pdu` and `content` are read-only by
    convention, and are decoded when they are first read.
    """

    __slots__ = (
        "_content",
        "_content_json",
        "_json",
        "_pdu",
        "depth",
        "event_id",
        "origin_server_ts",
        "room_id",
        "sender",
        "state_key",
        "sticky_ms",
        "type",
        "version",
    )

    version: RoomVersion
    event_id: EventID
    room_id: RoomID
    type: str
    state_key: str | None
    sender: UserID
    origin_server_ts: int
    depth: int
    sticky_ms: int | None
    """The time for which the event is sticky, as its sender asks (MSC4354), in milliseconds."""

    # More than ten: these are the fields of an event.
    def __init__(
        self,
        version: RoomVersion,
        event_id: EventID,
        room_id: RoomID,
        type: str,
        state_key: str | None,
        sender: UserID,
        origin_server_ts: int,
        depth: int,
        json: bytes,
        content_json: msgspec.Raw | None,
        content: Mapping[str, Any] | None,
        pdu: Mapping[str, Any] | None,
        sticky_ms: int | None = None,
    ) -> None:
        """`json` is the PDU as canonical JSON; the last three are parts of it that the maker has at
        hand."""
        self.version = version
        self.event_id = event_id
        self.room_id = room_id
        self.type = type
        self.state_key = state_key
        self.sender = sender
        self.origin_server_ts = origin_server_ts
        self.depth = depth
        self._json = json
        self._content_json = content_json
        self._content = content
        self._pdu = pdu
        self.sticky_ms = sticky_ms

    def __repr__(self) -> str:
        return f"<Event {self.event_id} {self.type!r} in {self.room_id}>"

    @property
    def pdu(self) -> Mapping[str, Any]:
        pdu = self._pdu
        if pdu is None:
            pdu = self._pdu = _decode_object(self._json)
        return pdu

    @property
    def content(self) -> Mapping[str, Any]:
        content = self._content
        if content is None:
            content = self._content = _decode_object(self._content_json or b"{}")
        return content

    @property
    def is_state(self) -> bool:
        """Whether it has a `state_key`, be it empty."""
        return self.state_key is not None

    @property
    def key(self) -> StateKey:
        """The state entry that this state event sets. Only for state events."""
        if self.state_key is None:
            raise ValueError(f"{self.event_id} is no state event")
        return StateKey(self.type, self.state_key)

    @property
    def prev_events(self) -> Sequence[EventID]:
        """Ids only, whatever the event format."""
        return _ids(self.version, self.pdu["prev_events"])

    @property
    def auth_events(self) -> Sequence[EventID]:
        """Ids only, whatever the event format. In rooms that are named by their create event,
        without that event."""
        return _ids(self.version, self.pdu["auth_events"])

    @property
    def redacts(self) -> EventID | None:
        """The target of a redaction, wherever this version keeps it; None for other types and
        malformed values."""
        if self.type != "m.room.redaction":
            return None
        target = (self.content if self.version.redacts_in_content else self.pdu).get("redacts")
        return EventID(target) if isinstance(target, str) and is_event_id(target) else None

    @property
    def membership(self) -> str | None:
        """`content.membership` of m.room.member when it is a string, else None."""
        if self.type != "m.room.member":
            return None
        membership = self.content.get("membership")
        return membership if isinstance(membership, str) else None


# ---- reading


def parse_event(
    version: RoomVersion, pdu: Mapping[str, Any], *, event_id: EventID | None = None
) -> Event:
    """Read a PDU of a room of that version; checks form, types, and sizes, not signatures, hashes
    or authorization.

    `pdu` is JSON as `decode_json` gives it. `event_id` is passed where it is known, so that the
    hash is not computed again. In rooms that are named by their create event, the create event's
    room id follows from its hash; that it has none of its own is for authorization to check. Raises
    `BadEvent` (a MatrixError, M_BAD_JSON) with what is wrong. spec: client-server-api#size-limits
    """
    if "unsigned" in pdu:
        pdu = {key: value for key, value in pdu.items() if key != "unsigned"}
    encoded = encode_event_json(version, pdu)
    event_id = check_fields(version, pdu, event_id)
    return Event(
        version,
        event_id,
        room_id_for(version, pdu, event_id),
        pdu["type"],
        pdu.get("state_key"),
        pdu["sender"],
        pdu["origin_server_ts"],
        pdu["depth"],
        encoded,
        None,
        pdu["content"],
        pdu,
        read_sticky(pdu.get(STICKY)),
    )


class _Stored(msgspec.Struct, gc=False):
    """The fields that `load_event` reads from stored bytes at once."""

    type: str
    sender: UserID
    origin_server_ts: int
    depth: int
    content: msgspec.Raw
    state_key: str | None = None
    sticky: Any = msgspec.field(default=None, name=STICKY)


_decode_stored = msgspec.json.Decoder(_Stored).decode


def load_event(version: RoomVersion, event_id: EventID, room_id: RoomID, json: bytes) -> Event:
    """Read the bytes that `encode_pdu` gave and that we stored. Checks nothing."""
    stored = _decode_stored(json)
    return Event(
        version,
        event_id,
        room_id,
        stored.type,
        stored.state_key,
        stored.sender,
        stored.origin_server_ts,
        stored.depth,
        json,
        stored.content,
        None,
        None,
        None if stored.sticky is None else read_sticky(stored.sticky),
    )


# ---- writing


def encode_pdu(event: Event) -> bytes:
    """The PDU as canonical JSON: the bytes that are stored and sent to other servers."""
    return event._json


class _ClientForm(msgspec.Struct, gc=False):
    type: str
    sender: str
    event_id: str
    origin_server_ts: int
    content: msgspec.Raw | Mapping[str, Any]
    state_key: str | msgspec.UnsetType = msgspec.UNSET
    redacts: str | msgspec.UnsetType = msgspec.UNSET
    sticky: dict[str, int] | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name=STICKY)


_encode_client_form = msgspec.json.Encoder().encode


def client_form_prefix(event: Event) -> bytes:
    """The event as clients see it, without `room_id` and `unsigned`, as JSON bytes that lack the
    closing brace.

    The caller appends `,"room_id":"…"`, `,"unsigned":{…}` and `}`. `StoredEvent` keeps the result.
    `redacts` is given at the top level and in the content, whichever the version has. spec:
    client-server-api#room-event-format
    """
    content: msgspec.Raw | Mapping[str, Any] = (
        event.content if event._content_json is None else event._content_json
    )
    form = _ClientForm(event.type, event.sender, event.event_id, event.origin_server_ts, content)
    if event.state_key is not None:
        form.state_key = event.state_key
    if (target := event.redacts) is not None:
        # spec: client-server-api#mroomredaction asks for both places, for clients older and newer
        # than the room
        form.redacts = target
        form.content = {**event.content, "redacts": target}
    if event.sticky_ms is not None:
        form.sticky = {"duration_ms": event.sticky_ms}
    return _encode_client_form(form)[:-1]


def encode_event_json(version: RoomVersion, pdu: Mapping[str, Any]) -> bytes:
    """A PDU as canonical JSON as strict as its version is, at most `MAX_PDU_BYTES`.

    Raises `BadEvent`, `EventTooLarge`.
    """
    try:
        if version.strict_canonical_json:
            check_strict(pdu)
            encoded = encode_checked(pdu)
        else:
            encoded = encode_canonical(pdu)
    except BadJson as error:
        raise BadEvent(error.text) from error
    if encoded.count(b"{") + encoded.count(b"[") > MAX_SENT_DEPTH:
        check_event_depth(pdu)
    if len(encoded) > MAX_PDU_BYTES:
        raise EventTooLarge(f"Events may not be larger than {MAX_PDU_BYTES} bytes")
    return encoded


# ---- naming


def encode_reference(version: RoomVersion, pdu: Mapping[str, Any]) -> bytes:
    """The part of an event that its signatures and its reference hash are made over, as canonical
    JSON.

    Raises `BadJson`. spec: server-server-api#signing-events
    """
    redacted = redact(version, pdu)
    redacted.pop("signatures", None)
    return encode_checked(redacted) if version.strict_canonical_json else encode_canonical(redacted)


def compute_reference_hash(version: RoomVersion, pdu: Mapping[str, Any]) -> bytes:
    """spec: server-server-api#calculating-the-reference-hash-for-an-event"""
    return sha256(encode_reference(version, pdu)).digest()


def event_id_of_hash(version: RoomVersion, reference_hash: bytes) -> EventID:
    """The id that an event has by its reference hash, from room version 3 on. spec:
    rooms/v4#event-ids"""
    encode = b64encode if version.event_format is EventFormat.V3 else urlsafe_b64encode
    return EventID("$" + encode(reference_hash)[:43].decode())


def compute_event_id(version: RoomVersion, pdu: Mapping[str, Any]) -> EventID:
    """The id of an event: its reference hash, or in versions 1 and 2 what it says itself.

    Raises `BadEvent` for an `event_id` that is none.
    spec: server-server-api#calculating-the-reference-hash-for-an-event
    """
    if version.event_format is not EventFormat.V1:
        return event_id_of_hash(version, compute_reference_hash(version, pdu))
    event_id = pdu.get("event_id")
    if type(event_id) is not str or not is_event_id(event_id) or ":" not in event_id:
        raise BadEvent("`event_id` must be an event ID with a domain")
    return EventID(event_id)


def read_sticky(value: object) -> int | None:
    """Return the time for which an event asks to be sticky, or None if absent or malformed."""
    duration = value.get("duration_ms") if isinstance(value, Mapping) else None
    return duration if type(duration) is int and 0 <= duration <= MAX_SAFE_INTEGER else None


# ---- the checks of new events, others' and ours


def check_fields(version: RoomVersion, pdu: Mapping[str, Any], event_id: EventID | None) -> EventID:
    """Check all fields of a PDU but `room_id`, and give its id, which is computed unless it is
    known.

    Raises `BadEvent`. spec: rooms/v1#event-format, rooms/v6#event-format,
    client-server-api#size-limits
    """
    get = pdu.get
    _check_text("type", get("type"))
    sender = get("sender")
    if type(sender) is not str or not is_user_id(sender):
        raise BadEvent("`sender` must be a user ID")
    if "state_key" in pdu:
        _check_text("state_key", pdu["state_key"])
    if type(get("content")) is not dict:
        raise BadEvent("`content` must be an object")
    # spec: rooms/v6#event-format lowers the limit of depth to what canonical JSON can carry
    _check_int(
        "depth", get("depth"), 0, MAX_SAFE_INTEGER if version.strict_canonical_json else _MAX_INT64
    )
    _check_int("origin_server_ts", get("origin_server_ts"), -_MAX_INT64, _MAX_INT64)
    _check_references(version, "prev_events", get("prev_events"), MAX_PREV_EVENTS)
    _check_references(version, "auth_events", get("auth_events"), MAX_AUTH_EVENTS)
    _check_hashes(get("hashes"))
    _check_signatures(get("signatures"))
    return compute_event_id(version, pdu) if event_id is None else event_id


def check_event_depth(value: Mapping[str, Any]) -> None:
    """Raises `BadEvent` for what nests deeper than an event may."""
    try:
        check_depth(value, MAX_SENT_DEPTH)
    except BadJson as error:
        raise BadEvent(error.text) from error


def room_id_for(version: RoomVersion, pdu: Mapping[str, Any], event_id: EventID) -> RoomID:
    """The room that an event belongs to: what it says, or what its hash is if it makes the room.
    Raises `BadEvent`."""
    room_id = pdu.get("room_id")
    if version.room_id_is_create_hash:
        if pdu.get("type") == "m.room.create":
            return RoomID("!" + event_id[1:])
        if type(room_id) is not str or not room_id.startswith("!") or not is_hash_id(room_id):
            raise BadEvent("`room_id` must be the hash of a create event")
        return RoomID(room_id)
    _check_text("room_id", room_id)
    if type(room_id) is not str or not room_id.startswith("!") or ":" not in room_id:
        raise BadEvent("`room_id` must be a room ID with a domain")
    return RoomID(room_id)


def _check_text(name: str, value: object) -> None:
    if type(value) is not str:
        raise BadEvent(f"`{name}` must be a string")
    # NUL cannot be stored in every database; no honest event has it in these fields.
    if "\0" in value:
        raise BadEvent(f"`{name}` may not have a NUL character")
    if len(value) * 4 > MAX_ID_BYTES and len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise EventTooLarge(f"`{name}` may not be longer than {MAX_ID_BYTES} bytes")


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise BadEvent(f"`{name}` must be an integer between {least} and {most}")


def _check_references(version: RoomVersion, name: str, value: object, limit: int) -> None:
    if type(value) is not list:
        raise BadEvent(f"`{name}` must be an array")
    if len(value) > limit:
        raise BadEvent(f"`{name}` may not have more than {limit} entries")
    pairs = version.event_format is EventFormat.V1
    for item in value:
        if pairs and (type(item) is not list or len(item) != 2 or type(item[1]) is not dict):
            raise BadEvent(f"`{name}` must have pairs of an event ID and hashes")
        event_id = item[0] if pairs else item
        if type(event_id) is not str or not is_event_id(event_id):
            raise BadEvent(f"`{name}` must name events by their IDs")


def _check_hashes(value: object) -> None:
    if type(value) is not dict or type(value.get("sha256")) is not str:
        raise BadEvent("`hashes` must have the string `sha256`")


def _check_signatures(value: object) -> None:
    if type(value) is not dict:
        raise BadEvent("`signatures` must be an object")
    for signatures in value.values():
        if type(signatures) is not dict or not all(
            type(signature) is str for signature in signatures.values()
        ):
            raise BadEvent("`signatures` must have an object of strings for each server")


def _ids(version: RoomVersion, references: Sequence[Any]) -> list[EventID]:
    if version.event_format is EventFormat.V1:
        return [EventID(reference[0]) for reference in references]
    return list(references)
