"""Reads the stripped state that another server sends with an invite or in the response to a knock.

In room versions whose room id is the hash of the create event, the stripped state consists of full
events. The create event is required, and the room id proves it. The other events need valid
signatures. In older versions signatures are not required, because many servers send only
`type`, `state_key`, `sender` and `content`.

spec: server-server-api#put_matrixfederationv2inviteroomideventid,
server-server-api#put_matrixfederationv1send_knockroomideventid
"""

from collections.abc import Collection
from typing import Any

from federation.protocol.errors import InvalidParam, MatrixError
from federation.protocol.event_signing import required_signers
from federation.protocol.events import Event
from federation.protocol.ids import RoomID, ServerName
from federation.protocol.room_versions import RoomVersion
from federation.protocol.stripped_state import (
    CREATE,
    parse_room_state,
    parse_stripped_state,
    sift_room_state,
    strip_event,
)
from federation.rooms.receipt_checks import as_hashed
from federation.rooms.receive.check_sources import CheckServices


async def read_invite_state(
    services: CheckServices, version: RoomVersion, room_id: RoomID, state: object
) -> list[dict[str, Any]]:
    """Return the stripped state of an invite in the form for clients.

    Events whose keys are unavailable are left out. Raises InvalidParam if an event is malformed or
    has an invalid signature.
    """
    if not version.room_id_is_create_hash:
        return parse_stripped_state(state)
    events = parse_room_state(version, room_id, state)
    signed = await _find_signed(services, events)
    for event in events:
        if event not in signed and not services.lacks_keys(event):
            raise InvalidParam(
                f"An event of the room's state lacks a valid signature: {event.type}"
            )
    return [strip_event(as_hashed(event)) for event in signed]


async def read_knock_state(
    services: CheckServices, version: RoomVersion, room_id: RoomID, state: object
) -> list[dict[str, Any]]:
    """Return the stripped state of a knock in the form for clients, without invalid events.

    Raises InvalidParam if it is no list, or a list that is too long.
    """
    if not version.room_id_is_create_hash:
        return parse_stripped_state(state)
    signed = await _find_signed(services, sift_room_state(version, room_id, state))
    return [strip_event(as_hashed(event)) for event in signed]


async def _find_signed(services: CheckServices, events: Collection[Event]) -> list[Event]:
    """Return the events with valid signatures, and the create event, which the room ID proves."""
    signed_events = [event for event in events if event.key != CREATE]
    await services.prefetch_keys(signed_events)
    return [event for event in events if event.key == CREATE or await _is_signed(services, event)]


async def _is_signed(services: CheckServices, event: Event) -> bool:
    try:
        signers: Collection[ServerName] = await services.get_signers(event)
        return required_signers(event) <= set(signers)
    except MatrixError:
        return False  # it does not name its required signers, or we do not talk to one of them
