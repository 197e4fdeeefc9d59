"""Runs a sign-in with an identity provider: redirect to it, callback, account, and redirect to
where the sign-in began.

Laws:
- A login token is sent only to an address of the configuration, or to one that the user has seen
  and agreed to.
- A user with outstanding terms of service accepts them before a token is sent, on every path.
- The provider's answer holds only for the credential epoch of the account in which it arrived,
  however long the user then stays on a page.
- The user reads which operation of a client they confirm before they leave for the provider. The
  provider authenticates them again, even with an existing session there.

spec: client-server-api#sso-client-loginauthentication
"""

from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_plus, urlencode

import msgspec
from twisted.logger import Logger

from federation.api.request import RequestContext
from federation.protocol.errors import MatrixError, UserDeactivated, UserLocked
from federation.protocol.ids import UserID, localpart_of
from homeserver.services.login.credential_epoch import Era
from homeserver.services.login.login_tokens import LoginTokens, Origin
from homeserver.services.login.uia import UIA
from homeserver.services.login.uia_stages import SSO
from homeserver.services.pages.external_links import read_link
from homeserver.services.terms.consent import Consents
from homeserver.services.upstream.accounts import UpstreamAccounts
from homeserver.services.upstream.identity import (
    ForClient,
    ForConfirmation,
    ForPage,
    OtherPerson,
    ProviderInfo,
    Purpose,
    Reason,
    Refused,
    UpstreamIdentity,
    UpstreamProvider,
    fit_localpart,
)
from homeserver.services.upstream.login_flows import (
    AWAY,
    BACK,
    CLIENT,
    CONFIRM,
    NAME,
    Browser,
    Flow,
    UpstreamFlows,
    origin_of,
)
from storage.accounts.accounts import AccountStore

_FIRST_ERA: Final = 0
"""The credential epoch of a new account."""


class Leave(msgspec.Struct, frozen=True):
    """Redirect the browser to `url`, and give it the cookie of `browser`."""

    url: str
    browser: Browser | None = None


class AskName(msgspec.Struct, frozen=True):
    """Show the page that asks for the name of the new account."""

    flow_id: str
    purpose: Purpose
    provider: str
    username: str
    identity: UpstreamIdentity
    error: MatrixError | None = None


class AskClient(msgspec.Struct, frozen=True):
    """Show the page that asks whether to continue to a client."""

    flow_id: str
    user_id: UserID
    redirect_url: str


class AskConfirm(msgspec.Struct, frozen=True):
    """Show the page that describes the operation to confirm."""

    flow_id: str
    browser: Browser
    operation: str
    user_id: UserID
    providers: Sequence[ProviderInfo]


class Confirmed(msgspec.Struct, frozen=True):
    """The operation is confirmed; the client continues."""


class SignedIn(msgspec.Struct, frozen=True):
    """The user is signed in to this server's pages and continues at the path `next`. `proved_ts`:
    time of their last authentication, in milliseconds since 1970; 0: unknown. `era`: the credential
    epoch of their account."""

    user_id: UserID
    next: str
    origin: Origin
    proved_ts: int
    era: int


Step = Leave | AskName | AskClient | Confirmed | SignedIn


