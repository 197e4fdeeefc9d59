"""The page behind the link in a validation e-mail; its button confirms the address."""

from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

from federation.api.request import RequestContext
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.threepids.email_validation import CONFIRM_PATH, EmailValidation
from homeserver.web.pages import Pages
from storage.threepids.threepids import ValidationRow

TEMPLATE: Final = "confirm_email.html"


@endpoint("GET", CONFIRM_PATH, auth=Auth.NONE)
async def get_confirm_email(
    validation: EmailValidation,
    pages: Pages,
    context: RequestContext,
    *,
    sid: str = "",
    token: str = "",
) -> Response:
    """The page with the button."""
    row = await validation.get_pending(sid, token)
    if row is None:
        return _page(pages, validation, context, None, "old", HTTPStatus.BAD_REQUEST)
    return _page(
        pages,
        validation,
        context,
        row,
        "done" if row.validated_ts is not None else "ask",
        sid=sid,
        token=token,
    )


@endpoint("POST", CONFIRM_PATH, auth=Auth.NONE, max_body=4096)
async def post_confirm_email(
    validation: EmailValidation, pages: Pages, context: RequestContext, *, body: bytes
) -> Response:
    """Confirm the address."""
    fields = parse_qs(body.decode("latin-1"), max_num_fields=10) if body.count(b"&") < 10 else {}
    row = await validation.do_validate(fields.get("sid", [""])[0], fields.get("token", [""])[0])
    if row is None:
        return _page(pages, validation, context, None, "old", HTTPStatus.BAD_REQUEST)
    return _page(pages, validation, context, row, "done")


def _page(
    pages: Pages,
    validation: EmailValidation,
    context: RequestContext,
    row: ValidationRow | None,
    state: str,
    status: int = HTTPStatus.OK,
    *,
    sid: str = "",
    token: str = "",
) -> Response:
    next_link, next_host = (None if row is None else validation.get_next_link(row)) or ("", "")
    fields: dict[str, object] = {
        "state": state,
        "address": "" if row is None else row.address,
        "purpose": "" if row is None else row.purpose,
        "next_link": next_link,
        "next_host": next_host,
        "path": CONFIRM_PATH,
        "sid": sid,
        "token": token,
    }
    return pages.render(TEMPLATE, pages.choose_language(context.languages), fields, status)
