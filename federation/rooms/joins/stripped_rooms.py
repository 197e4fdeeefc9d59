"""What another server tells of a room, with an invite or as the answer to a knock: as much of it as
may be shown.

Where the create event names the room, all of it are whole events: it has to be there, since it
proves what it says, and the others are signed by whom they must be. In older versions servers are
lenient, since many send events of four keys.

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
from federation.rooms.check import as_hashed
from federation.rooms.receive.check_sources import Questions


async def read_invite_state(
    questions: Questions, version: RoomVersion, room_id: RoomID, state: object
) -> list[dict[str, Any]]:
    """As clients get it. Raises InvalidParam for what is malformed or wrongly signed; what cannot
    be checked just now is left out."""
    if not version.room_id_is_create_hash:
        return parse_stripped_state(state)
    events = parse_room_state(version, room_id, state)
    signed = await _find_signed(questions, events)
    for event in events:
        if event not in signed and not questions.lacks_keys(event):
            raise InvalidParam(
                f"An event of the room's state lacks a valid signature: {event.type}"
            )
    return [strip_event(as_hashed(event)) for event in signed]


async def read_knock_state(
    questions: Questions, version: RoomVersion, room_id: RoomID, state: object
) -> list[dict[str, Any]]:
    """As clients get it, without what is malformed or not signed. Raises InvalidParam where it is
    no list, or too long a one."""
    if not version.room_id_is_create_hash:
        return parse_stripped_state(state)
    signed = await _find_signed(questions, sift_room_state(version, room_id, state))
    return [strip_event(as_hashed(event)) for event in signed]


async def _find_signed(questions: Questions, events: Collection[Event]) -> list[Event]:
    """Those whose signatures are valid, and the create event, which the room's id proves."""
    others = [event for event in events if event.key != CREATE]
    await questions.prepare(others)
    return [event for event in events if event.key == CREATE or await _is_signed(questions, event)]


async def _is_signed(questions: Questions, event: Event) -> bool:
    try:
        signers: Collection[ServerName] = await questions.get_signers(event)
        return required_signers(event) <= set(signers)
    except MatrixError:
        return False  # it does not say who has to sign it, or we do not talk with who has
