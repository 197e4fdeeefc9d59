"""Decides which users and servers may see an event, by the room's history visibility at that event.

The decision depends on the state just *before* the event and on the changes by the event itself. So
a caller needs only two entries of the state before each event: `m.room.history_visibility` and the
user's own `m.room.member`. Both rarely change, so the caller has few different entries to load for
a whole page of events. A server may see an event if any of its users may, so the caller needs the
`m.room.member` of each of them.

No user sees rejected and soft-failed events. This module does not check for them:
`federation/rooms/visibility.py` filters them.

spec: client-server-api#room-history-visibility
"""

from collections.abc import Collection
from enum import Enum
from typing import Final

from federation.protocol.events import Event, StateKey
from federation.protocol.membership_auth import MEMBER

HISTORY_VISIBILITY: Final = StateKey("m.room.history_visibility", "")


class HistoryVisibility(Enum):
    """The values of `history_visibility`."""

    WORLD_READABLE = "world_readable"
    SHARED = "shared"
    INVITED = "invited"
    JOINED = "joined"


_BY_VALUE: Final = {visibility.value: visibility for visibility in HistoryVisibility}


def read_visibility(event: Event | None) -> HistoryVisibility:
    """Return the visibility that an m.room.history_visibility event sets.

    `SHARED` if there is none or its value is unknown.
    """
    value = event.content.get("history_visibility") if event is not None else None
    return (
        _BY_VALUE.get(value, HistoryVisibility.SHARED)
        if isinstance(value, str)
        else HistoryVisibility.SHARED
    )


def is_visible(
    event: Event,
    user_id: str,
    *,
    visibility: HistoryVisibility,
    membership: str | None,
    joined_later: bool,
) -> bool:
    """Whether the user may see the event.

    `visibility` and `membership` (None: the user has none) are of the state before the event.
    `joined_later`: the user was joined to the room at any time after the event, as everyone is who
    is in it now.
    """
    memberships = {membership, membership_after(event, user_id, membership)}
    return _is_visible(event, visibility, memberships, joined_later)


def is_visible_to_server(
    event: Event,
    server: str,
    *,
    visibility: HistoryVisibility,
    memberships: Collection[str | None],
    joined_later: bool,
) -> bool:
    """Whether a server may be given the event: whether any of its users may see it. Else it is
    given it redacted.

    `memberships` are those that the server's users had before the event (repeats may be left out);
    `joined_later`: any of its users was joined to the room at any time after the event. Whether the
    server may ask about the room at all is another question. spec:
    server-server-api#backfilling-and-retrieving-missing-events
    """
    seen = set(memberships)
    if (
        event.type == MEMBER
        and event.state_key is not None
        and event.state_key.partition(":")[2] == server
    ):
        seen.add(event.membership)
    return _is_visible(event, visibility, seen, joined_later)


def membership_after(event: Event, user_id: str, membership: str | None) -> str:
    """Return the user's membership after the event, for `unsigned.membership`.

    `membership` is the one before it, None if the user had none. spec:
    client-server-api#definition-clientevent
    """
    if event.type == MEMBER and event.state_key == user_id:
        return event.membership or "leave"
    return membership or "leave"


def _is_visible(
    event: Event,
    visibility: HistoryVisibility,
    memberships: Collection[str | None],
    joined_later: bool,
) -> bool:
    if _allows(visibility, memberships, joined_later):
        return True
    if event.type == HISTORY_VISIBILITY.type and event.state_key == HISTORY_VISIBILITY.state_key:
        return _allows(read_visibility(event), memberships, joined_later)
    return False


def _allows(
    visibility: HistoryVisibility, memberships: Collection[str | None], joined_later: bool
) -> bool:
    """The numbered rules, in their order."""
    return (
        visibility is HistoryVisibility.WORLD_READABLE
        or "join" in memberships
        or (visibility is HistoryVisibility.SHARED and joined_later)
        or (visibility is HistoryVisibility.INVITED and "invite" in memberships)
    )