class UpstreamSignIn:
    """Leads users through the steps of an upstream sign-in."""

    log = Logger()

    def __init__(
        self,
        providers: Sequence[UpstreamProvider],
        flows: UpstreamFlows,
        accounts: UpstreamAccounts,
        account_store: AccountStore,
        login_tokens: LoginTokens,
        uia: UIA,
        consents: Consents,
        *,
        known_clients: Sequence[str],
        update_profiles: bool,
        client_path: str,
    ) -> None:
        """`known_clients`: URL prefixes that get tokens without a question. `client_path`: the page
        of this server that sends a user who is signed in to its pages on to a client."""
        self._consents = consents
        self._client_path = client_path
        self._providers = {provider.info.provider_id: provider for provider in providers}
        self._flows = flows
        self._accounts = accounts
        self._account_store = account_store
        self._login_tokens = login_tokens
        self._uia = uia
        self._known_clients = tuple(known_clients)
        self._update_profiles = update_profiles
        self.providers: Sequence[ProviderInfo] = tuple(provider.info for provider in providers)
        """The providers that users choose from."""

    async def get_refused(self, refused: Refused) -> UserID | None:
        """As `UpstreamAccounts.get_refused`."""
        return await self._accounts.get_refused(refused)

    def find_browser(self, context: RequestContext) -> Browser | None:
        """As `UpstreamFlows.find_browser`."""
        return self._flows.find_browser(context)

    def cookie_of(self, context: RequestContext, browser: Browser) -> str:
        """As `UpstreamFlows.cookie_of`."""
        return self._flows.cookie_of(context, browser)

    def check_client(self, redirect_url: str) -> None:
        """Raises `Refused` for an address that cannot be a client's."""
        if read_link(redirect_url) is None:
            raise Refused(Reason.BAD_ADDRESS)

    async def depart(self, provider_id: str, purpose: Purpose, browser: Browser | None) -> Leave:
        """Begin a flow and return the redirect to a provider. Raises `Refused`."""
        provider = self._providers.get(provider_id)
        if provider is None:
            raise Refused(Reason.UNKNOWN_PROVIDER)
        if isinstance(purpose, ForClient):
            self.check_client(purpose.redirect_url)
        browser = browser or self._flows.new_browser()
        flow_id = self._flows.new_id()
        again = isinstance(purpose, ForConfirmation) or (
            isinstance(purpose, ForPage) and purpose.again
        )
        departure = await provider.depart(flow_id, again=again)
        flow = Flow(provider=provider_id, purpose=purpose, kept=dict(departure.kept))
        await self._flows.begin(AWAY, browser, flow, flow_id)
        return Leave(departure.url, browser)

    async def begin_confirmation(self, session_id: str, browser: Browser | None) -> AskConfirm:
        """Begin a confirmation; return the page shown before the redirect. Raises `Refused`."""
        operation = await self._uia.get_operation(session_id)
        if operation is None or operation.user_id is None or not self.providers:
            raise Refused(Reason.OLD)
        browser = browser or self._flows.new_browser()
        flow_id = await self._flows.begin(
            CONFIRM, browser, Flow(purpose=ForConfirmation(session_id))
        )
        return AskConfirm(flow_id, browser, operation.name, operation.user_id, self.providers)

    async def do_begin_confirmation(
        self, flow_id: str, provider_id: str, browser: Browser | None
    ) -> Leave:
        """Return the redirect to the provider that the user chose. Raises `Refused`."""
        flow = await self._flows.take(flow_id, CONFIRM, browser)
        return await self.depart(provider_id, flow.purpose, browser)

    async def take_back(self, flow_id: str, browser: Browser | None) -> Flow:
        """Take the flow of a browser that returns from a provider with its cookie. Raises
        `Refused`."""
        return await self._flows.take(flow_id, AWAY, browser)

    async def take_back_from_anywhere(self, provider_id: str, flow_id: str) -> tuple[Flow, bytes]:
        """As `take_back`, for an answer that a provider's page posts, so that the browser sends no
        cookie. Pass the result to `hold`."""
        flow, browser_hash = await self._flows.take_from_anywhere(flow_id, AWAY)
        if flow.provider != provider_id:
            raise Refused(Reason.OLD)
        return flow, browser_hash

    async def hold(self, flow: Flow, identity: UpstreamIdentity, browser_hash: bytes) -> str:
        """Store a checked answer until the browser comes with its cookie; return the id for
        `go_on`."""
        era = await self._accounts.get_era(self._info(flow), identity)
        held = _next_of(flow, identity, era=era)
        return await self._flows.begin_for(BACK, browser_hash, held)

    async def go_on(self, flow_id: str, browser: Browser | None, languages: str) -> Step:
        """Return the next step for an answer that `hold` stored. Raises `Refused`."""
        flow = await self._flows.take(flow_id, BACK, browser)
        assert flow.identity is not None
        assert browser is not None
        return await self.arrive(flow, flow.identity, browser, languages)

    async def arrive(
        self, flow: Flow, identity: UpstreamIdentity, browser: Browser, languages: str
    ) -> Step:
        """Return the next step once a provider has identified the user. Raises `Refused`."""
        info = self._info(flow)
        account = await self._accounts.find(info, identity)
        if account is not None and flow.era is not None and account.era != flow.era:
            raise Refused(
                Reason.OLD, f"the credentials of {account.user_id} changed in the meantime"
            )
        if isinstance(flow.purpose, ForConfirmation):
            return await self._confirm(
                flow.purpose, None if account is None else account.user_id, info
            )
        if account is not None:
            user_id = UserID(account.user_id)
            if self._update_profiles:
                await self._accounts.do_update(info, {user_id: identity})
            return await self._finish(flow, identity, user_id, account.era, browser)
        if not info.enable_registration:
            raise Refused(Reason.NO_ACCOUNT)
        made = await self._accounts.do_make_of(info, identity, languages)
        if made is not None:
            return await self._finish(flow, identity, made, _FIRST_ERA, browser)
        username = "" if identity.localpart is None else fit_localpart(identity.localpart)
        return await self._ask_name(flow, identity, browser, username)

    async def do_choose_name(
        self, flow_id: str, username: str, browser: Browser | None, languages: str
    ) -> Step:
        """Create the account with the name that the user chose. Raises `Refused`."""
        flow = await self._flows.take(flow_id, NAME, browser)
        assert flow.identity is not None
        assert browser is not None
        try:
            user_id = await self._accounts.do_make(
                self._info(flow), flow.identity, username, languages
            )
        except MatrixError as error:
            return await self._ask_name(flow, flow.identity, browser, username, error)
        return await self._finish(flow, flow.identity, user_id, _FIRST_ERA, browser)

    async def do_go_to_client(self, flow_id: str, browser: Browser | None) -> Leave:
        """Return the redirect to the client, which the user agreed to. Raises `Refused`."""
        flow = await self._flows.take(flow_id, CLIENT, browser)
        assert flow.identity is not None
        assert flow.user_id is not None
        assert isinstance(flow.purpose, ForClient)
        assert flow.era is not None
        self._accounts.check_usable(
            (await self._account_store.get_accounts([flow.user_id]))[flow.user_id]
        )
        return await self._leave(flow, flow.identity, UserID(flow.user_id), flow.era, flow.purpose)

    async def do_forget(self, context: RequestContext) -> None:
        """End the flows of the requesting browser, which signs out."""
        browser = self._flows.find_browser(context)
        if browser is not None:
            await self._flows.do_end(browser)

    def _info(self, flow: Flow) -> ProviderInfo:
        provider = self._providers.get(flow.provider)
        if provider is None:  # removed from the configuration since the flow began
            raise Refused(Reason.UNKNOWN_PROVIDER)
        return provider.info

    async def _ask_name(
        self,
        flow: Flow,
        identity: UpstreamIdentity,
        browser: Browser,
        username: str,
        error: MatrixError | None = None,
    ) -> AskName:
        if error is None and username:
            try:
                await self._accounts.check_free(username)
            except MatrixError as found:
                error = found
        flow_id = await self._flows.begin(NAME, browser, _next_of(flow, identity))
        return AskName(flow_id, flow.purpose, self._info(flow).name, username, identity, error)

    async def _finish(
        self, flow: Flow, identity: UpstreamIdentity, user_id: UserID, era: int, browser: Browser
    ) -> Step:
        account = self._accounts.check_usable(
            (await self._account_store.get_accounts([user_id]))[user_id]
        )
        if account.awaiting_ts is not None:
            raise Refused(Reason.AWAITING_APPROVAL, f"{user_id} awaits approval", user_id=user_id)
        purpose = flow.purpose
        if isinstance(purpose, ForPage):
            return self._signed_in(flow, identity, user_id, era, purpose.next)
        assert isinstance(purpose, ForClient)
        if await self._consents.get_owed(user_id):
            # this page shows the terms before it continues to the client
            path = f"{self._client_path}?{urlencode({'redirectUrl': purpose.redirect_url})}"
            return self._signed_in(flow, identity, user_id, era, path)
        if self.is_known(purpose.redirect_url):
            return await self._leave(flow, identity, user_id, era, purpose)
        next_flow = _next_of(flow, identity, user_id=user_id, era=era)
        return AskClient(
            await self._flows.begin(CLIENT, browser, next_flow), user_id, purpose.redirect_url
        )

    @staticmethod
    def _signed_in(
        flow: Flow, identity: UpstreamIdentity, user_id: UserID, era: int, next_path: str
    ) -> SignedIn:
        return SignedIn(user_id, next_path, origin_of(flow, identity), identity.proved_ts or 0, era)

    def is_known(self, redirect_url: str) -> bool:
        """Return whether this address gets a token without a question."""
        return any(is_beginning(known, redirect_url) for known in self._known_clients)

    async def do_give_token(
        self, user_id: UserID, origin: Origin | None, redirect_url: str, era: Era
    ) -> str:
        """Issue a login token to a user who agreed to continue to a client; return the client's
        address with the token. Raises as `check_era`."""
        return with_token(redirect_url, await self._login_tokens.do_give_to(user_id, origin, era))

    async def _leave(
        self, flow: Flow, identity: UpstreamIdentity, user_id: UserID, era: int, purpose: ForClient
    ) -> Leave:
        origin = origin_of(flow, identity)
        try:
            url = await self.do_give_token(user_id, origin, purpose.redirect_url, era)
        except MatrixError as error:
            raise refused_in_the_meantime(user_id, error) from None
        self.log.info(
            "{user} signs in with {provider}", user=localpart_of(user_id), provider=flow.provider
        )
        return Leave(url)

    async def _confirm(
        self, purpose: ForConfirmation, user_id: str | None, info: ProviderInfo
    ) -> Confirmed:
        operation = await self._uia.get_operation(purpose.uia_session)
        if operation is None or operation.user_id is None:
            raise Refused(Reason.OLD)
        if operation.user_id != user_id:
            raise OtherPerson(operation.name, operation.user_id, user_id, info)
        if not await self._uia.do_prove(purpose.uia_session, SSO):
            raise Refused(Reason.OLD)
        return Confirmed()


