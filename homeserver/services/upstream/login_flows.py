"""Pending upstream sign-ins: stored in the database, bound to a browser by a cookie, used once.

Laws:
- Each step of a sign-in is stored as a row. The request that continues the sign-in deletes the
  row, so a form that is sent twice is refused the second time.
- Once the provider has identified the user, the flow ends if the account's credential epoch changes
  or the session at the provider ends. If a browser signs out, all its flows end.
- A sign-in continues only with the cookie of the browser that began it. So nobody can sign a user
  in to another account by sending them a link.
- Some providers return their answer in a form that their page posts to this server. The browser
  sends no cookie with it, because the cookie is `SameSite=Lax`. The server checks the answer,
  stores the identity from it, and redirects the browser. The sign-in continues only if the
  redirected request has the cookie.

spec: client-server-api#redirecting-to-the-authentication-server, its security considerations
"""

from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.api.request import RequestContext
from homeserver.services.login.cookies import Cookies
from homeserver.services.login.login_tokens import ProviderSignIn
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_token
from homeserver.services.upstream.identity import (
    Purpose,
    RefusalReason,
    SignInRefused,
    UpstreamIdentity,
)
from storage.upstream.login_flows import UpstreamFlowRow, UpstreamFlowStore

STEP_LIFETIME: Final = 15 * 60
"""Seconds for each step."""

AT_PROVIDER: Final = "away"
"""The browser is at the provider."""
IDENTIFIED: Final = "back"
"""The provider's answer is checked; the browser has not sent its cookie yet."""
CHOOSE_NAME: Final = "name"
"""A page asks for the name of the new account."""
CONFIRM_CLIENT: Final = "client"
"""A page asks whether to continue to the client."""
DESCRIBE_OPERATION: Final = "confirm"
"""A page describes the operation to confirm, and offers the providers."""

COOKIE: Final = "mahalla_upstream"


class SignInFlow(msgspec.Struct, frozen=True, kw_only=True):
    """The stored state of a sign-in."""

    provider: str = ""
    purpose: Purpose
    provider_state: dict[str, str] = {}
    """State of the provider, needed when the browser returns."""
    identity: UpstreamIdentity | None = None
    user_id: str | None = None
    """The account that signs in, once it is known."""
    began_ts: int = 0
    """Start of its first step, in milliseconds since 1970."""
    epoch: int | None = None
    """Credential epoch of the account that signs in
    (`homeserver/services/login/credential_epoch.py`); None if there is no account, or the user is
    not identified yet."""

    @property
    def origin(self) -> str | None:
        """JSON of the sign-in's `ProviderSignIn`, once the user is identified."""
        if self.identity is None:
            return None
        return msgspec.json.encode(origin_of(self, self.identity)).decode()


def origin_of(flow: SignInFlow, identity: UpstreamIdentity) -> ProviderSignIn:
    """Return the origin to store with everything that this sign-in begins."""
    return ProviderSignIn(flow.provider, identity.subject, identity.session_id, flow.began_ts)


class FlowBrowser(msgspec.Struct, frozen=True):
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
        *,
        clock: IReactorTime,
        secret_text: SecretGenerator,
        store: UpstreamFlowStore,
        cookies: Cookies,
    ) -> None:
        self._clock = clock
        self._secret_text = secret_text
        self._store = store
        self._cookies = cookies

    def find_browser(self, context: RequestContext) -> FlowBrowser | None:
        """Return the requesting browser if it has our cookie."""
        secret = self._cookies.find(context, COOKIE)
        return None if secret is None else FlowBrowser(secret)

    def new_browser(self) -> FlowBrowser:
        """Return a browser with a new secret."""
        return FlowBrowser(self._secret_text.browser_token())

    def cookie_of(self, context: RequestContext, browser: FlowBrowser) -> str:
        """Return the cookie of a browser, for `Response.cookies`."""
        return self._cookies.make(context, COOKIE, browser.secret, seconds=2 * STEP_LIFETIME)

    def new_id(self) -> str:
        """Return the ID of a new flow."""
        return self._secret_text.session_id()

    async def begin(
        self, step: str, browser: FlowBrowser, flow: SignInFlow, flow_id: str | None = None
    ) -> str:
        """Store a step; return its ID. Raises `SignInRefused` if its session at the provider has
        ended."""
        return await self._begin(step, browser.hash, flow, flow_id or self.new_id())

    async def take(self, flow_id: str, step: str, browser: FlowBrowser | None) -> SignInFlow:
        """Take the flow of a step. Raises `SignInRefused` if this browser has no such step."""
        if browser is None or len(flow_id) != 24:
            raise SignInRefused(RefusalReason.OLD)
        row = await self._store.take_flow(flow_id, step, browser.hash, self._now())
        if row is None:
            raise SignInRefused(RefusalReason.OLD)
        return msgspec.json.decode(row.content, type=SignInFlow)

    async def take_without_cookie(self, flow_id: str, step: str) -> tuple[SignInFlow, bytes]:
        """Take the flow of an answer that the provider's page posts, without our cookie. Return the
        flow and the browser's hash. Store the next step with `begin_for`; it checks the cookie."""
        row = (
            await self._store.take_flow(flow_id, step, None, self._now())
            if len(flow_id) == 24
            else None
        )
        if row is None:
            raise SignInRefused(RefusalReason.OLD)
        return msgspec.json.decode(row.content, type=SignInFlow), row.browser_hash

    async def begin_for(self, step: str, browser_hash: bytes, flow: SignInFlow) -> str:
        """Store a step for the browser of an earlier step; return its ID. Raises what `begin`
        raises."""
        return await self._begin(step, browser_hash, flow, self.new_id())

    async def _begin(self, step: str, browser_hash: bytes, flow: SignInFlow, flow_id: str) -> str:
        now = self._now()
        flow = msgspec.structs.replace(flow, began_ts=flow.began_ts or now)
        content = msgspec.json.encode(flow).decode()
        row = UpstreamFlowRow(flow_id, step, browser_hash, now + STEP_LIFETIME * 1000, content)
        if not await self._store.add_flow(row, flow.origin):
            raise SignInRefused(
                RefusalReason.OLD, "the session ended at the provider in the meantime"
            )
        return flow_id

    async def do_end(self, browser: FlowBrowser) -> None:
        """End all flows of a browser that signs out."""
        await self._store.remove_browser(browser.hash)

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` expired steps; return how many."""
        return await self._store.remove_old(self._now(), limit)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)
