"""Push rules. spec: client-server-api#push-rules-api"""

from collections.abc import Mapping
from typing import Any

import msgspec

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.push.default_rules import Action, Condition
from homeserver.services.push.push_rules import PushRules


def _paths(*rests: str) -> tuple[str, ...]:
    return tuple(
        f"/_matrix/client/{version}/pushrules{rest}" for rest in rests for version in ("v3", "r0")
    )


_RULE = "/global/{kind}/{rule_id}"


class RuleBody(msgspec.Struct, frozen=True):
    """A rule, as clients set it."""

    actions: list[Action]
    conditions: list[Condition] | None = None
    pattern: str | None = None


class EnabledBody(msgspec.Struct, frozen=True):
    """Whether a rule is in force."""

    enabled: bool


class ActionsBody(msgspec.Struct, frozen=True):
    """What a rule does."""

    actions: list[Action]


@endpoint("GET", *_paths("/", ""), auth=Auth.USER)
async def get_push_rules(push_rules: PushRules, caller: Requester) -> Mapping[str, Any]:
    """All rules, by scope; there is but one."""
    return {"global": await push_rules.get(caller.user_id)}


@endpoint("GET", *_paths("/global/", "/global"), auth=Auth.USER)
async def get_global_push_rules(push_rules: PushRules, caller: Requester) -> Mapping[str, Any]:
    """All rules."""
    return await push_rules.get(caller.user_id)


@endpoint("GET", *_paths(_RULE), auth=Auth.USER)
async def get_push_rule(
    push_rules: PushRules, caller: Requester, *, kind: str, rule_id: str
) -> Mapping[str, Any]:
    """One rule."""
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
    """Add or change a rule of one's own."""
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
    """Remove a rule of one's own."""
    await push_rules.do_remove_rule(caller.user_id, kind, rule_id)
    return EMPTY


@endpoint("GET", *_paths(_RULE + "/enabled"), auth=Auth.USER)
async def get_push_rule_enabled(
    push_rules: PushRules, caller: Requester, *, kind: str, rule_id: str
) -> Mapping[str, Any]:
    """Whether a rule is in force."""
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
    """Switch a rule on or off."""
    await push_rules.do_enable_rule(caller.user_id, kind, rule_id, body.enabled)
    return EMPTY


@endpoint("GET", *_paths(_RULE + "/actions"), auth=Auth.USER)
async def get_push_rule_actions(
    push_rules: PushRules, caller: Requester, *, kind: str, rule_id: str
) -> Mapping[str, Any]:
    """What a rule does."""
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
    """Set what a rule does."""
    await push_rules.do_set_actions(caller.user_id, kind, rule_id, body.actions)
    return EMPTY
