"""What an event has to do with this server's users: does it count as unread, whom does it call.

Intentional mentions only: what is written in the text calls nobody. spec: client-server-api#user-and-room-mentions
"""

from typing import Final

from federation.identity import ServerIdentity
from federation.protocol.events import Event
from federation.protocol.ids import EventID, UserID, is_event_id, is_user_id
from federation.rooms.build import Classification
from storage.events import EventFlag

COUNTED: Final = frozenset({"m.room.message", "m.room.encrypted", "m.call.invite"})
MAX_MENTIONS: Final = 50
"""How many users one event can call."""


class Mentions:
    """Classifies events."""

    def __init__(self, identity: ServerIdentity) -> None:
        self._identity = identity

    def classify(self, event: Event) -> Classification:
        """Edits of messages (m.replace) are no news."""
        if event.type not in COUNTED or _is_edit(event):
            return Classification()
        flags = int(EventFlag.UNREAD)
        if thread_of(event) is not None:
            flags |= EventFlag.THREAD
        mentions = event.content.get("m.mentions")
        if isinstance(mentions, dict) and mentions.get("room") is True:
            flags |= EventFlag.MENTIONS_ROOM
        called = called_users(event)
        return Classification(flags, [user for user in sorted(called) if self._identity.is_local(user)])


def called_users(event: Event) -> frozenset[UserID]:
    """Whom an event calls by name."""
    mentions = event.content.get("m.mentions")
    named = mentions.get("user_ids") if isinstance(mentions, dict) else None
    users = named[:MAX_MENTIONS] if isinstance(named, list) else []
    return frozenset(UserID(user) for user in users if isinstance(user, str) and is_user_id(user))


def thread_of(event: Event) -> EventID | None:
    """The root of the thread that an event stands in. spec: client-server-api#threading"""
    relation = event.content.get("m.relates_to")
    if not isinstance(relation, dict) or relation.get("rel_type") != "m.thread":
        return None
    root = relation.get("event_id")
    return EventID(root) if isinstance(root, str) and is_event_id(root) else None


def _is_edit(event: Event) -> bool:
    relation = event.content.get("m.relates_to")
    return isinstance(relation, dict) and relation.get("rel_type") == "m.replace"
