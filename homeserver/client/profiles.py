"""Get, set and delete profile fields. spec: client-server-api#profiles"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from federation.api.endpoint import QueryNames
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.profiles.access import ProfileAccess
from homeserver.services.profiles.profiles import MAX_PROFILE_BYTES, Profiles

_PROFILE = ("/_matrix/client/v3/profile/{user_id}", "/_matrix/client/r0/profile/{user_id}")
_FIELD = (
    "/_matrix/client/v3/profile/{user_id}/{field}",
    "/_matrix/client/r0/profile/{user_id}/{field}",
    "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{field}",
)
Propagate = Annotated[bool, QueryNames("org.matrix.msc4069.propagate")]


@endpoint(
    "GET",
    *_PROFILE,
    "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}",
    auth=Auth.OPTIONAL,
)
async def get_profile(
    profiles: Profiles, access: ProfileAccess, caller: Requester | None, *, user_id: UserID
) -> Mapping[str, object]:
    """Return all profile fields of a user."""
    await access.check_may_see(caller, user_id)
    return await profiles.get_profile(user_id, None if caller is None else caller.user_id)


@endpoint("GET", *_FIELD, auth=Auth.OPTIONAL)
async def get_profile_field(
    profiles: Profiles,
    access: ProfileAccess,
    caller: Requester | None,
    *,
    user_id: UserID,
    field: str,
) -> Mapping[str, object]:
    """Return one profile field."""
    await access.check_may_see(caller, user_id)
    return await profiles.get_field(user_id, field, None if caller is None else caller.user_id)


@endpoint("PUT", *_FIELD, auth=Auth.GUEST, limit=Limit.PROFILE, max_body=2 * MAX_PROFILE_BYTES)
async def put_profile_field(
    profiles: Profiles,
    caller: Requester,
    *,
    user_id: UserID,
    field: str,
    body: dict[str, msgspec.Raw],
    propagate: Propagate = True,
) -> Empty:
    """Set one profile field. If `propagate` is false, rooms keep showing the old value
    (MSC4069)."""
    await profiles.do_set_field(caller, user_id, field, body, propagate=propagate)
    return EMPTY


@endpoint("DELETE", *_FIELD, auth=Auth.GUEST, limit=Limit.PROFILE)
async def delete_profile_field(
    profiles: Profiles,
    caller: Requester,
    *,
    user_id: UserID,
    field: str,
    propagate: Propagate = True,
) -> Empty:
    """Delete one profile field."""
    await profiles.do_remove_field(caller, user_id, field, propagate=propagate)
    return EMPTY
