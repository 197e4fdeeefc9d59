"""The page behind the unsubscribe link of notification e-mails."""

from http import HTTPStatus
from typing import Final

from federation.api.request import RequestContext
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response
from homeserver.services.pushers.unsubscribe import UNSUBSCRIBE_PATH, UnsubscribeLinks
from homeserver.web.pages import Pages

TEMPLATE: Final = "unsubscribe.html"


@endpoint("GET", UNSUBSCRIBE_PATH, auth=Auth.NONE)
async def get_unsubscribe(
    unsubscribing: UnsubscribeLinks,
    pages: Pages,
    context: RequestContext,
    *,
    pusher: int = 0,
    signature: str = "",
) -> Response:
    """The page with the button."""
    if not unsubscribing.is_signed(pusher, signature):
        return _page(pages, context, "wrong", HTTPStatus.BAD_REQUEST)
    row = await unsubscribing.find(pusher)
    if row is None:
        return _page(pages, context, "done")
    return _page(pages, context, "ask", address=row.pushkey, pusher=pusher, signature=signature)


@endpoint("POST", UNSUBSCRIBE_PATH, auth=Auth.NONE, max_body=4096)
async def post_unsubscribe(
    unsubscribing: UnsubscribeLinks,
    pages: Pages,
    context: RequestContext,
    *,
    body: bytes,
    pusher: int = 0,
    signature: str = "",
) -> Response:
    """Unsubscribe: from the page, or with one click in a mail client (RFC 8058). The body is not
    needed."""
    del body
    if not unsubscribing.is_signed(pusher, signature):
        return _page(pages, context, "wrong", HTTPStatus.BAD_REQUEST)
    await unsubscribing.do_end(pusher)
    return _page(pages, context, "done")


def _page(
    pages: Pages,
    context: RequestContext,
    state: str,
    status: int = HTTPStatus.OK,
    *,
    address: str = "",
    pusher: int = 0,
    signature: str = "",
) -> Response:
    fields: dict[str, object] = {
        "state": state,
        "address": address,
        "path": UNSUBSCRIBE_PATH,
        "pusher": pusher,
        "signature": signature,
    }
    return pages.render(TEMPLATE, pages.choose_language(context.languages), fields, status)
