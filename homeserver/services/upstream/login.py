"""Runs a sign-in with an identity provider: redirects to the provider, handles the callback, finds
or creates the account, and redirects to the client or page for which the user signs in.

Laws:
- A login token is sent only to a URL that the configuration allows, or to one that the user has
  seen and accepted.
- A user with outstanding terms of service must accept them before a login token is sent, even if
  the configuration allows the URL.
- The provider's answer becomes invalid when the account's credential epoch changes. This also holds
  while a page waits for the user to continue.
- In UIA, users can confirm an operation by a sign-in with the provider. A page first describes the
  operation. The provider then authenticates the user again, even if a session exists there.

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
from homeserver.services.login.credential_epoch import CredentialEpoch
from homeserver.services.login.login_tokens import LoginTokens, ProviderSignIn
from homeserver.services.login.uia import UIA
from homeserver.services.login.uia_stages import SSO
from homeserver.services.pages.external_links import parse_link
from homeserver.services.terms.consent import Consents
from homeserver.services.upstream.accounts import UpstreamAccounts
from homeserver.services.upstream.identity import (
    ForClient,
    ForConfirmation,
    ForPage,
    ProviderInfo,
    Purpose,
    RefusalReason,
    SignInRefused,
    UpstreamIdentity,
    UpstreamProvider,
    WrongAccount,
    map_to_localpart,
)
from homeserver.services.upstream.login_flows import (
    AT_PROVIDER,
    CHOOSE_NAME,
    CONFIRM_CLIENT,
    DESCRIBE_OPERATION,
    IDENTIFIED,
    FlowBrowser,
    SignInFlow,
    UpstreamFlows,
    origin_of,
)
from storage.accounts.accounts import AccountStore

_FIRST_EPOCH: Final = 0
"""The credential epoch of a new account."""


class BrowserRedirect(msgspec.Struct, frozen=True):
    """Redirect the browser to `url`, and give it the cookie of `browser`."""

    url: str
    browser: FlowBrowser | None = None


class ChooseName(msgspec.Struct, frozen=True):
    """Show the page that asks for the name of the new account."""

    flow_id: str
    purpose: Purpose
    provider: str
    username: str
    identity: UpstreamIdentity
    error: MatrixError | None = None


class ConfirmClient(msgspec.Struct, frozen=True):
    """Show the page that asks whether to continue to a client."""

    flow_id: str
    user_id: UserID
    redirect_url: str


class DescribeOperation(msgspec.Struct, frozen=True):
    """Show the page that describes the operation to confirm."""

    flow_id: str
    browser: FlowBrowser
    operation: str
    user_id: UserID
    providers: Sequence[ProviderInfo]


class OperationConfirmed(msgspec.Struct, frozen=True):
    """The operation is confirmed; the client continues."""


class BrowserSignedIn(msgspec.Struct, frozen=True):
    """The user is signed in to this server's pages and continues at the path `next_path`.
    `authenticated_ts`: time of their last authentication, in milliseconds since 1970; 0: unknown.
    `epoch`: the credential epoch of their account."""

    user_id: UserID
    next_path: str
    origin: ProviderSignIn
    authenticated_ts: int
    epoch: int


Step = BrowserRedirect | ChooseName | ConfirmClient | OperationConfirmed | BrowserSignedIn


class UpstreamSignIn:
    """Leads users through the steps of an upstream sign-in."""

    log = Logger()

    def __init__(
        self,
        *,
        providers: Sequence[UpstreamProvider],
        flows: UpstreamFlows,
        accounts: UpstreamAccounts,
        account_store: AccountStore,
        login_tokens: LoginTokens,
        uia: UIA,
        consents: Consents,
        trusted_clients: Sequence[str],
        update_profiles: bool,
        client_path: str,
    ) -> None:
        """`trusted_clients`: URL prefixes that get tokens without a question. `client_path`: the
        page of this server that sends a user who is signed in to its pages on to a client."""
        self._consents = consents
        self._client_path = client_path
        self._providers = {provider.info.provider_id: provider for provider in providers}
        self._flows = flows
        self._accounts = accounts
        self._account_store = account_store
        self._login_tokens = login_tokens
        self._uia = uia
        self._known_clients = tuple(trusted_clients)
        self._update_profiles = update_profiles
        self.providers: Sequence[ProviderInfo] = tuple(provider.info for provider in providers)
        """The providers that users choose from."""

    async def get_refused_user(self, refused: SignInRefused) -> UserID | None:
        """Call `UpstreamAccounts.get_refused_user`."""
        return await self._accounts.get_refused_user(refused)

    def find_browser(self, context: RequestContext) -> FlowBrowser | None:
        """Call `UpstreamFlows.find_browser`."""
        return self._flows.find_browser(context)

    def cookie_of(self, context: RequestContext, browser: FlowBrowser) -> str:
        """Call `UpstreamFlows.cookie_of`."""
        return self._flows.cookie_of(context, browser)

    def check_client(self, redirect_url: str) -> None:
        """Raises `SignInRefused` for an address that cannot be a client's."""
        if parse_link(redirect_url) is None:
            raise SignInRefused(RefusalReason.BAD_ADDRESS)

    async def begin(
        self, provider_id: str, purpose: Purpose, browser: FlowBrowser | None
    ) -> BrowserRedirect:
        """Begin a flow and return the redirect to a provider. Raises `SignInRefused`."""
        provider = self._providers.get(provider_id)
        if provider is None:
            raise SignInRefused(RefusalReason.UNKNOWN_PROVIDER)
        if isinstance(purpose, ForClient):
            self.check_client(purpose.redirect_url)
        browser = browser or self._flows.new_browser()
        flow_id = self._flows.new_id()
        again = isinstance(purpose, ForConfirmation) or (
            isinstance(purpose, ForPage) and purpose.reauthenticate
        )
        redirect = await provider.begin_sign_in(flow_id, reauthenticate=again)
        flow = SignInFlow(
            provider=provider_id, purpose=purpose, provider_state=dict(redirect.provider_state)
        )
        await self._flows.begin(AT_PROVIDER, browser, flow, flow_id)
        return BrowserRedirect(redirect.url, browser)

    async def begin_confirmation(
        self, session_id: str, browser: FlowBrowser | None
    ) -> DescribeOperation:
        """Begin a confirmation; return the page shown before the redirect. Raises
        `SignInRefused`."""
        operation = await self._uia.get_operation(session_id)
        if operation is None or operation.user_id is None or not self.providers:
            raise SignInRefused(RefusalReason.OLD)
        browser = browser or self._flows.new_browser()
        flow_id = await self._flows.begin(
            DESCRIBE_OPERATION, browser, SignInFlow(purpose=ForConfirmation(session_id))
        )
        return DescribeOperation(
            flow_id, browser, operation.name, operation.user_id, self.providers
        )

    async def do_redirect_to_confirm(
        self, flow_id: str, provider_id: str, browser: FlowBrowser | None
    ) -> BrowserRedirect:
        """Return the redirect to the provider that the user chose. Raises `SignInRefused`."""
        flow = await self._flows.take(flow_id, DESCRIBE_OPERATION, browser)
        return await self.begin(provider_id, flow.purpose, browser)

    async def take_callback(self, flow_id: str, browser: FlowBrowser | None) -> SignInFlow:
        """Take the flow of a browser that returns from a provider with its cookie. Raises
        `SignInRefused`."""
        return await self._flows.take(flow_id, AT_PROVIDER, browser)

    async def take_callback_without_cookie(
        self, provider_id: str, flow_id: str
    ) -> tuple[SignInFlow, bytes]:
        """Do what `take_callback` does, for an answer that a provider's page posts.

        The browser sends no cookie with it. Pass the result to `store_identity`."""
        flow, browser_hash = await self._flows.take_without_cookie(flow_id, AT_PROVIDER)
        if flow.provider != provider_id:
            raise SignInRefused(RefusalReason.OLD)
        return flow, browser_hash

    async def store_identity(
        self, flow: SignInFlow, identity: UpstreamIdentity, browser_hash: bytes
    ) -> str:
        """Store a checked identity until the browser comes with its cookie; return the ID for
        `resume`."""
        epoch = await self._accounts.get_epoch(self._info(flow), identity)
        identified = _next_flow(flow, identity, epoch=epoch)
        return await self._flows.begin_for(IDENTIFIED, browser_hash, identified)

    async def resume(self, flow_id: str, browser: FlowBrowser | None, languages: str) -> Step:
        """Return the next step for an identity that `store_identity` stored. Raises
        `SignInRefused`."""
        flow = await self._flows.take(flow_id, IDENTIFIED, browser)
        assert flow.identity is not None
        assert browser is not None
        return await self.complete(flow, flow.identity, browser, languages)

    async def complete(
        self, flow: SignInFlow, identity: UpstreamIdentity, browser: FlowBrowser, languages: str
    ) -> Step:
        """Return the next step once a provider has identified the user. Raises `SignInRefused`."""
        info = self._info(flow)
        account = await self._accounts.find(info, identity)
        if account is not None and flow.epoch is not None and account.epoch != flow.epoch:
            raise SignInRefused(
                RefusalReason.OLD, f"the credentials of {account.user_id} changed in the meantime"
            )
        if isinstance(flow.purpose, ForConfirmation):
            return await self._confirm(
                flow.purpose, None if account is None else account.user_id, info
            )
        if account is not None:
            user_id = UserID(account.user_id)
            if self._update_profiles:
                await self._accounts.do_update_profiles(info, {user_id: identity})
            return await self._finish(flow, identity, user_id, account.epoch, browser)
        if not info.enable_registration:
            raise SignInRefused(RefusalReason.NO_ACCOUNT)
        created = await self._accounts.do_create_with_suggested_name(info, identity, languages)
        if created is not None:
            return await self._finish(flow, identity, created, _FIRST_EPOCH, browser)
        username = "" if identity.localpart is None else map_to_localpart(identity.localpart)
        return await self._ask_name(flow, identity, browser, username)

    async def do_choose_name(
        self, flow_id: str, username: str, browser: FlowBrowser | None, languages: str
    ) -> Step:
        """Create the account with the name that the user chose. Raises `SignInRefused`."""
        flow = await self._flows.take(flow_id, CHOOSE_NAME, browser)
        assert flow.identity is not None
        assert browser is not None
        try:
            user_id = await self._accounts.do_create(
                self._info(flow), flow.identity, username, languages
            )
        except MatrixError as error:
            return await self._ask_name(flow, flow.identity, browser, username, error)
        return await self._finish(flow, flow.identity, user_id, _FIRST_EPOCH, browser)

    async def do_continue_to_client(
        self, flow_id: str, browser: FlowBrowser | None
    ) -> BrowserRedirect:
        """Return the redirect to the client, which the user agreed to. Raises `SignInRefused`."""
        flow = await self._flows.take(flow_id, CONFIRM_CLIENT, browser)
        assert flow.identity is not None
        assert flow.user_id is not None
        assert isinstance(flow.purpose, ForClient)
        assert flow.epoch is not None
        self._accounts.check_usable(
            (await self._account_store.get_accounts([flow.user_id]))[flow.user_id]
        )
        return await self._leave(
            flow, flow.identity, UserID(flow.user_id), flow.epoch, flow.purpose
        )

    async def do_end_flows(self, context: RequestContext) -> None:
        """End the flows of the requesting browser, which signs out."""
        browser = self._flows.find_browser(context)
        if browser is not None:
            await self._flows.do_end(browser)

    def _info(self, flow: SignInFlow) -> ProviderInfo:
        provider = self._providers.get(flow.provider)
        if provider is None:  # removed from the configuration since the flow began
            raise SignInRefused(RefusalReason.UNKNOWN_PROVIDER)
        return provider.info

    async def _ask_name(
        self,
        flow: SignInFlow,
        identity: UpstreamIdentity,
        browser: FlowBrowser,
        username: str,
        error: MatrixError | None = None,
    ) -> ChooseName:
        if error is None and username:
            try:
                await self._accounts.check_free(username)
            except MatrixError as found:
                error = found
        flow_id = await self._flows.begin(CHOOSE_NAME, browser, _next_flow(flow, identity))
        return ChooseName(flow_id, flow.purpose, self._info(flow).name, username, identity, error)

    async def _finish(
        self,
        flow: SignInFlow,
        identity: UpstreamIdentity,
        user_id: UserID,
        epoch: int,
        browser: FlowBrowser,
    ) -> Step:
        account = self._accounts.check_usable(
            (await self._account_store.get_accounts([user_id]))[user_id]
        )
        if account.approval_pending_ts is not None:
            raise SignInRefused(
                RefusalReason.AWAITING_APPROVAL, f"{user_id} awaits approval", user_id=user_id
            )
        purpose = flow.purpose
        if isinstance(purpose, ForPage):
            return self._signed_in(flow, identity, user_id, epoch, purpose.next_path)
        assert isinstance(purpose, ForClient)
        if await self._consents.get_missing(user_id):
            # this page shows the terms before it continues to the client
            path = f"{self._client_path}?{urlencode({'redirectUrl': purpose.redirect_url})}"
            return self._signed_in(flow, identity, user_id, epoch, path)
        if self.is_trusted_client(purpose.redirect_url):
            return await self._leave(flow, identity, user_id, epoch, purpose)
        next_flow = _next_flow(flow, identity, user_id=user_id, epoch=epoch)
        return ConfirmClient(
            await self._flows.begin(CONFIRM_CLIENT, browser, next_flow),
            user_id,
            purpose.redirect_url,
        )

    @staticmethod
    def _signed_in(
        flow: SignInFlow, identity: UpstreamIdentity, user_id: UserID, epoch: int, next_path: str
    ) -> BrowserSignedIn:
        return BrowserSignedIn(
            user_id, next_path, origin_of(flow, identity), identity.authenticated_ts or 0, epoch
        )

    def is_trusted_client(self, redirect_url: str) -> bool:
        """Return whether this address gets a token without a question."""
        return any(is_url_prefix(known, redirect_url) for known in self._known_clients)

    async def do_issue_token(
        self,
        user_id: UserID,
        origin: ProviderSignIn | None,
        redirect_url: str,
        epoch: CredentialEpoch,
    ) -> str:
        """Issue a login token to a user who agreed to continue to a client; return the client's
        address with the token. Raises what `check_epoch` raises."""
        return add_login_token(
            redirect_url, await self._login_tokens.do_issue_for_browser(user_id, origin, epoch)
        )

    async def _leave(
        self,
        flow: SignInFlow,
        identity: UpstreamIdentity,
        user_id: UserID,
        epoch: int,
        purpose: ForClient,
    ) -> BrowserRedirect:
        origin = origin_of(flow, identity)
        try:
            url = await self.do_issue_token(user_id, origin, purpose.redirect_url, epoch)
        except MatrixError as error:
            raise error_to_refusal(user_id, error) from None
        self.log.info(
            "{user} signs in with {provider}", user=localpart_of(user_id), provider=flow.provider
        )
        return BrowserRedirect(url)

    async def _confirm(
        self, purpose: ForConfirmation, user_id: str | None, info: ProviderInfo
    ) -> OperationConfirmed:
        operation = await self._uia.get_operation(purpose.uia_session)
        if operation is None or operation.user_id is None:
            raise SignInRefused(RefusalReason.OLD)
        if operation.user_id != user_id:
            raise WrongAccount(operation.name, operation.user_id, user_id, info)
        if not await self._uia.do_complete_stage(purpose.uia_session, SSO):
            raise SignInRefused(RefusalReason.OLD)
        return OperationConfirmed()