def _next_of(
    flow: Flow, identity: UpstreamIdentity, *, user_id: UserID | None = None, era: int | None = None
) -> Flow:
    """Return the flow with the identity that the provider returned."""
    return msgspec.structs.replace(flow, kept={}, identity=identity, user_id=user_id, era=era)


def refused_in_the_meantime(user_id: UserID, error: MatrixError) -> Refused:
    """Turn an error of `check_era` into a refusal."""
    if isinstance(error, UserLocked):
        return Refused(Reason.LOCKED, f"{user_id} is locked", user_id=user_id)
    if isinstance(error, UserDeactivated):
        return Refused(Reason.DEACTIVATED, f"{user_id} is deactivated", user_id=user_id)
    return Refused(Reason.OLD, error.text)


def is_beginning(known: str, address: str) -> bool:
    """Return whether `address` equals `known` or is below it. `https://a.example` is no prefix of
    `https://a.example.org`."""
    return address.startswith(known) and (
        known.endswith("/") or address[len(known) :][:1] in ("", "/", "?", "#")
    )


def with_token(address: str, token: str) -> str:
    """Return the address with the token in its query, in place of any `loginToken` it has."""
    rest, hash_sign, fragment = address.partition("#")
    path, _, query = rest.partition("?")
    parts = [
        part
        for part in query.split("&")
        if part and unquote_plus(part.partition("=")[0]) != "loginToken"
    ]
    return f"{path}?{'&'.join([*parts, f'loginToken={token}'])}{hash_sign}{fragment}"
