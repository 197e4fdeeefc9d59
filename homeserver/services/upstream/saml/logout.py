"""Single logout with a SAML provider: a logout here ends the session there, and the reverse.

Laws:
- A logout request takes effect once, and only if the provider signed it, it is addressed to this
  server, and it has not expired.
- The request ends the devices, browser sessions, unused login tokens and codes, and pending flows
  of the sign-in that it names.
- If the request or the sign-in has no `SessionIndex`, the user's sessions cannot be distinguished.
  The request then also ends everything that would let the user in without authentication.
- The provider's response to our own logout request is not evaluated: the logout here is already
  done.

spec: saml-profiles-2.0-os section 4.4
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, Protocol
from urllib.parse import unquote_plus

import msgspec
from twisted.logger import Logger

from federation.protocol.ids import DeviceID, UserID
from homeserver.services.login.login_tokens import ProviderSignIn
from homeserver.services.login.passwords import Threads
from homeserver.services.login.sessions import Sessions
from homeserver.services.upstream.ended_sessions import EndedProviderSessions
from homeserver.services.upstream.identity import RefusalReason, SignInRefused
from homeserver.services.upstream.saml.metadata import SAML_WORK, SAMLMetadata
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.browser_sessions import BrowserSessionStore
from storage.upstream.login_flows import UpstreamFlowStore
from storage.upstream.sessions import ProviderSessions, UpstreamSessionStore

MAX_REQUEST_LENGTH: Final = 64 * 1024
MAX_RELAY_STATE_LENGTH: Final = 80
"""In bytes; limit of the SAML bindings specification."""
_HASH_CHARS: Final = 24
_REQUEST, _RELAY_STATE, _ALGORITHM, _SIGNATURE = "SAMLRequest", "RelayState", "SigAlg", "Signature"
_SIGNED: Final = (_REQUEST, _RELAY_STATE, _ALGORITHM)
"""The parameters that a signature in a query covers, in this order."""


class SAMLSession(msgspec.Struct, frozen=True):
    """A session at the provider: the user's `NameID`, and the `SessionIndex` (empty if none)."""

    name: str
    index: str = ""
    format: str | None = None
    qualifier: str | None = None
    sp_qualifier: str | None = None


class DetachedSignature(msgspec.Struct, frozen=True):
    """A detached signature, in the query next to the request (`HTTP-Redirect`). `signed`: the text
    that it covers."""

    algorithm: str
    signature: str
    signed: str


class SAMLLogoutMessage(msgspec.Struct, frozen=True):
    """A logout request as received. `signature`: the detached one (`HTTP-Redirect`); None for a
    form (`HTTP-POST`). `is_soap`: a SOAP envelope that the provider sent directly."""

    request: str
    relay_state: str | None = None
    signature: DetachedSignature | None = None
    is_soap: bool = False


class SAMLLogoutRequest(msgspec.Struct, frozen=True):
    """A checked logout request. `indexes`: the user's sessions to end; all if empty. `expires`:
    until when to store the request's ID, in seconds since 1970. `response`: the URL that takes the
    browser to the provider with our response, None if the provider has no such URL; for SOAP, the
    envelope with the response."""

    request_id: str
    expires: float
    name: str
    indexes: Sequence[str]
    response: str | None


class SAMLLogoutLibrary(Protocol):
    """The logout part of the SAML library. Call its methods in threads; they are slow. They raise
    `SignInRefused`."""

    def make_logout(self, session: SAMLSession, relay_state: str) -> str | None:
        """Return the URL that signs the browser out at the provider; None if it offers none."""
        ...

    def read_logout(self, message: SAMLLogoutMessage) -> SAMLLogoutRequest:
        """Check and read a provider's request."""
        ...


