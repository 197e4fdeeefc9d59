"""Pending upstream sign-ins: stored in the database, bound to a browser by a cookie, used once.

Laws:
- Each step of a sign-in is a row. Continuing takes the row, so a form that is sent twice finds
  nothing the second time.
- A flow with an identity is valid only while that sign-in is: it holds the credential epoch of the
  account, and ends with the session at the provider and when the browser signs out.
- A request without the cookie of the browser that began is refused, so following a link signs
  nobody in.

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
"""Seconds for each step."""

AWAY: Final = "away"
"""The browser is at the provider."""
BACK: Final = "back"
"""The provider's answer is checked; the browser has not sent its cookie yet."""
NAME: Final = "name"
"""A page asks for the name of the new account."""
CLIENT: Final = "client"
"""A page asks whether to continue to the client."""
CONFIRM: Final = "confirm"
"""A page describes the operation to confirm, and offers the providers."""

COOKIE: Final = "mahalla_upstream"


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """The stored state of a sign-in."""

    provider: str = ""
    purpose: Purpose
    kept: dict[str, str] = {}
    """State of the provider, needed when the browser returns."""
    identity: UpstreamIdentity | None = None
    user_id: str | None = None
    """The account that signs in, once it is known."""
    began_ts: int = 0
    """Start of its first step, in milliseconds since 1970."""
    era: int | None = None
    """Credential epoch of the account that signs in
    (`homeserver/services/login/credential_epoch.py`); None if there is no account, or the user is
    not identified yet."""

    @property
    def origin(self) -> str | None:
        """JSON of the sign-in's `Origin`, once the user is identified."""
        if self.identity is None:
            return None
        return msgspec.json.encode(origin_of(self, self.identity)).decode()


def origin_of(flow: Flow, identity: UpstreamIdentity) -> Origin:
    """Return the origin to store with everything that this sign-in begins."""
    return Origin(flow.provider, identity.subject, identity.session, flow.began_ts)


class Browser(msgspec.Struct, frozen=True):
    """A browser, by its cookie."""

    secret: str

    @property
    def hash(self) -> bytes:
        """The stored form of the secret."""
        return hash_token(self.secret)


class UpstreamFlows:
    """Stores steps and takes them."""

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
        """Return the requesting browser if it has our cookie."""
        secret = self._cookies.find(context, COOKIE)
        return None if secret is None else Browser(secret)

    def new_browser(self) -> Browser:
        """Return a browser with a new secret."""
        return Browser(self._secret_text.browser_token())

    def cookie_of(self, context: RequestContext, browser: Browser) -> str:
        """Return the cookie of a browser, for `Response.cookies`."""
        return self._cookies.make(context, COOKIE, browser.secret, seconds=2 * LIFETIME)

    def new_id(self) -> str:
        """Return the id of a new flow."""
        return self._secret_text.session_id()

    async def begin(
        self, step: str, browser: Browser, flow: Flow, flow_id: str | None = None
    ) -> str:
        """Store a step; return its id. Raises `Refused` if its session at the provider has
        ended."""
        return await self._begin(step, browser.hash, flow, flow_id or self.new_id())

    async def take(self, flow_id: str, step: str, browser: Browser | None) -> Flow:
        """Take the flow of a step. Raises `Refused` if this browser has no such step."""
        if browser is None or len(flow_id) != 24:
            raise Refused(Reason.OLD)
        row = await self._store.take_flow(flow_id, step, browser.hash, self._now())
        if row is None:
            raise Refused(Reason.OLD)
        return msgspec.json.decode(row.content, type=Flow)

    async def take_from_anywhere(self, flow_id: str, step: str) -> tuple[Flow, bytes]:
        """Take the flow of an answer that the provider's page posts, without our cookie. Return the
        flow and the browser's hash. Store the next step with `begin_for`; it checks the cookie."""
        row = (
            await self._store.take_flow(flow_id, step, None, self._now())
            if len(flow_id) == 24
            else None
        )
        if row is None:
            raise Refused(Reason.OLD)
        return msgspec.json.decode(row.content, type=Flow), row.browser_hash

    async def begin_for(self, step: str, browser_hash: bytes, flow: Flow) -> str:
        """Store a step for the browser of an earlier step; return its id. Raises as `begin`."""
        return await self._begin(step, browser_hash, flow, self.new_id())

    async def _begin(self, step: str, browser_hash: bytes, flow: Flow, flow_id: str) -> str:
        now = self._now()
        flow = msgspec.structs.replace(flow, began_ts=flow.began_ts or now)
        content = msgspec.json.encode(flow).decode()
        row = UpstreamFlowRow(flow_id, step, browser_hash, now + LIFETIME * 1000, content)
        if not await self._store.add_flow(row, flow.origin):
            raise Refused(Reason.OLD, "the session ended at the provider in the meantime")
        return flow_id

    async def do_end(self, browser: Browser) -> None:
        """End all flows of a browser that signs out."""
        await self._store.remove_browser(browser.hash)

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` expired steps; return how many."""
        return await self._store.remove_old(self._now(), limit)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)
