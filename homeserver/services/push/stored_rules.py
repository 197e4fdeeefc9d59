"""Push rules as they are kept: only what a user changed, own rules by kind and what became of
default ones.

spec: client-server-api#push-rules
"""

from typing import Final

import msgspec

from homeserver.services.push.default_rules import MASTER, Action, PushRule, TheUser, default_rules

PUSH_RULES: Final = "m.push_rules"
"""The type of account data that they are kept as."""


class DefaultChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a user made of a default rule."""

    enabled: bool | None = None
    actions: list[Action] | None = None


class KeptRules(msgspec.Struct, omit_defaults=True):
    """What differs from the default: own rules by kind, the most important first, and changes by
    rule id."""

    own: dict[str, list[PushRule]] = {}
    changed: dict[str, DefaultChange] = {}

    def rules(self, user_id: str | TheUser, kind: str) -> list[PushRule]:
        """All of one kind, in order of importance."""
        own = self.own.get(kind, [])
        defaults = [
            _changed(rule, self.changed.get(rule.rule_id))
            for rule in default_rules(user_id).get(kind, ())
        ]
        if defaults and defaults[0].rule_id == MASTER:
            return [defaults[0], *own, *defaults[1:]]
        return [*own, *defaults]


def decode_kept(kept: bytes | None) -> KeptRules:
    """What is kept of a user's rules; None: nothing."""
    return KeptRules() if kept is None else msgspec.json.decode(kept, type=KeptRules)


def _changed(rule: PushRule, change: DefaultChange | None) -> PushRule:
    if change is None:
        return rule
    return msgspec.structs.replace(
        rule,
        enabled=rule.enabled if change.enabled is None else change.enabled,
        actions=rule.actions if change.actions is None else change.actions,
    )
