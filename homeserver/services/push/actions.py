"""Parses the actions of a push rule. spec: client-server-api#actions"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from homeserver.services.push.default_rules import DONT_EMAIL, Action


class Actions:
    """The parsed actions of one rule. Immutable, and shared by all users with the same rule."""

    __slots__ = ("highlight", "mails", "notify", "raw", "sound", "tweaks")

    def __init__(self, raw: Sequence[Action]) -> None:
        self.raw: Final = tuple(raw)
        """The actions as stored in the rule, for answers to clients."""
        self.notify: Final = "notify" in self.raw
        tweaks: dict[str, Any] = {}
        for action in self.raw:
            if isinstance(action, dict) and isinstance(action.get("set_tweak"), str):
                # without a value, `highlight` is true; other tweaks are passed on unchanged
                is_highlight = action["set_tweak"] == "highlight"
                tweaks[action["set_tweak"]] = action.get("value", True if is_highlight else None)
        self.tweaks: Final[Mapping[str, Any]] = tweaks
        """Tweaks by name, for push gateways."""
        self.mails: Final = self.notify and DONT_EMAIL not in tweaks
        """Whether e-mails about missed messages include the event."""
        self.highlight: Final = self.notify and tweaks.get("highlight") is True
        sound = tweaks.get("sound")
        self.sound: Final = sound if isinstance(sound, str) else None

    def __repr__(self) -> str:
        return f"<Actions {list(self.raw)}>"


NOTHING: Final = Actions(())
"""The actions if no rule matches."""
