"""How identifiers in paths and queries are read: the parser of each type.

Filled from the protocol core, so that a malformed identifier never reaches a handler.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from federation.protocol.ids import DeviceID, EventID, RoomAlias, RoomID, ServerName, UserID
from homeserver.http.parameters import TextParser

_MAX_BYTES: Final = 255


def _with_sigil(sigil: str, what: str) -> TextParser:
    def parse(text: str) -> object:
        if len(text) < 2 or text[0] != sigil or len(text.encode()) > _MAX_BYTES:
            raise ValueError(f"not a valid {what}")
        return text

    return parse


def _bounded(text: str) -> object:
    if not text or len(text.encode()) > _MAX_BYTES:
        raise ValueError("must have 1 to 255 bytes")
    return text


IDENTIFIERS: Final[Mapping[object, TextParser]] = MappingProxyType(
    {
        UserID: _with_sigil("@", "user ID"),
        RoomID: _with_sigil("!", "room ID"),
        EventID: _with_sigil("$", "event ID"),
        RoomAlias: _with_sigil("#", "room alias"),
        ServerName: _bounded,
        DeviceID: _bounded,
    }
)