class SAMLLogout:
    """Handles logout in both directions. `library` is None if no SAML provider is configured."""

    log = Logger()

    def __init__(
        self,
        *,
        provider_id: str,
        threads: Threads,
        database: Database,
        library: SAMLLogoutLibrary | None,
        metadata: SAMLMetadata | None,
        flows: UpstreamFlowStore,
        upstream_sessions: UpstreamSessionStore,
        browser_sessions: BrowserSessionStore,
        ended: EndedProviderSessions,
        sessions: Sessions,
    ) -> None:
        self._provider_id = provider_id
        self._threads = threads
        self._database = database
        self._library = library
        self._metadata = metadata
        self._flows = flows
        self._upstream_sessions = upstream_sessions
        self._browser_sessions = browser_sessions
        self._ended = ended
        self._sessions = sessions

    async def make_logout_url(self, origin: str | None, next_path: str) -> str | None:
        """Return the URL that signs out a browser at the provider, after it signed out of this
        server's pages; None if the sign-in did not come from the provider, or no request can be
        made. `origin`: from the `BrowserSession`. The provider returns `next_path`."""
        library, metadata = self._library, self._metadata
        sign_in = None if origin is None else msgspec.json.decode(origin, type=ProviderSignIn)
        if (
            library is None
            or metadata is None
            or sign_in is None
            or sign_in.provider != self._provider_id
        ):
            return None
        session = decode_session(sign_in.session or "")
        if session is None:
            return None
        relay_state = next_path if len(next_path.encode()) <= MAX_RELAY_STATE_LENGTH else ""
        try:
            await metadata.make_ready()
            return await self._threads.run(
                lambda: library.make_logout(session, relay_state), SAML_WORK
            )
        except SignInRefused as refused:
            self.log.warn(
                "a user is signed out here, but not at the provider: {why}", why=str(refused)
            )
            return None

    async def do_end(self, message: SAMLLogoutMessage) -> str | None:
        """End what a provider's logout request names; return our response, as
        `SAMLLogoutRequest.response`. Raises `SignInRefused`."""
        library, metadata = self._library, self._metadata
        if library is None or metadata is None:
            raise SignInRefused(RefusalReason.UNKNOWN_PROVIDER)
        if not message.request or len(message.request) > MAX_REQUEST_LENGTH:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, "the logout request is missing or too long"
            )
        await metadata.make_ready()
        logout = await self._threads.run(lambda: library.read_logout(message), SAML_WORK)
        ended = await self._database.write("end_saml_sessions", self._end, logout)
        if ended is not None:
            self.log.info(
                "{provider} ended {count} sessions", provider=self._provider_id, count=ended
            )
        return logout.response

    def _end(self, txn: WriteTransaction, logout: SAMLLogoutRequest) -> int | None:
        """End the named sessions in the write that marks the request as used. Return how many; None
        if the request was used before."""
        if not self._flows.take_assertion(txn, logout.request_id, int(logout.expires * 1000)):
            return None
        scope = LogoutScope(name=logout.name, indexes=logout.indexes)
        known = self._upstream_sessions.get_sessions_by_prefix(txn, self._provider_id, scope.prefix)
        rows = [row for row in known if scope.covers(row.session_id or "")]
        for row in rows:
            self._sessions.remove_devices(txn, UserID(row.user_id), [DeviceID(row.device_id)])
        for prefix in scope.prefixes:
            self._ended.end(txn, ProviderSessions(self._provider_id, prefix, is_prefix=True), None)
        ambiguous = {row.user_id for row in rows if not scope.names_exactly(row.session_id or "")}
        for token_hash, user_id, origin in self._browser_sessions.get_browsers_by_session_prefix(
            txn, scope.prefix
        ):
            sign_in = msgspec.json.decode(origin, type=ProviderSignIn)
            if sign_in.provider != self._provider_id or not scope.covers(sign_in.session or ""):
                continue
            if scope.names_exactly(sign_in.session or ""):
                self._ended.end_browser(txn, token_hash, user_id)
            else:
                ambiguous.add(user_id)
        for user_id in ambiguous:
            self._sessions.revoke_credentials(txn, user_id)
        return len(rows)


def parse_query(query: str) -> SAMLLogoutMessage:
    """Read the message in a query (`HTTP-Redirect`). The signature covers the text as sent, since
    its encoding is not unique. Raises `SignInRefused` if a parameter is missing or occurs twice.

    spec: saml-bindings-2.0-os section 3.4.4.1
    """
    sent: dict[str, str] = {}
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name in _SIGNED or name == _SIGNATURE:
            if name in sent:
                raise SignInRefused(
                    RefusalReason.PROVIDER_FAILED, f"the query has more than one {name}"
                )
            sent[name] = value
    read = {name: unquote_plus(value) for name, value in sent.items()}
    if not {_REQUEST, _ALGORITHM, _SIGNATURE} <= read.keys():
        raise SignInRefused(RefusalReason.PROVIDER_FAILED, "the SAML request is not signed")
    signed = "&".join(f"{name}={sent[name]}" for name in _SIGNED if name in sent)
    return SAMLLogoutMessage(
        read[_REQUEST],
        read.get(_RELAY_STATE),
        DetachedSignature(read[_ALGORITHM], read[_SIGNATURE], signed),
    )


def encode_session(session: SAMLSession) -> str:
    """Return the stored text of a session: hashes of name and index, which lookups use as prefix,
    and the encoded session."""
    encoded = urlsafe_b64encode(msgspec.json.encode(session)).decode()
    return f"{_hash(session.name)}.{_hash(session.index)}.{encoded}"


def decode_session(text: str) -> SAMLSession | None:
    """Return the session in a text that `encode_session` made; None for the empty text."""
    encoded = text.rpartition(".")[2]
    return msgspec.json.decode(urlsafe_b64decode(encoded), type=SAMLSession) if encoded else None


class LogoutScope:
    """The sessions that a logout request covers: a user's sessions with these indexes and those
    without an index; all of them if the request has no index."""

    def __init__(self, *, name: str, indexes: Sequence[str]) -> None:
        self.prefix = f"{_hash(name)}."
        """Prefix of the stored texts of all of the user's sessions."""
        self._named = {_hash(index) for index in indexes if index}
        self._hashes = {*self._named, _hash("")} if indexes else None

    @property
    def prefixes(self) -> Sequence[str]:
        """Prefixes of the stored texts of the covered sessions, each ending with a dot."""
        if self._hashes is None:
            return [self.prefix]
        return [f"{self.prefix}{hashed}." for hashed in sorted(self._hashes)]

    def names_exactly(self, session: str) -> bool:
        """Return whether the request names exactly this session (`encode_session`)."""
        return session.startswith(self.prefix) and session.split(".")[1] in self._named

    def covers(self, session: str) -> bool:
        """Return whether the request covers this session (`encode_session`)."""
        if not session.startswith(self.prefix):
            return False
        return self._hashes is None or session.split(".")[1] in self._hashes


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_CHARS]
