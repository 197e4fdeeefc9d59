"""Shows administrators which users agreed to the terms of service and other policies."""

from typing import Annotated, Final

from federation.api.endpoint import QueryNames
from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.services.terms.consent import Consents

MAX_PAGE_SIZE: Final = 1000


@endpoint("GET", "/_mahalla/admin/v1/policies", auth=Auth.ADMIN)
async def get_policies(consents: Consents) -> dict[str, object]:
    """Return the policies, and how many users have agreed to the current version of each."""
    counts = await consents.count_accepted()
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
    from_: Annotated[str, QueryNames("from")] = "",
    limit: int = 100,
) -> dict[str, object]:
    """Return the users who have agreed to the current version, in the order of their IDs.

    `agreed_ts` is in milliseconds since 1970. With `agreed=false`: the users who have not agreed.
    `next`, if present, is the `from` of the next page.
    """
    if not 1 <= limit <= MAX_PAGE_SIZE:
        raise InvalidParam(f"limit must be between 1 and {MAX_PAGE_SIZE}")
    policy = next((each for each in consents.policies.all if each.policy_id == policy_id), None)
    if policy is None:
        raise NotFound("There is no such policy")
    users = await consents.get_users(policy, agreed=agreed, after=from_, limit=limit)
    response: dict[str, object] = {
        "version": policy.version,
        "users": [{"user_id": user_id, "agreed_ts": ts} for user_id, ts in users.items()],
    }
    if len(users) == limit:
        response["next"] = list(users)[-1]
    return response


@endpoint("GET", "/_mahalla/admin/v1/users/{user_id}/consents", auth=Auth.ADMIN)
async def get_consents_of_user(consents: Consents, *, user_id: UserID) -> dict[str, object]:
    """Return a user's consents, oldest first, and the policies whose current version they have not
    agreed to."""
    return {
        "consents": [
            {"policy_id": row.policy_id, "version": row.version, "ts": row.ts}
            for row in await consents.get_consents(user_id)
        ],
        "owed": [policy.policy_id for policy in await consents.get_missing(user_id)],
    }
