"""Request an e-mail that renews an account before it expires. The path is Synapse's, because
clients use it.

`homeserver/web/renew_account.py` is the page that the e-mail links to.
"""

from federation.api.request import RequestContext
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.accounts.renewal import Renewals
from homeserver.services.pages.languages import Languages


@endpoint(
    "POST",
    "/_matrix/client/unstable/account_validity/send_mail",
    auth=Auth.USER,
    limit=Limit.THREEPID,
    while_suspended=True,
    while_expired=True,
)
async def post_send_mail(
    renewals: Renewals, languages: Languages, caller: Requester, context: RequestContext
) -> Empty:
    """Send an e-mail with a renewal link. Raises `Forbidden`, `ThreepidNotFound`."""
    await renewals.do_send_email(caller.user_id, languages.choose(context.languages))
    return EMPTY