def _next_flow(
    flow: SignInFlow,
    identity: UpstreamIdentity,
    *,
    user_id: UserID | None = None,
    epoch: int | None = None,
) -> SignInFlow:
    """Return the flow with the identity that the provider returned."""
    return msgspec.structs.replace(
        flow, provider_state={}, identity=identity, user_id=user_id, epoch=epoch
    )


def error_to_refusal(user_id: UserID, error: MatrixError) -> SignInRefused:
    """Turn an error of `check_epoch` into a refusal."""
    if isinstance(error, UserLocked):
        return SignInRefused(RefusalReason.LOCKED, f"{user_id} is locked", user_id=user_id)
    if isinstance(error, UserDeactivated):
        return SignInRefused(
            RefusalReason.DEACTIVATED, f"{user_id} is deactivated", user_id=user_id
        )
    return SignInRefused(RefusalReason.OLD, error.text)


def is_url_prefix(known: str, address: str) -> bool:
    """Return whether `address` equals `known` or is below it. `https://a.example` is not a prefix
    of `https://a.example.org`."""
    return address.startswith(known) and (
        known.endswith("/") or address[len(known) :][:1] in ("", "/", "?", "#")
    )


def add_login_token(address: str, token: str) -> str:
    """Return the address with the token in its query, in place of any `loginToken` it has."""
    rest, hash_sign, fragment = address.partition("#")
    path, _, query = rest.partition("?")
    parts = [
        part
        for part in query.split("&")
        if part and unquote_plus(part.partition("=")[0]) != "loginToken"
    ]
    return f"{path}?{'&'.join([*parts, f'loginToken={token}'])}{hash_sign}{fragment}"
