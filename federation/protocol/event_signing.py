"""Makes and verifies the hashes and signatures of events, and names the required signers.

An event's content hash covers all fields except the hashes, the signatures and `unsigned`. The
signatures, and from room version 3 the event id, cover the redacted form, which includes the
content hash. So the signer can be verified even on a redacted copy, and the content hash shows
whether a copy is complete. A received event is dropped if a required signature is missing or wrong.
If only its content hash is wrong, other servers may be asked for an unaltered copy
(`federation/rooms/receive/unaltered_copies.py`). Without such a copy, the event is redacted or
refused.

spec: server-server-api#signing-events
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import Any

import msgspec

from federation.protocol.canonical_json import check_strict, encode_canonical, encode_checked
from federation.protocol.errors import BadEvent, EventTooLarge, InvalidParam
from federation.protocol.events import (
    MAX_PDU_BYTES,
    STICKY,
    Event,
    check_event_depth,
    check_fields,
    encode_reference,
    event_id_of_hash,
    room_id_for,
)
from federation.protocol.ids import (
    EventID,
    KeyID,
    RoomID,
    ServerName,
    UserID,
    domain_of,
    is_user_id,
)
from federation.protocol.room_versions import EventFormat, RoomVersion
from federation.protocol.signing import (
    SigningKey,
    add_signature,
    are_signatures_valid,
    decode_base64,
    signatures_of,
)

_NOT_HASHED = frozenset({"hashes", "signatures", "unsigned"})


def compute_content_hash(pdu: Mapping[str, Any]) -> bytes:
    """Raises `BadJson`. spec: server-server-api#calculating-the-content-hash-for-an-event"""
    return sha256(
        encode_canonical({key: value for key, value in pdu.items() if key not in _NOT_HASHED})
    ).digest()


def is_content_hash_valid(event: Event) -> bool:
    """Return whether the content hash of the event matches its content."""
    return is_hash_of(event.pdu)


def is_hash_of(pdu: Mapping[str, Any]) -> bool:
    """Whether `hashes.sha256` of a PDU is the hash of its content."""
    hashes = pdu.get("hashes")
    claimed = hashes.get("sha256") if isinstance(hashes, Mapping) else None
    if not isinstance(claimed, str):
        return False
    try:
        return compare_digest(decode_base64(claimed), compute_content_hash(pdu))
    except InvalidParam:
        return False


def required_signers(event: Event) -> frozenset[ServerName]:
    """The servers whose signatures an event must carry.

    The sender's server, unless the event is an invite of somebody known by a third-party
    identifier, which another server may send for the inviter; in room versions 1 and 2 also the
    server that the event id names; where joins can be restricted, also the server of the user who
    vouches for a join. Raises `BadEvent` if that one is not a user id.

    spec: server-server-api#validating-hashes-and-signatures-on-received-events,
    rooms/v8#authorisation-rules 4.2
    """
    signers = set()
    if not _is_third_party_invite(event):
        signers.add(domain_of(event.sender))
    if event.version.event_format is EventFormat.V1:
        signers.add(domain_of(event.event_id))
    if (
        event.version.restricted_joins
        and event.type == "m.room.member"
        and "join_authorised_via_users_server" in event.content
    ):
        voucher = event.content["join_authorised_via_users_server"]
        if not isinstance(voucher, str) or not is_user_id(voucher):
            raise BadEvent("`join_authorised_via_users_server` must be a user ID")
        signers.add(domain_of(voucher))
    return frozenset(signers)


def missing_signers(
    event: Event, keys: Mapping[ServerName, Mapping[KeyID, bytes]]
) -> frozenset[ServerName]:
    """Return the required signers whose valid signature the event lacks. If there are any, the
    event must be dropped.

    `keys` are each server's public keys that were valid for this event, by key id. Raises
    `BadEvent`.
    """
    message = encode_reference(event.version, event.pdu)
    return frozenset(
        server
        for server in required_signers(event)
        if not are_signatures_valid(message, signatures_of(event.pdu, server), keys.get(server, {}))
    )


def is_event_signed_by(
    event: Event, server: ServerName, public_keys: Mapping[KeyID, bytes]
) -> bool:
    """Whether this server has signed the event with one of these keys of its own."""
    signatures = signatures_of(event.pdu, server)
    message = encode_reference(event.version, event.pdu)
    return bool(signatures) and are_signatures_valid(message, signatures, public_keys)


