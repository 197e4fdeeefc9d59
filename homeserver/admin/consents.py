"""Who has agreed to the terms of service and other documents, for administrators."""

from typing import Annotated, Final

from federation.api.endpoint import Names
from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.services.terms.consent import Consents

MOST: Final = 1000


@endpoint("GET", "/_mahalla/admin/v1/policies", auth=Auth.ADMIN)
async def get_policies(consents: Consents) -> dict[str, object]:
    """The documents, and how many people have agreed to the version of now."""
    counts = await consents.count()
    return {
        "policies": {
            policy.policy_id: {"version": policy.version, "agreed": counts[policy.policy_id]}
            for policy in consents.policies.all
        }
    }


@endpoint("GET", "/_mahalla/admin/v1/policies/{policy_id}/users", auth=Auth.ADMIN)
async def get_users_of_policy(
    consents: Consents,
    *,
    policy_id: str,
    agreed: bool = True,
    from_: Annotated[str, Names("from")] = "",
    limit: int = 100,
) -> dict[str, object]:
    """Who has agreed to the version of now, and when (`agreed_ts`, milliseconds since 1970); with
    `agreed=false`: who has not. By id; `next`, where there may be more, is the next `from`."""
    if not 1 <= limit <= MOST:
        raise InvalidParam(f"limit is between 1 and {MOST}")
    policy = next((each for each in consents.policies.all if each.policy_id == policy_id), None)
    if policy is None:
        raise NotFound("There is no such document")
    users = await consents.get_users(policy, agreed=agreed, after=from_, limit=limit)
    answer: dict[str, object] = {
        "version": policy.version,
        "users": [{"user_id": user_id, "agreed_ts": ts} for user_id, ts in users.items()],
    }
    if len(users) == limit:
        answer["next"] = list(users)[-1]
    return answer


@endpoint("GET", "/_mahalla/admin/v1/users/{user_id}/consents", auth=Auth.ADMIN)
async def get_consents_of_user(consents: Consents, *, user_id: UserID) -> dict[str, object]:
    """All that somebody has agreed to, the oldest first, and what they have not, in the version of
    now."""
    return {
        "consents": [
            {"policy_id": row.policy_id, "version": row.version, "ts": row.ts}
            for row in await consents.get_consents(user_id)
        ],
        "owed": [policy.policy_id for policy in await consents.get_owed(user_id)],
    }
