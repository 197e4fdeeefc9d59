"""Matrix identifiers: their grammar, and distinct types so that one is not passed for another.

spec: appendices#identifier-grammar
"""

from typing import NewType

UserID = NewType("UserID", str)
RoomID = NewType("RoomID", str)
EventID = NewType("EventID", str)
RoomAlias = NewType("RoomAlias", str)
ServerName = NewType("ServerName", str)
DeviceID = NewType("DeviceID", str)
