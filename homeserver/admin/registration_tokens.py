"""Registration tokens, for administrators. The paths and names are Synapse's."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.accounts.registration_tokens import RegistrationTokens
from storage.accounts.registration_tokens import RegistrationTokenRow

_PATH = "/_synapse/admin/v1/registration_tokens"


class NewTokenBody(msgspec.Struct, frozen=True, kw_only=True):
    """A new registration token. Without `token`, one of `length` characters is generated.
    `expiry_time` is in milliseconds since 1970."""

    token: str | None = None
    length: int = 16
    uses_allowed: int | None = None
    expiry_time: int | None = None


class TokenLimitsBody(msgspec.Struct, frozen=True, kw_only=True):
    """New limits. An absent field keeps its value; null removes the limit."""

    uses_allowed: int | UnsetType | None = UNSET
    expiry_time: int | UnsetType | None = UNSET


@endpoint("GET", _PATH, auth=Auth.ADMIN)
async def get_registration_tokens(
    tokens: RegistrationTokens, *, valid: bool | None = None
) -> dict[str, Any]:
    """Return all registration tokens; with `valid`, only those that can or cannot be used now."""
    return {"registration_tokens": [_describe(row) for row in await tokens.get_all(valid=valid)]}


@endpoint("POST", f"{_PATH}/new", auth=Auth.ADMIN)
async def post_registration_token(
    tokens: RegistrationTokens, caller: Requester, *, body: NewTokenBody = NewTokenBody()
) -> dict[str, Any]:
    """Create a registration token. Raises `InvalidParam`."""
    created = await tokens.do_create(
        body.token, body.length, body.uses_allowed, body.expiry_time, caller.user_id
    )
    return _describe(created)


@endpoint("GET", f"{_PATH}/{{token}}", auth=Auth.ADMIN)
async def get_registration_token(tokens: RegistrationTokens, *, token: str) -> dict[str, Any]:
    """Return one registration token. Raises `NotFound`."""
    return _describe(await tokens.get(token))


@endpoint("PUT", f"{_PATH}/{{token}}", auth=Auth.ADMIN)
async def put_registration_token(
    tokens: RegistrationTokens, caller: Requester, *, token: str, body: TokenLimitsBody
) -> dict[str, Any]:
    """Change the limits of a registration token. Raises `NotFound`, `InvalidParam`."""
    return _describe(
        await tokens.do_change(token, body.uses_allowed, body.expiry_time, caller.user_id)
    )


@endpoint("DELETE", f"{_PATH}/{{token}}", auth=Auth.ADMIN)
async def delete_registration_token(
    tokens: RegistrationTokens, caller: Requester, *, token: str
) -> Empty:
    """Delete a registration token. Raises `NotFound`."""
    await tokens.do_remove(token, caller.user_id)
    return EMPTY


def _describe(row: RegistrationTokenRow) -> dict[str, Any]:
    return {
        "token": row.token,
        "uses_allowed": row.uses_allowed,
        "pending": row.pending,
        "completed": row.completed,
        "expiry_time": row.expires_ts,
    }
