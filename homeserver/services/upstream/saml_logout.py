"""Single logout with a SAML provider: who signs out here signs out there, and the other way round.

Laws:
- A request of the provider is signed by it, for this server, of now, and taken once. What ends is
  what came of the sign-in that it names, with what waits and what is under way by it. Where the
  provider cannot tell a person's sign-ins from one another (it names no session, or had not named
  it when they came), all ends that would let them in without proving who they are.
- What comes back for a request of ours changes nothing.

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
from homeserver.services.login.login_tokens import Origin
from homeserver.services.login.passwords import Threads
from homeserver.services.login.sessions import Sessions
from homeserver.services.upstream.ended_sessions import EndedSignIns
from homeserver.services.upstream.identity import Reason, Refused
from homeserver.services.upstream.saml_metadata import SAML_WORK, SAMLMetadata
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.browser_sessions import BrowserSessionStore
from storage.upstream.login_flows import UpstreamFlowStore
from storage.upstream.sessions import SignIns, UpstreamSessionStore

LONGEST_REQUEST: Final = 64 * 1024
LONGEST_RELAY_STATE: Final = 80
"""In bytes, as the specification of the bindings has it."""
_HASH_CHARS: Final = 24
_REQUEST, _RELAY_STATE, _ALGORITHM, _SIGNATURE = "SAMLRequest", "RelayState", "SigAlg", "Signature"
_SIGNED: Final = (_REQUEST, _RELAY_STATE, _ALGORITHM)
"""What a signature in a query is over, in this order."""


class SAMLSession(msgspec.Struct, frozen=True):
    """A sign-in as the provider names it: the person (a `NameID`), and the session (`SessionIndex`;
    empty where it has none)."""

    name: str
    index: str = ""
    format: str | None = None
    qualifier: str | None = None
    sp_qualifier: str | None = None


class BesideSignature(msgspec.Struct, frozen=True):
    """A signature that is not in the request but in the query with it (`HTTP-Redirect`). `signed`:
    the text that it is over."""

    algorithm: str
    signature: str
    signed: str


class LogoutMessage(msgspec.Struct, frozen=True):
    """A request as it came. `beside`: its signature where that came by `HTTP-Redirect`, None where
    it came in a form; `is_soap`: it is the envelope that the provider itself has sent."""

    request: str
    relay_state: str | None = None
    beside: BesideSignature | None = None
    is_soap: bool = False


class Logout(msgspec.Struct, frozen=True):
    """What a provider wants to end. `indexes`: which sessions of the person, all where there are
    none; `expires`: when the request is too old, in seconds since 1970; `answer`: where the browser
    goes with our answer, None where the provider wants none; to an envelope, the envelope with the
    answer."""

    request_id: str
    expires: float
    name: str
    indexes: Sequence[str]
    answer: str | None


class LogoutLibrary(Protocol):
    """The library, as far as logout goes. Its methods take long: they are for threads. They raise
    `Refused`."""

    def make_logout(self, session: SAMLSession, relay_state: str) -> str | None:
        """Where the browser goes to sign out there; None where the provider does not offer it."""
        ...

    def read_logout(self, message: LogoutMessage) -> Logout:
        """Check a request of the provider."""
        ...


class SAMLLogout:
    """Both ways. Without a `library` there is no provider."""

    log = Logger()

    def __init__(
        self,
        provider_id: str,
        threads: Threads,
        database: Database,
        library: LogoutLibrary | None,
        metadata: SAMLMetadata | None,
        flows: UpstreamFlowStore,
        upstream_sessions: UpstreamSessionStore,
        browser_sessions: BrowserSessionStore,
        ended: EndedSignIns,
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

    async def leave(self, origin: str | None, next_path: str) -> str | None:
        """Where the browser of somebody goes who has signed out of this server's pages, to sign out
        at the provider too; None where they did not come by it, or where it cannot be asked.
        `origin`: as `BrowserSession` has it; `next_path` comes back with them."""
        library, metadata = self._library, self._metadata
        came = None if origin is None else msgspec.json.decode(origin, type=Origin)
        if (
            library is None
            or metadata is None
            or came is None
            or came.provider != self._provider_id
        ):
            return None
        session = read_session(came.session or "")
        if session is None:
            return None
        relay_state = next_path if len(next_path.encode()) <= LONGEST_RELAY_STATE else ""
        try:
            await metadata.make_ready()
            return await self._threads.run(
                lambda: library.make_logout(session, relay_state), SAML_WORK
            )
        except Refused as refused:
            self.log.warn("somebody is signed out here only: {why}", why=str(refused))
            return None

    async def do_end(self, message: LogoutMessage) -> str | None:
        """The provider says that somebody has signed out there; our answer, as `Logout.answer`.
        Raises `Refused`."""
        library, metadata = self._library, self._metadata
        if library is None or metadata is None:
            raise Refused(Reason.UNKNOWN_PROVIDER)
        if not message.request or len(message.request) > LONGEST_REQUEST:
            raise Refused(Reason.PROVIDER_FAILED, "there is no request to sign out")
        await metadata.make_ready()
        logout = await self._threads.run(lambda: library.read_logout(message), SAML_WORK)
        ended = await self._database.write("end_saml_sessions", self._end, logout)
        if ended is not None:
            self.log.info(
                "{provider} ended {count} sessions", provider=self._provider_id, count=ended
            )
        return logout.answer

    def _end(self, txn: WriteTransaction, logout: Logout) -> int | None:
        """How many sessions; None where the request was taken before. What is taken has ended what
        it names: one write."""
        if not self._flows.take_assertion(txn, logout.request_id, int(logout.expires * 1000)):
            return None
        means = Meant(logout.name, logout.indexes)
        known = self._upstream_sessions.get_sessions_beginning(
            txn, self._provider_id, means.beginning
        )
        rows = [row for row in known if means.has(row.session or "")]
        for row in rows:
            self._sessions.remove_devices(txn, UserID(row.user_id), [DeviceID(row.device_id)])
        for beginning in means.beginnings:
            self._ended.end(txn, SignIns(self._provider_id, beginning, is_beginning=True), None)
        of_all = {row.user_id for row in rows if not means.names(row.session or "")}
        for token_hash, user_id, origin in self._browser_sessions.get_browsers_by_session(
            txn, means.beginning
        ):
            came = msgspec.json.decode(origin, type=Origin)
            if came.provider != self._provider_id or not means.has(came.session or ""):
                continue
            if means.names(came.session or ""):
                self._ended.end_browser(txn, token_hash, user_id)
            else:
                of_all.add(user_id)
        for user_id in of_all:
            self._sessions.remove_ways_in(txn, user_id)
        return len(rows)


def read_query(query: str) -> LogoutMessage:
    """The message in a query (`HTTP-Redirect`). What is signed is the text as it was sent: there is
    more than one way to encode it. Raises `Refused` where something is lacking, or there twice.

    spec: saml-bindings-2.0-os section 3.4.4.1
    """
    sent: dict[str, str] = {}
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name in _SIGNED or name == _SIGNATURE:
            if name in sent:
                raise Refused(Reason.PROVIDER_FAILED, f"the query has more than one {name}")
            sent[name] = value
    read = {name: unquote_plus(value) for name, value in sent.items()}
    if not {_REQUEST, _ALGORITHM, _SIGNATURE} <= read.keys():
        raise Refused(Reason.PROVIDER_FAILED, "the SAML request is not signed")
    signed = "&".join(f"{name}={sent[name]}" for name in _SIGNED if name in sent)
    return LogoutMessage(
        read[_REQUEST],
        read.get(_RELAY_STATE),
        BesideSignature(read[_ALGORITHM], read[_SIGNATURE], signed),
    )


def name_session(session: SAMLSession) -> str:
    """What is kept of a sign-in: it begins with what it is found by, in letters and digits, and has
    the rest in it."""
    whole = urlsafe_b64encode(msgspec.json.encode(session)).decode()
    return f"{_hash(session.name)}.{_hash(session.index)}.{whole}"


def read_session(text: str) -> SAMLSession | None:
    """The sign-in of a name that `name_session` made; None for others."""
    whole = text.rpartition(".")[2]
    return msgspec.json.decode(urlsafe_b64decode(whole), type=SAMLSession) if whole else None


class Meant:
    """Which sign-ins a request means: of a person those with these indexes, and those without one;
    all where there are none."""

    def __init__(self, name: str, indexes: Sequence[str]) -> None:
        self.beginning = f"{_hash(name)}."
        """How the names of all of the person's sign-ins begin."""
        self._named = {_hash(index) for index in indexes if index}
        self._hashes = {*self._named, _hash("")} if indexes else None

    @property
    def beginnings(self) -> Sequence[str]:
        """How the names of those that are meant begin, as far as a dot."""
        if self._hashes is None:
            return [self.beginning]
        return [f"{self.beginning}{hashed}." for hashed in sorted(self._hashes)]

    def names(self, session: str) -> bool:
        """Whether the request names just the sign-in that is called so, and no other of the
        person."""
        return session.startswith(self.beginning) and session.split(".")[1] in self._named

    def has(self, session: str) -> bool:
        """Whether the sign-in that is called so (`name_session`) is meant."""
        if not session.startswith(self.beginning):
            return False
        return self._hashes is None or session.split(".")[1] in self._hashes


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_CHARS]
