"""Get and change push rules. spec: client-server-api#push-rules-api"""

from collections.abc import Mapping
from typing import Any

import msgspec

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.push.default_rules import Action, Condition
from homeserver.services.push.push_rules import PushRules


def _paths(*suffixes: str) -> tuple[str, ...]:
    return tuple(
        f"/_matrix/client/{version}/pushrules{suffix}"
        for suffix in suffixes
        for version in ("v3", "r0")
    )


_RULE = "/global/{kind}/{rule_id}"


class RuleBody(msgspec.Struct, frozen=True):
    """The request body of a push rule."""

    actions: list[Action]
    conditions: list[Condition] | None = None
    pattern: str | None = None


class EnabledBody(msgspec.Struct, frozen=True):
    """Whether the rule is enabled."""

    enabled: bool


class ActionsBody(msgspec.Struct, frozen=True):
    """The actions of the rule."""

    actions: list[Action]


@endpoint("GET", *_paths("/", ""), auth=Auth.USER)
async def get_push_rules(push_rules: PushRules, caller: Requester) -> Mapping[str, Any]:
    """Return all push rules by scope. `global` is the only scope."""
    return {"global": await push_rules.get(caller.user_id)}


@endpoint("GET", *_paths("/global/", "/global"), auth=Auth.USER)
async def get_global_push_rules(push_rules: PushRules, caller: Requester) -> Mapping[str, Any]:
    """Return all push rules."""
    return await push_rules.get(caller.user_id)


@endpoint("GET", *_paths(_RULE), auth=Auth.USER)
async def get_push_rule(
    push_rules: PushRules, caller: Requester, *, kind: str, rule_id: str
) -> Mapping[str, Any]:
    """Return one push rule."""
    return await push_rules.get_rule(caller.user_id, kind, rule_id)


@endpoint("PUT", *_paths(_RULE), auth=Auth.USER, limit=Limit.ACCOUNT_DATA, while_suspended=True)
async def put_push_rule(
    push_rules: PushRules,
    caller: Requester,
    *,
    kind: str,
    rule_id: str,
    body: RuleBody,
    before: str | None = None,
    after: str | None = None,
) -> Empty:
    """Add or change a custom push rule."""
    await push_rules.do_set_rule(
        caller.user_id,
        kind,
        rule_id,
        actions=body.actions,
        conditions=body.conditions,
        pattern=body.pattern,
        before=before,
        after=after,
    )
    return EMPTY


@endpoint("DELETE", *_paths(_RULE), auth=Auth.USER, limit=Limit.ACCOUNT_DATA, while_suspended=True)
async def delete_push_rule(
    push_rules: PushRules, caller: Requester, *, kind: str, rule_id: str
) -> Empty:
    """Delete a custom push rule."""
    await push_rules.do_remove_rule(caller.user_id, kind, rule_id)
    return EMPTY


@endpoint("GET", *_paths(_RULE + "/enabled"), auth=Auth.USER)
async def get_push_rule_enabled(
    push_rules: PushRules, caller: Requester, *, kind: str, rule_id: str
) -> Mapping[str, Any]:
    """Return whether a push rule is enabled."""
    return {"enabled": (await push_rules.get_rule(caller.user_id, kind, rule_id))["enabled"]}


@endpoint(
    "PUT",
    *_paths(_RULE + "/enabled"),
    auth=Auth.USER,
    limit=Limit.ACCOUNT_DATA,
    while_suspended=True,
)
async def put_push_rule_enabled(
    push_rules: PushRules, caller: Requester, *, kind: str, rule_id: str, body: EnabledBody
) -> Empty:
    """Enable or disable a push rule."""
    await push_rules.do_enable_rule(caller.user_id, kind, rule_id, body.enabled)
    return EMPTY


@endpoint("GET", *_paths(_RULE + "/actions"), auth=Auth.USER)
async def get_push_rule_actions(
    push_rules: PushRules, caller: Requester, *, kind: str, rule_id: str
) -> Mapping[str, Any]:
    """Return the actions of a push rule."""
    return {"actions": (await push_rules.get_rule(caller.user_id, kind, rule_id))["actions"]}


@endpoint(
    "PUT",
    *_paths(_RULE + "/actions"),
    auth=Auth.USER,
    limit=Limit.ACCOUNT_DATA,
    while_suspended=True,
)
async def put_push_rule_actions(
    push_rules: PushRules, caller: Requester, *, kind: str, rule_id: str, body: ActionsBody
) -> Empty:
    """Set the actions of a push rule."""
    await push_rules.do_set_actions(caller.user_id, kind, rule_id, body.actions)
    return EMPTY
