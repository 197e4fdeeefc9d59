"""The page that renews an expiring account. The e-mail about the expiry links to this page, and a
button on the page renews the account."""

from http import HTTPStatus
from urllib.parse import parse_qs

from federation.api.request import RequestContext
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.http.responses import Response
from homeserver.services.accounts.renewal import RENEW_PATH, Renewals, format_day
from homeserver.web.pages import Pages
from storage.accounts.validity import RenewalLinkRow


@endpoint("GET", RENEW_PATH, auth=Auth.NONE)
async def get_renew(
    renewals: Renewals, pages: Pages, context: RequestContext, *, token: str = ""
) -> Response:
    """The page with the button."""
    return _page(pages, context, await renewals.get_link(token), token)


@endpoint("POST", RENEW_PATH, auth=Auth.NONE, limit=Limit.LOGIN, cost=0.05, max_body=4096)
async def post_renew(
    renewals: Renewals, pages: Pages, context: RequestContext, *, body: bytes
) -> Response:
    """Renew the account."""
    fields = parse_qs(body.decode("latin-1"), max_num_fields=10) if body.count(b"&") < 10 else {}
    token = fields.get("token", [""])[0]
    return _page(pages, context, await renewals.do_renew(token), token)


def _page(
    pages: Pages, context: RequestContext, row: RenewalLinkRow | None, token: str
) -> Response:
    fields: dict[str, object] = {
        "state": "old" if row is None else "ask" if row.used_ts is None else "done",
        "user_id": "" if row is None else row.user_id,
        "day": "" if row is None or row.expires_ts is None else format_day(row.expires_ts),
        "path": RENEW_PATH,
        "token": token,
    }
    status = HTTPStatus.OK if row is not None else HTTPStatus.BAD_REQUEST
    return pages.render(
        "renew_account.html", pages.choose_language(context.languages), fields, status
    )
