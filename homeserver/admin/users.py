"""Accounts, for administrators: list, show, create, change and shadow-ban them. The paths and
names are Synapse's.

`creation_ts` is in milliseconds in lists of accounts, but in seconds in the response for a single
account. Tools rely on these units.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from federation.api.endpoint import QueryNames
from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty, Response
from homeserver.services.administration.users import (
    AccountChanges,
    AccountDetails,
    UserAdministration,
    parse_external_ids,
)
from storage.accounts.policy_consents import ConsentRow
from storage.accounts.user_lists import ListedUser, UserFilter, UserOrder

_V2 = "/_synapse/admin/v2/users"
_V3 = "/_synapse/admin/v3/users"
From = Annotated[int, QueryNames("from")]
Direction = Literal["f", "b"]


class ThreepidBody(msgspec.Struct, frozen=True):
    """A third-party identifier, which counts as validated."""

    medium: str
    address: str


class ExternalIDBody(msgspec.Struct, frozen=True):
    """The user's ID at an identity provider."""

    auth_provider: str
    external_id: str


class PutUserBody(msgspec.Struct, frozen=True, kw_only=True):
    """The wanted state of an account. An absent field stays unchanged. A list replaces the stored
    one."""

    password: str | UnsetType = UNSET
    logout_devices: bool = True
    displayname: str | UnsetType | None = UNSET
    avatar_url: str | UnsetType | None = UNSET
    threepids: list[ThreepidBody] | UnsetType = UNSET
    external_ids: list[ExternalIDBody] | UnsetType = UNSET
    admin: bool | UnsetType = UNSET
    deactivated: bool | UnsetType = UNSET
    locked: bool | UnsetType = UNSET
    user_type: str | UnsetType | None = UNSET
    approved: bool | UnsetType = UNSET


@endpoint("GET", _V2, auth=Auth.ADMIN)
async def get_users(
    users: UserAdministration,
    *,
    from_: From = 0,
    limit: int = 100,
    user_id: str | None = None,
    name: str | None = None,
    guests: bool = True,
    deactivated: bool = False,
    locked: bool = False,
    admins: bool | None = None,
    approved: bool = True,
    not_user_type: list[str] | None = None,
    order_by: UserOrder = "name",
    dir: Direction = "f",
) -> dict[str, Any]:
    """Return a page of local accounts. `deactivated` and `locked` include such accounts.
    `approved=false` returns only accounts that wait for approval."""
    wanted = _filter(users, user_id, name, guests, locked, admins, approved, not_user_type)
    wanted = msgspec.structs.replace(wanted, deactivated=None if deactivated else False)
    return await _page(users, wanted, order_by, dir, from_, limit)


@endpoint("GET", _V3, auth=Auth.ADMIN)
async def get_users_of_all_states(
    users: UserAdministration,
    *,
    from_: From = 0,
    limit: int = 100,
    user_id: str | None = None,
    name: str | None = None,
    guests: bool = True,
    deactivated: bool | None = None,
    locked: bool = False,
    admins: bool | None = None,
    approved: bool = True,
    not_user_type: list[str] | None = None,
    order_by: UserOrder = "name",
    dir: Direction = "f",
) -> dict[str, Any]:
    """Return a page of local accounts. Without `deactivated`, active and deactivated ones; with it,
    only one of the two kinds."""
    wanted = _filter(users, user_id, name, guests, locked, admins, approved, not_user_type)
    wanted = msgspec.structs.replace(wanted, deactivated=deactivated)
    return await _page(users, wanted, order_by, dir, from_, limit)


@endpoint("GET", _V2 + "/{user_id}", auth=Auth.ADMIN)
async def get_user(users: UserAdministration, *, user_id: UserID) -> dict[str, Any]:
    """Return the details of an account. Raises `NotFound`, and `InvalidParam` for a remote user."""
    return _details(users, await users.get_details(user_id))


@endpoint("PUT", _V2 + "/{user_id}", auth=Auth.ADMIN)
async def put_user(
    users: UserAdministration, caller: Requester, *, user_id: UserID, body: PutUserBody
) -> Response:
    """Create an account (201), or change one. Raises what `UserAdministration.do_put` raises."""
    created = await users.do_put(user_id, _changes(body), caller.user_id)
    response = _details(users, await users.get_details(user_id))
    return Response(HTTPStatus.CREATED if created else HTTPStatus.OK, {}, response)


@endpoint("POST", "/_synapse/admin/v1/users/{user_id}/shadow_ban", auth=Auth.ADMIN)
async def post_shadow_ban(
    users: UserAdministration, caller: Requester, *, user_id: UserID
) -> Empty:
    """Shadow-ban a user: what they send reaches nobody, but they get normal responses. Raises
    `InvalidParam`, `NotFound`."""
    await users.do_shadow_ban(user_id, caller.user_id, banned=True)
    return EMPTY


