"""The parsers of identifiers in paths and queries.

They are those of the protocol core, so a malformed identifier never reaches a handler.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from federation.protocol.ids import (
    DeviceID,
    EventID,
    KeyID,
    RoomAlias,
    RoomID,
    ServerName,
    UserID,
    parse_device_id,
    parse_event_id,
    parse_key_id,
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    parse_user_id,
)

TextParser = Callable[[str], object]

IDENTIFIER_PARSERS: Final[Mapping[object, TextParser]] = MappingProxyType(
    {
        UserID: parse_user_id,
        RoomID: parse_room_id,
        EventID: parse_event_id,
        RoomAlias: parse_room_alias,
        ServerName: parse_server_name,
        DeviceID: parse_device_id,
        KeyID: parse_key_id,
    }
)
