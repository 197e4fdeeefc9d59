"""Ends sessions when an OpenID Connect provider reports that a user signed out there.

Laws:
- A provider can remove only devices that signed in with it, and only if the configuration allows
  it to end sessions.
- A logout token with `sid` names one session at the provider. It ends all that came from this
  session: devices, browser sessions, unused login tokens and codes, and pending flows
  (`homeserver/services/upstream/ended_sessions.py`).
- A logout token with only `sub` names a user. It ends all of the user's devices that signed in with
  this provider, and everything that would let the user in without authentication, such as browser
  sessions.
- A logout token is accepted once, so a stolen token cannot end later sessions.

spec: openid-connect-backchannel-1_0
"""

from collections.abc import Sequence

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.ids import DeviceID, UserID
from homeserver.services.login.login_tokens import ProviderSignIn
from homeserver.services.login.sessions import Sessions
from homeserver.services.upstream.ended_sessions import EndedProviderSessions
from homeserver.services.upstream.identity import RefusalReason, SignInRefused
from homeserver.services.upstream.oidc.provider import OIDCSignIn
from homeserver.services.upstream.oidc.tokens import parse_unverified
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.browser_sessions import BrowserSessionStore
from storage.upstream.external_ids import ExternalIdStore
from storage.upstream.login_flows import UpstreamFlowStore, take_logout_token
from storage.upstream.sessions import ProviderSessions, UpstreamSessionStore


class BackchannelLogout:
    """Ends sessions on request of the providers."""

    log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: UpstreamSessionStore,
        browsers: BrowserSessionStore,
        ended: EndedProviderSessions,
        flows: UpstreamFlowStore,
        links: ExternalIdStore,
        sessions: Sessions,
        providers: Sequence[OIDCSignIn],
    ) -> None:
        self._clock = clock
        self._database = database
        self._store = store
        self._browsers = browsers
        self._ended = ended
        self._flows = flows
        self._links = links
        self._sessions = sessions
        self._providers = tuple(provider for provider in providers if provider.ends_sessions)

    @property
    def is_offered(self) -> bool:
        """Whether any provider may end sessions."""
        return bool(self._providers)

    async def do_end(self, logout_token: str) -> int:
        """End what a logout token names; return the number of sessions. Raises `SignInRefused`."""
        provider = self._find(logout_token)
        claims = await provider.tokens.check_logout_token(logout_token)
        await provider.tokens.check_issuer(claims)
        session = claims.get("sid")
        subject = claims.get("sub")
        if session is not None and provider.ignores_subject:
            subject = None
        provider_id = provider.info.provider_id
        digest, until = provider.tokens.logout_token_id(logout_token, claims)

        def write(txn: WriteTransaction) -> int:
            if not take_logout_token(txn, digest, until, int(self._clock.seconds() * 1000)):
                raise SignInRefused(
                    RefusalReason.PROVIDER_FAILED, "the token is refused: it was used before"
                )
            rows = self._store.get_upstream_sessions(txn, provider_id, subject, session)
            for row in rows:
                self._sessions.remove_devices(txn, UserID(row.user_id), [DeviceID(row.device_id)])
            if session is not None:
                self._ended.end(txn, ProviderSessions(provider_id, session), subject)
                return len(rows) + self._end_browsers(txn, provider_id, subject, session)
            link = None
            if subject is not None:
                self._ended.end_user(txn, provider_id, subject)
                # without an account there is no credential epoch that ends pending flows
                self._flows.remove_person(txn, provider_id, subject)
                link = self._links.get_link_in(txn, provider_id, subject)
            for user_id in {row.user_id for row in rows} | (
                set() if link is None else {link.user_id}
            ):
                self._sessions.revoke_credentials(txn, user_id)
            return len(rows)

        ended = await self._database.write("end_upstream_sessions", write)
        self.log.info("{provider} ended {count} sessions", provider=provider_id, count=ended)
        return ended

    def _end_browsers(
        self, txn: WriteTransaction, provider_id: str, subject: str | None, session: str
    ) -> int:
        """End the browser sessions of this session at the provider; return how many."""
        ended = 0
        for token_hash, user_id, origin in self._browsers.get_browsers_of_session(txn, session):
            sign_in = msgspec.json.decode(origin, type=ProviderSignIn)
            if sign_in.provider == provider_id and subject in (None, sign_in.subject):
                self._ended.end_browser(txn, token_hash, user_id)
                ended += 1
        return ended

    def _find(self, token: str) -> OIDCSignIn:
        """Return the provider that the unverified token claims. The caller verifies it."""
        claims = parse_unverified(token)
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        for provider in self._providers:
            if provider.issuer == claims.get("iss") and provider.client_id in audiences:
                return provider
        raise SignInRefused(RefusalReason.PROVIDER_FAILED, "its issuer may not end sessions")
