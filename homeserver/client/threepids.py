"""E-mail addresses and phone numbers of users, and their bindings at identity servers.

spec: client-server-api#adding-account-administrative-contact-information
"""

from typing import Annotated

import msgspec

from federation.api.request import RequestContext
from federation.protocol.errors import ServerNotTrusted
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.accounts.threepids import Threepids
from homeserver.services.pages.languages import Languages
from homeserver.services.threepids.email_validation import EmailValidation
from homeserver.services.threepids.identity_bindings import IdentityBindings
from homeserver.services.threepids.phone_validation import SUBMIT_PATH, PhoneValidation
from homeserver.services.threepids.validation import ADD, PASSWORD_RESET, REGISTER


class RequestTokenBody(msgspec.Struct, frozen=True, kw_only=True):
    """The request for a validation e-mail."""

    client_secret: str
    email: str
    send_attempt: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    next_link: str | None = None


class RequestCodeBody(msgspec.Struct, frozen=True, kw_only=True):
    """The request for a code by text message."""

    client_secret: str
    country: str
    phone_number: str
    send_attempt: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    next_link: str | None = None


class SubmitCodeBody(msgspec.Struct, frozen=True, kw_only=True):
    sid: str
    client_secret: str
    token: str


class AddThreepidBody(msgspec.Struct, frozen=True, kw_only=True):
    sid: str
    client_secret: str
    auth: dict[str, object] | None = None


class BindThreepidBody(msgspec.Struct, frozen=True, kw_only=True):
    sid: str
    client_secret: str
    id_server: str
    id_access_token: str


class UnbindThreepidBody(msgspec.Struct, frozen=True, kw_only=True):
    medium: str
    address: str
    id_server: str | None = None


class DeleteThreepidBody(msgspec.Struct, frozen=True, kw_only=True):
    medium: str
    address: str


@endpoint(
    "GET", "/_matrix/client/v3/account/3pid", "/_matrix/client/r0/account/3pid", auth=Auth.USER
)
async def get_threepids(threepids: Threepids, caller: Requester) -> dict[str, object]:
    """Return the caller's addresses and phone numbers."""
    return {
        "threepids": [
            {
                "medium": row.medium,
                "address": row.address,
                "validated_at": row.validated_ts,
                "added_at": row.added_ts,
            }
            for row in await threepids.get_threepids(caller.user_id)
        ]
    }


@endpoint(
    "POST",
    "/_matrix/client/v3/account/3pid/add",
    "/_matrix/client/r0/account/3pid/add",
    auth=Auth.USER,
    while_suspended=True,
    before_consent=False,
)
async def post_threepid_add(
    threepids: Threepids, caller: Requester, context: RequestContext, *, body: AddThreepidBody
) -> Empty:
    """Add a validated address.

    A suspended user may add addresses, so that they stay reachable, but remove none. spec:
    client-server-api#account-suspension
    """
    await threepids.do_add(caller, body.sid, body.client_secret, body.auth, context.client_ip)
    return EMPTY


@endpoint(
    "POST",
    "/_matrix/client/v3/account/3pid/delete",
    "/_matrix/client/r0/account/3pid/delete",
    auth=Auth.USER,
    before_consent=True,
)
async def post_threepid_delete(
    threepids: Threepids, bindings: IdentityBindings, caller: Requester, *, body: DeleteThreepidBody
) -> dict[str, object]:
    """Remove an address, and unbind it if this server bound it at an identity server."""
    await threepids.do_remove(caller.user_id, body.medium, body.address)
    return {
        "id_server_unbind_result": await bindings.do_unbind_now(
            caller.user_id, body.medium, body.address
        )
    }


@endpoint(
    "POST",
    "/_matrix/client/v3/account/3pid/unbind",
    "/_matrix/client/r0/account/3pid/unbind",
    auth=Auth.USER,
    before_consent=True,
)
async def post_threepid_unbind(
    bindings: IdentityBindings, caller: Requester, *, body: UnbindThreepidBody
) -> dict[str, object]:
    """Unbind an address that this server bound at an identity server. Raises as
    `IdentityBindings.do_unbind`."""
    result = await bindings.do_unbind(caller.user_id, body.medium, body.address, body.id_server)
    return {"id_server_unbind_result": result}


@endpoint(
    "POST",
    "/_matrix/client/v3/account/3pid/bind",
    "/_matrix/client/r0/account/3pid/bind",
    auth=Auth.USER,
)
async def post_threepid_bind(
    bindings: IdentityBindings,
    caller: Requester,
    context: RequestContext,
    *,
    body: BindThreepidBody,
) -> Empty:
    """Bind an address that the identity server validated, so that others can find the caller by it.
    Raises what `IdentityBindings.do_bind` raises."""
    await bindings.do_bind(
        caller,
        body.id_server,
        body.sid,
        body.client_secret,
        body.id_access_token,
        context.client_ip,
    )
    return EMPTY


