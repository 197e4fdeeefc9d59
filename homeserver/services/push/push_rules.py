"""Reads and changes users' push rules.

Laws:
- Predefined rules are not stored, only a user's own rules and the user's changes to predefined
  rules. So a predefined rule that a later version of the specification adds applies to all users.
- A user's own rules and changes are stored together as the account data `m.push_rules`. Each change
  takes a stream position, like any change of account data. Clients always see the complete rules,
  including predefined ones.

spec: client-server-api#push-rules
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import UserID
from homeserver.services.push.default_rules import (
    KINDS,
    ONLY_DEFAULT,
    Action,
    Condition,
    PushRule,
    default_rules,
)
from homeserver.services.push.rule_changes import RuleChanges
from homeserver.services.push.stored_rules import (
    PUSH_RULES,
    DefaultChange,
    StoredRules,
    decode_stored,
)
from storage.account_data.account_data import AccountDataStore
from storage.engine.database import Database

MAX_CACHED: Final = 256
MAX_CACHED_BYTES: Final = 4096
"""Rules whose stored form is larger are not cached but encoded each time."""
_MAX_RULE_ID: Final = 255
_MAX_TEXT: Final = 1024
"""Characters of a pattern or of another text in a condition."""
_MAX_CONDITIONS: Final = 20
_HISTORICAL_ACTIONS: Final = frozenset({"dont_notify", "coalesce"})
_WITH_CONDITIONS: Final = frozenset({"override", "underride"})


class PushRules:
    """Reads and changes push rules. All methods raise `InvalidParam` for an unknown kind."""

    def __init__(
        self, *, database: Database, account_data: AccountDataStore, changes: RuleChanges
    ) -> None:
        self._database = database
        self._account_data = account_data
        self._changes = changes

    async def get(self, user_id: UserID) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return all rules by kind, in the form of the client API."""
        return ruleset(user_id, await self._account_data.get_entry(user_id, None, PUSH_RULES))

    async def get_rule(self, user_id: UserID, kind: str, rule_id: str) -> Mapping[str, Any]:
        """Return one rule in the form of the client API. Raises `NotFound`."""
        _check_kind(kind)
        for rule in (await self.get(user_id))[kind]:
            if rule["rule_id"] == rule_id:
                return rule
        raise _no_rule()

    async def do_set_rule(
        self,
        user_id: UserID,
        kind: str,
        rule_id: str,
        *,
        actions: list[Action],
        conditions: list[Condition] | None,
        pattern: str | None,
        before: str | None,
        after: str | None,
    ) -> None:
        """Add a rule, or change it. Without further parameters it keeps its place and stays enabled
        or disabled.

        Raises `InvalidParam` (also if the rule next to which it is placed is not one of the
        user's), `TooLarge`.
        """
        _check_kind(kind)
        if kind == ONLY_DEFAULT:
            raise InvalidParam(f"Of the kind {kind} nobody has rules of their own")
        _check_own_id(rule_id)
        if (pattern is None) == (kind == "content"):
            raise InvalidParam("A content rule has a pattern, and no other has one")
        if pattern is not None and len(pattern) > _MAX_TEXT:
            raise InvalidParam(f"A pattern has at most {_MAX_TEXT} characters")
        if kind not in _WITH_CONDITIONS and conditions:
            raise InvalidParam("Only override and underride rules have conditions")
        checked = _checked_actions(actions)
        stored_conditions = (
            _checked_conditions(conditions or []) if kind in _WITH_CONDITIONS else None
        )

        def change(stored: StoredRules) -> None:
            rules = stored.own.setdefault(kind, [])
            at = _find(rules, rule_id)
            enabled = rules[at].enabled if at is not None else True
            rule = PushRule(rule_id, checked, enabled, stored_conditions, pattern)
            neighbour = before or after
            if neighbour is None or neighbour == rule_id:
                if at is None:
                    rules.insert(0, rule)
                else:
                    rules[at] = rule
                return
            if at is not None:
                del rules[at]
            place = _find(rules, neighbour)
            if place is None:
                raise InvalidParam(f"{neighbour} is not one of your own rules of this kind")
            # With `before` the rule is next more important than `neighbour`: it stands earlier.
            rules.insert(place if before else place + 1, rule)

        await self._change(user_id, change)

    async def do_remove_rule(self, user_id: UserID, kind: str, rule_id: str) -> None:
        """Remove one of a user's own rules. Raises `NotFound`."""
        _check_kind(kind)

        def change(stored: StoredRules) -> None:
            rules = stored.own.get(kind, [])
            at = _find(rules, rule_id)
            if at is None:
                raise _no_rule()
            del rules[at]

        await self._change(user_id, change)

    async def do_enable_rule(self, user_id: UserID, kind: str, rule_id: str, enabled: bool) -> None:
        """Enable or disable a rule, including a predefined one. Raises `NotFound`."""
        await self._modify(user_id, kind, rule_id, enabled=enabled)

    async def do_set_actions(
        self, user_id: UserID, kind: str, rule_id: str, actions: list[Action]
    ) -> None:
        """Set the actions of a rule, including a predefined one. Raises `InvalidParam`, `NotFound`,
        `TooLarge`."""
        await self._modify(user_id, kind, rule_id, actions=_checked_actions(actions))

    async def _modify(self, user_id: UserID, kind: str, rule_id: str, **new: Any) -> None:
        _check_kind(kind)

        def change(stored: StoredRules) -> None:
            rules = stored.own.get(kind, [])
            at = _find(rules, rule_id)
            if at is not None:
                rules[at] = msgspec.structs.replace(rules[at], **new)
            elif any(rule.rule_id == rule_id for rule in default_rules(user_id).get(kind, ())):
                stored.changed[rule_id] = msgspec.structs.replace(
                    stored.changed.get(rule_id, DefaultChange()), **new
                )
            else:
                raise _no_rule()

        await self._change(user_id, change)

    async def _change(self, user_id: UserID, change: Callable[[StoredRules], None]) -> None:
        await self._database.write("set_push_rules", self._changes.change, user_id, change)