def sign_event(
    version: RoomVersion, pdu: Mapping[str, Any], server: ServerName, key: SigningKey
) -> dict[str, Any]:
    """A copy of a PDU, which has its content hash, with one signature more: to vouch for another
    server's event."""
    return add_signature(pdu, server, key.key_id, key.sign(encode_reference(version, pdu)))


def hash_and_sign_event(
    version: RoomVersion, pdu: Mapping[str, Any], server: ServerName, key: SigningKey
) -> dict[str, Any]:
    """A copy of a PDU of any making with its content hash and our signature: for templates that
    others gave us.

    Signatures that it had are taken away, since they were made over something else.
    """
    digest = b64encode(compute_content_hash(pdu))[:43].decode()
    return sign_event(version, {**pdu, "hashes": {"sha256": digest}, "signatures": {}}, server, key)


def build_event(
    version: RoomVersion,
    server: ServerName,
    key: SigningKey,
    *,
    room_id: RoomID | None,
    type: str,
    sender: UserID,
    content: Mapping[str, Any],
    prev_events: Sequence[EventID],
    auth_events: Sequence[EventID],
    depth: int,
    origin_server_ts: int,
    state_key: str | None = None,
    redacts: EventID | None = None,
    sticky_ms: int | None = None,
    event_id: EventID | None = None,
    reference_hashes: Mapping[EventID, str] | None = None,
) -> Event:
    """A new event of ours: hashed, signed, named and encoded, with its content encoded once.

    `room_id` is None for the create event of a room that is named by it. `redacts` is put where the
    version keeps it. Room versions 1 and 2 need `event_id`, and the `reference_hashes` (unpadded
    base64) of the events that are referred to; other versions take neither. Raises `BadEvent` and
    `EventTooLarge` for what `parse_event` would refuse.
    """
    content = dict(content)
    if redacts is not None and version.redacts_in_content:
        content["redacts"] = redacts
    check_event_depth({"content": content})
    if version.strict_canonical_json:
        check_strict(content)
        content_json = msgspec.Raw(encode_checked(content))
    else:
        content_json = msgspec.Raw(encode_canonical(content))

    pdu: dict[str, Any] = {
        "auth_events": list(auth_events),
        "content": content_json,
        "depth": depth,
        "origin_server_ts": origin_server_ts,
        "prev_events": list(prev_events),
        "sender": sender,
        "type": type,
    }
    if version.event_format is EventFormat.V1:
        hashes = reference_hashes or {}
        pdu["auth_events"] = [[name, {"sha256": hashes[name]}] for name in auth_events]
        pdu["prev_events"] = [[name, {"sha256": hashes[name]}] for name in prev_events]
        pdu["event_id"] = event_id
    if room_id is not None:
        pdu["room_id"] = room_id
    if state_key is not None:
        pdu["state_key"] = state_key
    if redacts is not None and not version.redacts_in_content:
        pdu["redacts"] = redacts
    if sticky_ms is not None:
        pdu[STICKY] = {"duration_ms": sticky_ms}

    pdu["hashes"] = {"sha256": b64encode(sha256(encode_checked(pdu)).digest())[:43].decode()}
    pdu["content"] = content
    reference = encode_reference(version, pdu)
    if version.event_format is not EventFormat.V1:
        event_id = event_id_of_hash(version, sha256(reference).digest())
    pdu["signatures"] = {server: {key.key_id: key.sign(reference)}}
    event_id = check_fields(
        version, pdu, None if version.event_format is EventFormat.V1 else event_id
    )
    encoded = encode_checked({**pdu, "content": content_json})
    if len(encoded) > MAX_PDU_BYTES:
        raise EventTooLarge(f"Events may not be larger than {MAX_PDU_BYTES} bytes")
    return Event(
        version,
        event_id,
        room_id_for(version, pdu, event_id),
        type,
        state_key,
        sender,
        origin_server_ts,
        depth,
        encoded,
        content_json,
        content,
        pdu,
        sticky_ms,
    )


def _is_third_party_invite(event: Event) -> bool:
    return event.membership == "invite" and isinstance(
        event.content.get("third_party_invite"), Mapping
    )
