"""The properties of an event by path, and the data of its room that push rules need.

The rules of all users are evaluated on one `EvaluatedEvent`, so it caches the strings that they
look up.

spec: client-server-api#conditions-1, appendices#dot-separated-property-paths
"""

import re
from collections.abc import Callable, Container, Mapping
from typing import Any, Final

from federation.protocol.events import Event
from federation.protocol.power_levels import PowerLevels

Path = tuple[str, ...]

MISSING: Final = object()
"""Stands for a property that the event does not have."""
BODY: Final[Path] = ("content", "body")
TYPE: Final[Path] = ("type",)
ROOM_ID: Final[Path] = ("room_id",)
MAX_STEPS: Final = 10_000_000
"""The limit of character comparisons for all patterns of one user's rules on one event, some 30 ms.
Ten keywords of ten characters that all match in a text of 64 KiB take 6 million.
"""
_ESCAPED = re.compile(r"\\([\\.])|(\.)")


class EvaluatedEvent:
    """An event and its room's current member count and power levels. It is not stored."""

    __slots__ = (
        "_members",
        "_properties",
        "_texts",
        "member_count",
        "room_id",
        "sender",
        "sender_may_notify",
        "steps_left",
        "subscribers",
        "thread_root",
    )

    def __init__(
        self,
        *,
        properties: Mapping[str, Any],
        room_id: str,
        sender: str,
        member_count: int,
        may_notify: Callable[[str], bool],
    ) -> None:
        """`may_notify`: returns whether the sender's power level suffices to notify a group such as
        `room`."""
        self._properties = properties
        self._texts: dict[Path, str | None] = {}
        self._members: dict[Path, frozenset[str]] = {}
        self.room_id = room_id
        self.sender = sender
        self.member_count = member_count
        self.sender_may_notify = may_notify
        self.steps_left = MAX_STEPS
        """The comparisons that the rules of the current rule set may still use."""
        self.thread_root: str | None = None
        """The root of the event's thread; set only if some rule needs it."""
        self.subscribers: Container[str] = ()
        """The users who have subscribed to that thread."""

    @classmethod
    def of_event(
        cls, event: Event, member_count: int, levels: PowerLevels | None
    ) -> "EvaluatedEvent":
        """Return the properties of an event, with the number of joined members. `levels` None:
        nobody may notify a group."""
        properties: dict[str, Any] = {
            "type": event.type,
            "content": event.content,
            "sender": event.sender,
            "room_id": event.room_id,
            "event_id": event.event_id,
            "origin_server_ts": event.origin_server_ts,
        }
        if event.state_key is not None:
            properties["state_key"] = event.state_key
        if event.redacts is not None:
            properties["redacts"] = event.redacts

        def may_notify(group: str) -> bool:
            return levels is not None and levels.user_level(event.sender) >= levels.notifications(
                group
            )

        return cls(
            properties=properties,
            room_id=event.room_id,
            sender=event.sender,
            member_count=member_count,
            may_notify=may_notify,
        )

    def value(self, path: Path) -> object:
        """Return the property at a path; MISSING if there is none."""
        value: object = self._properties
        for name in path:
            if not isinstance(value, Mapping) or name not in value:
                return MISSING
            value = value[name]
        return value

    def use_steps(self, steps: int) -> bool:
        """Use up comparisons and return whether the limit still allows them. Each rule set has its
        own limit."""
        if steps > self.steps_left:
            return False
        self.steps_left -= steps
        return True

    def text(self, path: Path) -> str | None:
        """Return the property at a path in lower case if it is a string, else None."""
        try:
            return self._texts[path]
        except KeyError:
            value = self.value(path)
            text = self._texts[path] = value.lower() if isinstance(value, str) else None
            return text

    def texts_in(self, path: Path) -> frozenset[str]:
        """Return the strings in the list at a path as a set: it may have thousands of users, and
        each is looked up."""
        members = self._members.get(path)
        if members is None:
            values = self.value(path)
            texts = values if isinstance(values, list | tuple) else ()
            members = self._members[path] = frozenset(
                [value for value in texts if isinstance(value, str)]
            )
        return members


def parse_path(path: str) -> Path:
    r"""Return the names of a dot-separated path. `\.` and `\\` in a name stand for a dot and a
    backslash."""
    names: list[str] = []
    name, position = "", 0
    for found in _ESCAPED.finditer(path):
        name += path[position : found.start()]
        position = found.end()
        if found[1] is not None:
            name += found[1]
        else:
            names.append(name)
            name = ""
    names.append(name + path[position:])
    return tuple(names)
