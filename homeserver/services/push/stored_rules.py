"""The stored form of a user's push rules: the user's own rules by kind, and their changes to
predefined rules. The predefined rules themselves are not stored.

spec: client-server-api#push-rules
"""

from typing import Final

import msgspec

from homeserver.services.push.default_rules import MASTER, Action, PushRule, TheUser, default_rules

PUSH_RULES: Final = "m.push_rules"
"""The type of account data that holds the rules."""


class DefaultChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user's changes to a predefined rule."""

    enabled: bool | None = None
    actions: list[Action] | None = None


class StoredRules(msgspec.Struct, omit_defaults=True):
    """A user's own rules by kind, most important first, and their changes to predefined rules by
    rule ID."""

    own: dict[str, list[PushRule]] = {}
    changed: dict[str, DefaultChange] = {}

    def rules(self, user_id: str | TheUser, kind: str) -> list[PushRule]:
        """Return all rules of one kind, most important first."""
        own = self.own.get(kind, [])
        defaults = [
            _changed(rule, self.changed.get(rule.rule_id))
            for rule in default_rules(user_id).get(kind, ())
        ]
        if defaults and defaults[0].rule_id == MASTER:
            return [defaults[0], *own, *defaults[1:]]
        return [*own, *defaults]


def decode_stored(stored: bytes | None) -> StoredRules:
    """Decode the stored rules of a user; None: no changes."""
    return StoredRules() if stored is None else msgspec.json.decode(stored, type=StoredRules)


def _changed(rule: PushRule, change: DefaultChange | None) -> PushRule:
    if change is None:
        return rule
    return msgspec.structs.replace(
        rule,
        enabled=rule.enabled if change.enabled is None else change.enabled,
        actions=rule.actions if change.actions is None else change.actions,
    )
