"""What an event says of another one, its parent. What is not of the right form counts as absent.

spec: client-server-api#forming-relationships-between-events
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from federation.protocol.events import Event
from federation.protocol.ids import is_event_id
from storage.events.relations import ANNOTATION, REPLACE, Relation

ENCRYPTED: Final = "m.room.encrypted"
MAX_NAME: Final = 255
"""Characters of a type of relation."""
MAX_ANNOTATION: Final = 1024
"""Characters of what an annotation says; a longer one is a child, and the same one again is not
noticed."""


def read_relation(event: Event) -> Relation | None:
    """The relation of an event to its parent."""
    relation = relation_in(event.content)
    if relation is None or relation.target == event.event_id:
        return None
    if relation.rel_type == REPLACE and not _is_whole(event):
        return replace(relation, is_whole=False)
    return relation


def relation_in(content: Mapping[str, Any]) -> Relation | None:
    """The relation that an event with this content has to its parent."""
    said = content.get("m.relates_to")
    if not isinstance(said, dict):
        return None
    rel_type, target = said.get("rel_type"), said.get("event_id")
    if not isinstance(rel_type, str) or not 0 < len(rel_type) <= MAX_NAME or "\x00" in rel_type:
        return None
    if not isinstance(target, str) or not is_event_id(target) or "\x00" in target:
        return None
    if rel_type == ANNOTATION:
        key = said.get("key")
        return Relation(
            rel_type, target, key if isinstance(key, str) and len(key) <= MAX_ANNOTATION else None
        )
    return Relation(rel_type, target)


def _is_whole(event: Event) -> bool:
    """Whether a replacement can be one. spec: client-server-api#validity-of-replacement-events"""
    if event.state_key is not None:
        return False
    return event.type == ENCRYPTED or isinstance(event.content.get("m.new_content"), dict)