@endpoint(
    "POST", "/_matrix/client/v3/account/3pid", "/_matrix/client/r0/account/3pid", auth=Auth.USER
)
async def post_threepid_legacy() -> Empty:
    """Refuse: this server validates addresses itself (`/account/3pid/add`) and trusts no identity
    server for that."""
    raise ServerNotTrusted("This server only adds addresses that it has validated itself")


@endpoint(
    "POST",
    "/_matrix/client/v3/account/3pid/email/requestToken",
    "/_matrix/client/r0/account/3pid/email/requestToken",
    auth=Auth.NONE,
)
async def post_token_to_add(
    validation: EmailValidation,
    languages: Languages,
    context: RequestContext,
    *,
    body: RequestTokenBody,
) -> dict[str, object]:
    """Send an e-mail to validate an address that the caller wants to add."""
    return await _request(validation, languages, context, ADD, body)


@endpoint(
    "POST",
    "/_matrix/client/v3/register/email/requestToken",
    "/_matrix/client/r0/register/email/requestToken",
    auth=Auth.NONE,
)
async def post_token_to_register(
    validation: EmailValidation,
    languages: Languages,
    context: RequestContext,
    *,
    body: RequestTokenBody,
) -> dict[str, object]:
    """Send an e-mail to validate the address of a user who registers."""
    return await _request(validation, languages, context, REGISTER, body)


@endpoint(
    "POST",
    "/_matrix/client/v3/account/password/email/requestToken",
    "/_matrix/client/r0/account/password/email/requestToken",
    auth=Auth.NONE,
)
async def post_token_to_reset(
    validation: EmailValidation,
    languages: Languages,
    context: RequestContext,
    *,
    body: RequestTokenBody,
) -> dict[str, object]:
    """Send an e-mail to a user who wants to reset their password."""
    return await _request(validation, languages, context, PASSWORD_RESET, body)


@endpoint(
    "POST",
    "/_matrix/client/v3/account/3pid/msisdn/requestToken",
    "/_matrix/client/r0/account/3pid/msisdn/requestToken",
    auth=Auth.NONE,
)
async def post_code_to_add(
    phones: PhoneValidation, languages: Languages, context: RequestContext, *, body: RequestCodeBody
) -> dict[str, object]:
    """Send a code to validate a phone number that the caller wants to add."""
    return await _request_code(phones, languages, context, ADD, body)


@endpoint(
    "POST",
    "/_matrix/client/v3/register/msisdn/requestToken",
    "/_matrix/client/r0/register/msisdn/requestToken",
    auth=Auth.NONE,
)
async def post_code_to_register(
    phones: PhoneValidation, languages: Languages, context: RequestContext, *, body: RequestCodeBody
) -> dict[str, object]:
    """Send a code to validate the phone number of a user who registers."""
    return await _request_code(phones, languages, context, REGISTER, body)


@endpoint(
    "POST",
    "/_matrix/client/v3/account/password/msisdn/requestToken",
    "/_matrix/client/r0/account/password/msisdn/requestToken",
    auth=Auth.NONE,
)
async def post_code_to_reset(
    phones: PhoneValidation, languages: Languages, context: RequestContext, *, body: RequestCodeBody
) -> dict[str, object]:
    """Send a code to a user who wants to reset their password."""
    return await _request_code(phones, languages, context, PASSWORD_RESET, body)


@endpoint("POST", SUBMIT_PATH, auth=Auth.NONE, limit=Limit.LOGIN, cost=0.2, max_body=4096)
async def post_submitted_code(
    phones: PhoneValidation, *, body: SubmitCodeBody
) -> dict[str, object]:
    """Check the code that the user typed (the `submit_url`). Raises what
    `PhoneValidation.do_submit` raises. spec:
    identity-service-api#post_matrixidentityv2validatemsisdnsubmittoken"""
    await phones.do_submit(body.sid, body.client_secret, body.token)
    return {"success": True}


async def _request(
    validation: EmailValidation,
    languages: Languages,
    context: RequestContext,
    purpose: str,
    body: RequestTokenBody,
) -> dict[str, object]:
    sid = await validation.do_request_token(
        purpose,
        body.email,
        body.client_secret,
        body.send_attempt,
        body.next_link,
        languages.choose(context.languages),
        context.client_ip,
        may_reveal=True,
    )
    return {"sid": sid}


async def _request_code(
    phones: PhoneValidation,
    languages: Languages,
    context: RequestContext,
    purpose: str,
    body: RequestCodeBody,
) -> dict[str, object]:
    """Send a code, and answer with `msisdn` in addition to the fields of the specification: clients
    show it."""
    validation = await phones.do_request_token(
        purpose,
        body.country,
        body.phone_number,
        body.client_secret,
        body.send_attempt,
        body.next_link,
        languages.choose(context.languages),
        context.client_ip,
        may_reveal=True,
    )
    return {"sid": validation.sid, "submit_url": phones.submit_url, "msisdn": validation.number}
