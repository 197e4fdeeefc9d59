"""Shows the federation policy and the member list, for administrators."""

from collections.abc import Mapping
from typing import Any

from federation.peers.federation_policy import FederationPolicy, ServerPatterns
from federation.protocol.ids import ServerName
from federation.protocol.member_list import Member, Right
from homeserver.api.endpoint import Auth, endpoint


@endpoint("GET", "/_mahalla/admin/v1/federation_policy", auth=Auth.ADMIN)
async def get_federation_policy(
    policy: FederationPolicy, *, server: ServerName | None = None
) -> dict[str, Any]:
    """Return the configured rules, and the member list of the federation if there is one.

    An expired list has `in_force` false. With `server`, the response also says how the policy
    applies to that server.
    """
    rules, members = policy.rules, policy.latest_members
    response: dict[str, Any] = {
        "enabled": rules.enabled,
        "simulation": rules.is_simulation,
        "allowed": _patterns(rules.allowed),
        "denied": _patterns(rules.denied) or [],
        "member_list": None,
    }
    if rules.has_member_list:
        response["member_list"] = {
            "in_force": policy.members is not None,
            "name": members.name if members is not None else None,
            "serial": members.serial if members is not None else None,
            "issued": members.issued if members is not None else None,
            "expires": members.expires if members is not None else None,
            "members": []
            if members is None
            else [_member(each) for each in members.members.values()],
        }
    if server is not None:
        response["server"] = {
            "server_name": server,
            "allowed": policy.find_refusal(server) is None,
            "reason": policy.find_refusal(server),
            "rights": {right.value: policy.find_refusal(server, right) is None for right in Right},
        }
    return response


def _patterns(patterns: ServerPatterns | None) -> list[str] | None:
    return None if patterns is None else list(patterns.patterns)


def _member(member: Member) -> Mapping[str, Any]:
    return {
        "server": member.server_name,
        "verify_keys": sorted(member.keys),
        "deny": sorted(right.value for right in member.denied),
    }
