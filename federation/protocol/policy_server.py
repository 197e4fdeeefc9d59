"""Reads the policy server that a room's state names, and checks whether it has signed an event.

The state event `m.room.policy` names the policy server. Rooms from before v1.18 of the
specification may have `org.matrix.msc4284.policy` instead. The signing endpoint of a policy server
that is named by this older event has another path (MSC4284).

spec: server-server-api#policy-servers
"""

from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.events import Event, StateKey, encode_reference, parse_event
from federation.protocol.ids import KeyID, ServerName, is_server_name
from federation.protocol.signing import (
    add_signature,
    is_signature_valid,
    parse_public_key,
    signatures_of,
)

POLICY: Final = StateKey("m.room.policy", "")
OLD_POLICY: Final = StateKey("org.matrix.msc4284.policy", "")
NAMING: Final = (POLICY, OLD_POLICY)
"""The state entries that may name a room's policy server. The first one that the room has
counts."""
SIGN_PATHS: Final[Mapping[StateKey, str]] = {
    POLICY: "/_matrix/policy/v1/sign",
    OLD_POLICY: "/_matrix/policy/unstable/org.matrix.msc4284/sign",
}
KEY_ID: Final = KeyID("ed25519:policy_server")
T = TypeVar("T")


class PolicyServer(msgspec.Struct, frozen=True):
    """The server, and the key by which the room knows its signatures."""

    server_name: ServerName
    public_key: bytes
    named_by: StateKey = POLICY


def find_naming(state: Mapping[StateKey, T]) -> T | None:
    """Of these entries of a room's state, that which counts as naming its policy server."""
    return next((state[key] for key in NAMING if key in state), None)


def is_naming(event: Event) -> bool:
    """Whether an event is to name the policy server of its room, or to say that there is none."""
    return event.state_key is not None and event.key in NAMING


def read_policy_server(event: Event | None) -> PolicyServer | None:
    """Return the policy server that an event names, or None if there is none or it is not valid."""
    if event is None:
        return None
    via, keys = event.content.get("via"), event.content.get("public_keys")
    key = keys.get("ed25519") if isinstance(keys, Mapping) else None
    if key is None and event.key == OLD_POLICY:
        key = event.content.get("public_key")
    if not isinstance(via, str) or not is_server_name(via) or not isinstance(key, str):
        return None
    try:
        return PolicyServer(ServerName(via), parse_public_key(KEY_ID, key), event.key)
    except InvalidParam:
        return None


def needs_signature(event: Event, server: PolicyServer) -> bool:
    """Whether a policy server has a say about an event: about all but that which names it, or
    another in its place."""
    return event.state_key is None or event.key not in (POLICY, server.named_by)


def is_signed_by_policy_server(
    event: Event, server: PolicyServer, signature: str | None = None
) -> bool:
    """Whether the event has its valid signature, or this one is valid."""
    found = (
        signatures_of(event.pdu, server.server_name).get(KEY_ID) if signature is None else signature
    )
    return found is not None and is_signature_valid(
        server.public_key, encode_reference(event.version, event.pdu), found
    )


def with_policy_signature(event: Event, server: PolicyServer, signature: str) -> Event:
    """The event with the policy server's signature besides. Raises BadEvent, EventTooLarge."""
    pdu = add_signature(event.pdu, server.server_name, KEY_ID, signature)
    return parse_event(event.version, pdu, event_id=event.event_id)
