"""For administrators: shows and changes the links between accounts and identity providers, and
shows who owns an e-mail address or telephone number.

The two paths under `/_synapse` are Synapse's.
"""

import msgspec

from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.accounts.threepids import Threepids
from homeserver.services.threepids.validation import EMAIL
from homeserver.services.upstream.external_ids import ExternalIds

PATH = "/_mahalla/admin/v1/users/{user_id}/external_ids"


class LinkBody(msgspec.Struct, frozen=True):
    """The request. `external_id` is the user's ID at the provider (`sub`, `entryUUID`, …)."""

    external_id: str


@endpoint(
    "GET", "/_synapse/admin/v1/auth_providers/{provider}/users/{external_id}", auth=Auth.ADMIN
)
async def get_user_of_external_id(
    links: ExternalIds, *, provider: str, external_id: str
) -> dict[str, object]:
    """Return the account that is linked to an identity of a provider. Raises `NotFound`."""
    return {"user_id": await links.get_user(provider, external_id)}


@endpoint("GET", "/_synapse/admin/v1/threepid/{medium}/users/{address}", auth=Auth.ADMIN)
async def get_user_of_threepid(
    threepids: Threepids, *, medium: str, address: str
) -> dict[str, object]:
    """Return the account that has an address. Raises `NotFound`, and `InvalidParam` for an unknown
    medium."""
    if medium not in (EMAIL, "msisdn"):
        raise InvalidParam("medium must be email or msisdn")
    owner = await threepids.get_owner(medium, address)
    if owner is None:
        raise NotFound("No account has this address")
    return {"user_id": owner}


@endpoint("GET", PATH, auth=Auth.ADMIN)
async def get_external_ids(links: ExternalIds, *, user_id: UserID) -> dict[str, object]:
    """Return the identities that are linked to an account. Raises `NotFound`."""
    return {
        "external_ids": [
            {"auth_provider": row.provider, "external_id": row.subject, "linked_ts": row.linked_ts}
            for row in await links.get_links(user_id)
        ]
    }


@endpoint("PUT", PATH + "/{provider}", auth=Auth.ADMIN)
async def put_external_id(
    links: ExternalIds, caller: Requester, *, user_id: UserID, provider: str, body: LinkBody
) -> Empty:
    """Link an account to an identity of a provider. Raises `NotFound`, `InvalidParam`,
    `ExternalIdInUse`."""
    await links.do_set(user_id, provider, body.external_id, by=caller.user_id)
    return EMPTY


@endpoint("DELETE", PATH + "/{provider}", auth=Auth.ADMIN)
async def delete_external_id(
    links: ExternalIds, caller: Requester, *, user_id: UserID, provider: str
) -> Empty:
    """Remove a link. Raises `NotFound`."""
    await links.do_remove(user_id, provider, by=caller.user_id)
    return EMPTY
