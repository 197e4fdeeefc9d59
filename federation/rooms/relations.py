"""Reads the relation of an event to its parent. A malformed relation counts as absent.

spec: client-server-api#forming-relationships-between-events
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from federation.protocol.events import Event
from federation.protocol.ids import is_event_id
from storage.events.relations import ANNOTATION, REPLACE, Relation

ENCRYPTED: Final = "m.room.encrypted"
MAX_REL_TYPE: Final = 255
"""Characters of a relation type."""
MAX_ANNOTATION_KEY: Final = 1024
"""Characters of an annotation's key. An event with a longer one is a plain child, and duplicates of
it are not detected."""


def read_relation(event: Event) -> Relation | None:
    """Return the relation of an event to its parent."""
    relation = parse_relation(event.content)
    if relation is None or relation.target == event.event_id:
        return None
    if relation.rel_type == REPLACE and not _is_valid_replacement(event):
        return replace(relation, has_new_content=False)
    return relation


def parse_relation(content: Mapping[str, Any]) -> Relation | None:
    """Return the relation that an event with this content has to its parent."""
    relates_to = content.get("m.relates_to")
    if not isinstance(relates_to, dict):
        return None
    rel_type, target = relates_to.get("rel_type"), relates_to.get("event_id")
    if not isinstance(rel_type, str) or not 0 < len(rel_type) <= MAX_REL_TYPE or "\x00" in rel_type:
        return None
    if not isinstance(target, str) or not is_event_id(target) or "\x00" in target:
        return None
    if rel_type == ANNOTATION:
        key = relates_to.get("key")
        return Relation(
            rel_type,
            target,
            key if isinstance(key, str) and len(key) <= MAX_ANNOTATION_KEY else None,
        )
    return Relation(rel_type, target)


def _is_valid_replacement(event: Event) -> bool:
    """Return whether an event can replace another one.

    spec: client-server-api#validity-of-replacement-events
    """
    if event.state_key is not None:
        return False
    return event.type == ENCRYPTED or isinstance(event.content.get("m.new_content"), dict)