@endpoint("DELETE", "/_synapse/admin/v1/users/{user_id}/shadow_ban", auth=Auth.ADMIN)
async def delete_shadow_ban(
    users: UserAdministration, caller: Requester, *, user_id: UserID
) -> Empty:
    """Lift a shadow ban. Raises `InvalidParam`, `NotFound`."""
    await users.do_shadow_ban(user_id, caller.user_id, banned=False)
    return EMPTY


def _filter(
    users: UserAdministration,
    user_id: str | None,
    name: str | None,
    guests: bool,
    locked: bool,
    admins: bool | None,
    approved: bool,
    not_user_type: Sequence[str] | None,
) -> UserFilter:
    return UserFilter(
        name=name,
        user_id=user_id,
        guests=None if guests else False,
        locked=None if locked else False,
        admins=admins,
        awaiting_approval=not approved if users.needs_approval else None,
        without_types=tuple(not_user_type or ()),
    )


async def _page(
    users: UserAdministration,
    wanted: UserFilter,
    order: UserOrder,
    direction: Direction,
    first: int,
    limit: int,
) -> dict[str, Any]:
    page = await users.get_page(wanted, order, backwards=direction == "b", first=first, limit=limit)
    response: dict[str, Any] = {
        "users": [_entry(users, user) for user in page.users],
        "total": page.total,
    }
    if first + len(page.users) < page.total and page.users:
        response["next_token"] = str(first + len(page.users))
    return response


def _entry(users: UserAdministration, user: ListedUser) -> dict[str, Any]:
    return {
        "name": user.user_id,
        "user_type": user.user_type,
        "is_guest": user.is_guest,
        "admin": user.is_admin,
        "deactivated": user.deactivated,
        "shadow_banned": user.shadow_banned,
        "displayname": user.display_name,
        "avatar_url": user.avatar_url,
        "creation_ts": user.created_ts,
        "erased": user.erased,
        "last_seen_ts": user.last_seen_ts,
        "locked": user.locked,
        **({"approved": not user.awaiting_approval} if users.needs_approval else {}),
    }


def _details(users: UserAdministration, details: AccountDetails) -> dict[str, Any]:
    account = details.account
    return {
        "name": account.user_id,
        "displayname": details.display_name,
        "avatar_url": details.avatar_url,
        "threepids": [
            {
                "medium": row.medium,
                "address": row.address,
                "added_at": row.added_ts,
                "validated_at": row.validated_ts,
            }
            for row in details.addresses
        ],
        "external_ids": [
            {"auth_provider": row.provider, "external_id": row.subject} for row in details.links
        ],
        "is_guest": account.is_guest,
        "admin": account.is_admin,
        "deactivated": account.deactivated_ts is not None,
        "erased": account.erased,
        "shadow_banned": account.shadow_banned,
        "locked": account.locked,
        "suspended": account.suspended,
        "creation_ts": account.created_ts // 1000,
        "last_seen_ts": details.last_seen_ts,
        "appservice_id": account.appservice_id,
        "consent_server_notice_sent": None,
        **_consent_fields(details.consents),
        "user_type": account.user_type,
        **({"approved": account.approval_pending_ts is None} if users.needs_approval else {}),
    }


def _consent_fields(consents: Sequence[ConsentRow]) -> dict[str, Any]:
    """Return the latest consent of a user and its time. Versions of policies agreed to at the same
    time are joined, because tools expect one version."""
    last = max((row.ts for row in consents), default=None)
    versions = {
        row.version: None
        for row in sorted(consents, key=lambda row: row.policy_id)
        if row.ts == last
    }
    return {"consent_version": ", ".join(versions) or None, "consent_ts": last}


def _changes(body: PutUserBody) -> AccountChanges:
    return AccountChanges(
        password=body.password,
        logout_devices=body.logout_devices,
        display_name=body.displayname if body.displayname is UNSET else body.displayname or "",
        avatar_url=body.avatar_url if body.avatar_url is UNSET else body.avatar_url or "",
        addresses=UNSET
        if body.threepids is UNSET
        else [(each.medium, each.address) for each in body.threepids],
        external_ids=UNSET
        if body.external_ids is UNSET
        else parse_external_ids(
            [(each.auth_provider, each.external_id) for each in body.external_ids]
        ),
        is_admin=body.admin,
        deactivated=body.deactivated,
        locked=body.locked,
        user_type=body.user_type,
        approved=body.approved,
    )