def copy_rules_of_room(stored: StoredRules, old_room: str, new_room: str) -> None:
    """Copy a user's own rules about one room to another room that they have no rules about."""
    for kind in ("room", "override", "underride"):
        rules = stored.own.get(kind, [])
        at = _find(rules, old_room)
        if at is None or _find(rules, new_room) is not None:
            continue
        conditions = rules[at].conditions
        if conditions is not None:
            conditions = [
                {**condition, "pattern": new_room}
                if condition.get("key") == "room_id" and condition.get("pattern") == old_room
                else condition
                for condition in conditions
            ]
        rules.insert(
            at, msgspec.structs.replace(rules[at], rule_id=new_room, conditions=conditions)
        )


def push_rules_content(user_id: str, stored: bytes | None) -> Mapping[str, Any]:
    """Return the content of `m.push_rules` as clients see it, from its stored form. spec:
    client-server-api#mpush_rules"""
    return {"global": ruleset(user_id, stored)}


def account_data_events(
    user_id: str, entries: Mapping[str, bytes], *, first: bool
) -> list[dict[str, Any]]:
    """Return global account data as events. The first response includes the push rules, since all
    users have the predefined ones."""
    events: list[dict[str, Any]] = [
        {"type": type, "content": msgspec.Raw(content)}
        for type, content in entries.items()
        if type != PUSH_RULES
    ]
    if first or PUSH_RULES in entries:
        stored = entries.get(PUSH_RULES)
        encode = (
            _cached_content
            if stored is None or len(stored) <= MAX_CACHED_BYTES
            else _encoded_content
        )
        events.append({"type": PUSH_RULES, "content": encode(user_id, stored)})
    return events


def _encoded_content(user_id: str, stored: bytes | None) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(push_rules_content(user_id, stored)))


_cached_content = lru_cache(MAX_CACHED)(_encoded_content)
"""The encoded rules by their stored form, some six kilobytes each."""


def ruleset(user_id: str, stored: bytes | None) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Return a user's rules by kind, as clients see them, from their stored form."""
    rules = decode_stored(stored)
    return {kind: [_rule_to_json(rule) for rule in rules.rules(user_id, kind)] for kind in KINDS}


def _rule_to_json(rule: PushRule) -> Mapping[str, Any]:
    form: dict[str, Any] = {
        "rule_id": rule.rule_id,
        "default": rule.rule_id.startswith("."),
        "enabled": rule.enabled,
        "actions": rule.actions,
    }
    if rule.conditions is not None:
        form["conditions"] = rule.conditions
    if rule.pattern is not None:
        form["pattern"] = rule.pattern
    return form


def _find(rules: Sequence[PushRule], rule_id: str) -> int | None:
    return next((at for at, rule in enumerate(rules) if rule.rule_id == rule_id), None)


def _no_rule() -> NotFound:
    return NotFound("There is no such push rule")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InvalidParam("The kinds of push rules are " + ", ".join(KINDS))


def _check_own_id(rule_id: str) -> None:
    if rule_id.startswith("."):
        raise InvalidParam("Ids that start with a dot are for default rules")
    if not rule_id or len(rule_id.encode()) > _MAX_RULE_ID or set(rule_id) & set("/\\\0"):
        raise InvalidParam("The id of a push rule has 1 to 255 bytes, and neither / nor \\ in it")


def _checked_actions(actions: list[Action]) -> list[Action]:
    """Remove historical actions, which have no effect.

    spec: client-server-api#historical-actions"""
    for action in actions:
        if isinstance(action, dict):
            if not isinstance(action.get("set_tweak"), str):
                raise InvalidParam("An action that is an object has set_tweak, a string")
        elif action != "notify" and action not in _HISTORICAL_ACTIONS:
            raise InvalidParam(f"There is no action {action[:40]}")
    return [
        action
        for action in actions
        if isinstance(action, dict) or action not in _HISTORICAL_ACTIONS
    ]


def _checked_conditions(conditions: list[Condition]) -> list[Condition]:
    """Check conditions. Unknown kinds are stored, and never match."""
    if len(conditions) > _MAX_CONDITIONS:
        raise InvalidParam(f"A rule has at most {_MAX_CONDITIONS} conditions")
    for condition in conditions:
        if not isinstance(condition.get("kind"), str):
            raise InvalidParam("A condition has a kind, a string")
        if any(not isinstance(condition.get(key, ""), str) for key in ("key", "pattern", "is")):
            raise InvalidParam("key, pattern and is of a condition are strings")
        if any(isinstance(text, str) and len(text) > _MAX_TEXT for text in condition.values()):
            raise InvalidParam(f"Texts of a condition have at most {_MAX_TEXT} characters")
    return conditions
