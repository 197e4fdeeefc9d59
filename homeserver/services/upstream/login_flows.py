"""Sign-ins that are under way: remembered in the database, bound to a browser by a cookie, gone on
with once.

Laws:
- Each step of a sign-in is a row; going on takes it, and a page that is sent twice finds nothing
  the second time.
- A flow in which it is known who it is goes on only while that sign-in stands: it keeps the era of
  their account, and ends with the sign-in at the provider, and with the browser's signing out.
- What comes without the cookie of the browser that began belongs to nobody: so nobody is signed in
  by following a link.

spec: client-server-api#redirecting-to-the-authentication-server, its security considerations
"""

from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.api.request import RequestContext
from homeserver.services.login.cookies import Cookies
from homeserver.services.login.login_tokens import Origin
from homeserver.services.tokens.secret_tokens import SecretText, hash_token
from homeserver.services.upstream.identity import Purpose, Reason, Refused, UpstreamIdentity
from storage.upstream.login_flows import UpstreamFlowRow, UpstreamFlowStore

LIFETIME: Final = 15 * 60
"""Seconds at each step."""

AWAY: Final = "away"
"""The browser is at the provider."""
BACK: Final = "back"
"""It has come back with an answer that was checked, but not yet with its cookie."""
NAME: Final = "name"
"""A page asks for the name of the new account."""
CLIENT: Final = "client"
"""A page asks whether to go on to the client."""
CONFIRM: Final = "confirm"
"""A page says what is to be confirmed, and with whom."""

COOKIE: Final = "mahalla_upstream"


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered."""

    provider: str = ""
    purpose: Purpose
    kept: dict[str, str] = {}
    """What the provider has to know when the browser comes back."""
    identity: UpstreamIdentity | None = None
    user_id: str | None = None
    """Who signed in, once that is settled."""
    began_ts: int = 0
    """When its first step began, in milliseconds since 1970."""
    era: int | None = None
    """Of the account of who signed in (`homeserver/services/login/credential_epoch.py`); None as
    long as they have none, or it is not known who they are."""

    @property
    def origin(self) -> str | None:
        """JSON of the sign-in at the provider, once it is done."""
        if self.identity is None:
            return None
        return msgspec.json.encode(origin_of(self, self.identity)).decode()


def origin_of(flow: Flow, identity: UpstreamIdentity) -> Origin:
    """The sign-in of somebody, as it is kept of what begins by it."""
    return Origin(flow.provider, identity.subject, identity.session, flow.began_ts)


class Browser(msgspec.Struct, frozen=True):
    """A browser, by its cookie."""

    secret: str

    @property
    def hash(self) -> bytes:
        """As what it is kept."""
        return hash_token(self.secret)


class UpstreamFlows:
    """Begins steps, and takes them."""

    def __init__(
        self,
        clock: IReactorTime,
        secret_text: SecretText,
        store: UpstreamFlowStore,
        cookies: Cookies,
    ) -> None:
        self._clock = clock
        self._secret_text = secret_text
        self._store = store
        self._cookies = cookies

    def find_browser(self, context: RequestContext) -> Browser | None:
        """The browser that asks, if it has our cookie."""
        secret = self._cookies.find(context, COOKIE)
        return None if secret is None else Browser(secret)

    def new_browser(self) -> Browser:
        """One that has no cookie yet."""
        return Browser(self._secret_text.browser_token())

    def cookie_of(self, context: RequestContext, browser: Browser) -> str:
        """The cookie that a browser is to have, for `Response.cookies`."""
        return self._cookies.make(context, COOKIE, browser.secret, seconds=2 * LIFETIME)

    def new_id(self) -> str:
        """The id of a flow that is to begin."""
        return self._secret_text.session_id()

    async def begin(
        self, step: str, browser: Browser, flow: Flow, flow_id: str | None = None
    ) -> str:
        """Remember a step; its id. Raises `Refused` where the sign-in by which it goes on has
        ended."""
        return await self._begin(step, browser.hash, flow, flow_id or self.new_id())

    async def take(self, flow_id: str, step: str, browser: Browser | None) -> Flow:
        """Go on. Raises `Refused` where this browser is at no such step."""
        if browser is None or len(flow_id) != 24:
            raise Refused(Reason.OLD)
        row = await self._store.take_flow(flow_id, step, browser.hash, self._now())
        if row is None:
            raise Refused(Reason.OLD)
        return msgspec.json.decode(row.content, type=Flow)

    async def take_from_anywhere(self, flow_id: str, step: str) -> tuple[Flow, bytes]:
        """Go on with an answer that browsers send without cookies, from the provider's page; the
        flow, and whose it is. What follows is to be begun with `begin_for`, and to ask for the
        cookie."""
        row = (
            await self._store.take_flow(flow_id, step, None, self._now())
            if len(flow_id) == 24
            else None
        )
        if row is None:
            raise Refused(Reason.OLD)
        return msgspec.json.decode(row.content, type=Flow), row.browser_hash

    async def begin_for(self, step: str, browser_hash: bytes, flow: Flow) -> str:
        """Remember a step for the browser of an earlier one; its id. Raises as `begin`."""
        return await self._begin(step, browser_hash, flow, self.new_id())

    async def _begin(self, step: str, browser_hash: bytes, flow: Flow, flow_id: str) -> str:
        now = self._now()
        flow = msgspec.structs.replace(flow, began_ts=flow.began_ts or now)
        content = msgspec.json.encode(flow).decode()
        row = UpstreamFlowRow(flow_id, step, browser_hash, now + LIFETIME * 1000, content)
        if not await self._store.add_flow(row, flow.origin):
            raise Refused(Reason.OLD, "the sign-in has ended at the provider in the meantime")
        return flow_id

    async def do_end(self, browser: Browser) -> None:
        """End whatever waits in a browser: it is signed out."""
        await self._store.remove_browser(browser.hash)

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` steps that nobody went on with in time; how many."""
        return await self._store.remove_old(self._now(), limit)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)
