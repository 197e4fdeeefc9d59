"""How an endpoint is declared: once, on its handler, with everything about it.

    @endpoint("PUT", "/_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}", auth=Auth.USER,
    max_body=4096) async def put_tag(account_data: AccountDataService, caller: Requester, *,
    user_id: UserID, room_id: RoomID, tag: str, body: Tag) -> Empty: ...

Positional parameters are services, found by type when the router is built; `Requester`, `Peer` and
`RequestContext` among them are who and what asks. Keyword-only parameters are the request: first
the names in the path, then `body` (a frozen msgspec Struct, `dict` or `msgspec.Raw` where any
object will do, `bytes` or `BinaryIO` where it is not JSON), then query parameters with their
defaults. A trailing underscore of a name is not part of it on the wire (`from_`), and
`Annotated[bool, Names("use_state_after", "org.example.use_state_after")]` gives other names, the
first found wins.

A name in the path with no parameter, or a service that nobody provides, stops start-up with a
sentence. Further paths may leave out a name whose parameter has a default; an empty segment matches
only such a parameter.
"""

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any, Final, ParamSpec, TypeVar

import msgspec

from federation.protocol.errors import ConsentNotGiven, UserSuspended
from federation.protocol.ids import DeviceID, ServerName, UserID

P = ParamSpec("P")
T = TypeVar("T")


class Auth(Enum):
    """Who may ask. The names follow the column `auth` of the specification's list of endpoints."""

    NONE = "none"
    OPTIONAL = "optional"
    """A user's access token, or none: the parameter is `Requester | None`."""
    IF_USABLE = "if usable"
    """As OPTIONAL, and a token with which nobody is let in is none: where the specification asks
    for no authentication."""
    USER = "user"
    """A user's access token; guests are refused."""
    GUEST = "guest"
    """A user's access token, guests too."""
    ADMIN = "admin"
    APPSERVICE = "appservice"
    SERVER = "server"
    """A server's X-Matrix signature."""


MAYBE_NOBODY = frozenset({Auth.OPTIONAL, Auth.IF_USABLE})
"""With these somebody asks, or nobody."""


class Limit(Enum):
    """Which rate limit an action counts against. Values are keys of the configuration.

    Those that `PER_ADDRESS` holds count by client address, the rest by user, when an endpoint
    declares them. Services check others themselves, with the key that the name says
    (`RateLimiter.check`).
    """

    NONE = "none"
    MESSAGE = "rc_message"
    MEMBERSHIP = "rc_memberships"
    REGISTRATION = "rc_registration"
    REGISTRATION_TOKEN = "rc_registration_token_validity"
    LOGIN = "rc_login.address"
    LOGIN_ACCOUNT = "rc_login.account"
    LOGIN_FAILED = "rc_login.failed_attempts"
    REFRESH = "rc_refresh.address"
    REFRESH_ACCOUNT = "rc_refresh.account"
    RENDEZVOUS = "rc_oauth.rendezvous"
    CLIENT_REGISTRATION = "rc_oauth.client_registration"
    DEVICE_AUTHORIZATION = "rc_oauth.device_authorization"
    USER_CODE = "rc_oauth.user_code"
    ADMIN_REDACTION = "rc_admin_redaction"
    JOIN = "rc_joins.local"
    JOIN_REMOTE = "rc_joins.remote"
    JOIN_ROOM = "rc_joins_per_room"
    THREEPID = "rc_3pid_validation"
    TEXT_MESSAGES_NUMBER = "rc_text_messages.per_number"
    TEXT_MESSAGES_ADDRESS = "rc_text_messages.per_address"
    INVITE = "rc_invites.per_issuer"
    INVITE_ROOM = "rc_invites.per_room"
    INVITE_USER = "rc_invites.per_user"
    FALSE_PROMISE = "rc_invites.false_promises"
    THIRD_PARTY_INVITE = "rc_third_party_invite"
    MEDIA_CREATE = "rc_media_create"
    MEDIA_SCAN = "rc_media_scan"
    REMOTE_MEDIA = "remote_media_download"
    """In bytes; its rate is among the options of storage."""
    PRESENCE = "rc_presence.per_user"
    DELAYED_EVENT = "rc_delayed_event_mgmt"
    REPORT = "rc_reports"
    ROOM_CREATION = "rc_room_creation"
    SEARCH = "rc_search"
    USER_DIRECTORY = "rc_user_directory"
    KEY_REQUEST = "rc_key_requests"
    KEY_STRANGERS = "rc_key_strangers"
    BACKUP_BYTES = "rc_key_backup_bytes"
    TO_DEVICE_STRANGERS = "rc_to_device_strangers"
    TO_DEVICE_BYTES = "rc_to_device_bytes"
    TO_DEVICE_BYTES_OF_SERVER = "rc_federation.to_device_bytes"
    TO_DEVICE_BYTES_OF_REMOTE_USER = "rc_federation.to_device_bytes_of_user"
    PROFILE = "rc_profile"
    URL_PREVIEW = "rc_url_preview"
    HIERARCHY = "rc_hierarchy"
    THREADS = "rc_threads"
    EVENTS_BY_TIME = "rc_timestamp_to_event"
    RECEIPT = "rc_receipts"
    ACCOUNT_DATA = "rc_account_data"
    ALIAS = "rc_aliases"
    TYPING = "rc_typing"
    FORGET = "rc_forget"
    CLAIMED_KEYS = "rc_federation.claimed_keys"
    CLAIMED_BY_USER = "rc_claimed_keys"
    DEVICE_CHANGE = "rc_device_changes"

    __hash__ = object.__hash__
    """Each is itself alone. That of Enum is a function in Python, and limits are looked up with
    every request that counts."""


PER_ADDRESS = frozenset(
    {
        Limit.REGISTRATION,
        Limit.REGISTRATION_TOKEN,
        Limit.LOGIN,
        Limit.REFRESH,
        Limit.THREEPID,
        Limit.CLIENT_REGISTRATION,
        Limit.DEVICE_AUTHORIZATION,
        Limit.RENDEZVOUS,
    }
)


class BodyLimit(Enum):
    """A limit of the body's size that the configuration says. Values are keys of the
    configuration."""

    UPLOAD = "max_upload_size"


class Requester(msgspec.Struct, frozen=True):
    """Who asks, as the guard found out."""

    user_id: UserID
    device_id: DeviceID | None
    token_nid: int
    is_guest: bool = False
    is_admin: bool = False
    appservice_id: str | None = None
    is_locked: bool = False
    is_suspended: bool = False
    is_shadow_banned: bool = False
    """What they send to others goes nowhere, and they are answered as if it went."""
    consent: tuple[str, str] | None = None
    """What the caller is to be told who has not agreed to terms, and may not write before they
    have, and the page where they agree."""
    is_expired: bool = False
    """The account is past its day."""
    oauth_client: str | None = None
    """The program that signed in by the OAuth 2.0 API, where the session is of that kind."""
    device_made_ts: int = 0
    """When the device was made, in milliseconds since 1970: signed out and in again under the same
    id, it is another device."""
    rate_limited: bool = True
    """False for application services that are registered so, and for users whom an administrator
    exempts."""

    @property
    def may_only_read(self) -> bool:
        """Whether `check_may_write` raises."""
        return self.is_suspended or self.consent is not None

    def check_may_write(self) -> None:
        """Raises `UserSuspended`, `ConsentNotGiven` for who may only read."""
        if self.is_suspended:
            raise UserSuspended
        if self.consent is not None:
            raise ConsentNotGiven(self.consent[0], consent_uri=self.consent[1])


class Peer(msgspec.Struct, frozen=True):
    """The server that asks, once its signature is checked."""

    server_name: ServerName


LONGEST_USER_AGENT: Final = 500


def find_user_agent(headers: Mapping[bytes, bytes]) -> str:
    """Of which program a client says it is. `headers`: by names in small letters."""
    return headers.get(b"user-agent", b"").decode("utf-8", "replace")[:LONGEST_USER_AGENT]


class RequestContext(msgspec.Struct, frozen=True, gc=False):
    """What else a handler may need to know of the request."""

    request_id: str
    method: str
    uri: bytes
    """What was asked for as it was sent, with the query."""
    client_ip: str
    headers: Mapping[bytes, bytes]
    """The last value of each, by names in small letters. (Plain values: a way back to the request
    would be a cycle that no collection sees.)"""
    content_type: str = ""
    """What the client says the body is; only where an endpoint takes the body as a file."""
    body_size: int = 0
    """How many bytes the body has."""
    is_secure: bool = False
    """Whether the client came by TLS, to us or to the proxy that we trust."""
    cookies: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """As it was sent, still percent-encoded, without the query."""
        return self.uri.partition(b"?")[0].decode("latin-1")

    @property
    def user_agent(self) -> str:
        """Of which program the client says it is."""
        return find_user_agent(self.headers)

    @property
    def languages(self) -> str:
        """What the client wants to read, as it says it in `Accept-Language`."""
        return self.headers.get(b"accept-language", b"").decode("latin-1")

    def header(self, name: str) -> str | None:
        """Any other header; the last of several."""
        value = self.headers.get(name.lower().encode("ascii"))
        return None if value is None else value.decode("latin-1")


class Names:
    """The names of a query parameter on the wire, by preference, where they are not the parameter's
    own."""

    __slots__ = ("names",)

    def __init__(self, *names: str) -> None:
        self.names = names


class Endpoint(msgspec.Struct, frozen=True):
    """A declaration, as the router reads it."""

    method: str
    paths: tuple[str, ...]
    auth: Auth
    limit: Limit
    max_body: int | BodyLimit
    handler: Callable[..., Awaitable[Any]]
    cancellable: bool = False
    while_locked: bool = False
    while_suspended: bool = False
    before_consent: bool = False
    while_expired: bool = False
    long_poll: bool = False
    resource: str = "client"
    cost: float = 1
    limit_of_admins: Limit = Limit.NONE

    @property
    def name(self) -> str:
        """What logs and metrics call it."""
        return self.handler.__name__


def endpoint(
    method: str,
    *paths: str,
    auth: Auth,
    limit: Limit = Limit.NONE,
    limit_of_admins: Limit = Limit.NONE,
    cost: float = 1,
    max_body: int | BodyLimit = 65536,
    cancellable: bool | None = None,
    while_locked: bool = False,
    while_suspended: bool | None = None,
    before_consent: bool | None = None,
    while_expired: bool = False,
    long_poll: bool = False,
    resource: str = "client",
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Declare a handler. The first path is the stable one; others are older and unstable spellings
    of it.

    `cost`: how much a request counts against `limit`; less than 1 where most only ask, or lead up
    to what counts. `limit_of_admins`: the one that counts for administrators instead, where it is
    configured. `max_body` is in bytes, or as the configuration says; what is longer is refused
    before it is read (M_TOO_LARGE). `cancellable`: the handler is cancelled when its client goes
    away; by default GETs and long polls are. `while_locked`: an account that is locked may do this
    (log out). `while_suspended`: a suspended account may do this; by default it may GET and nothing
    else. `before_consent`: who has not agreed to the terms may do this; by default what a suspended
    account may, and what administrators do. `while_expired`: an account past its day may do this
    (be renewed, log out). `long_poll`: it may wait for long, which is nothing for the log of slow
    requests. `resource`: the group of endpoints that a listener serves or not
    (`listeners[].resources[].names`).
    """
    reads = method in ("GET", "HEAD")
    suspended_may = reads if while_suspended is None else while_suspended

    def declare(handler: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        handler.__dict__["__endpoint__"] = Endpoint(
            method=method,
            paths=paths,
            auth=auth,
            limit=limit,
            max_body=max_body,
            handler=handler,
            cancellable=(reads or long_poll) if cancellable is None else cancellable,
            while_locked=while_locked,
            while_suspended=suspended_may,
            before_consent=(suspended_may or auth is Auth.ADMIN)
            if before_consent is None
            else before_consent,
            while_expired=while_expired,
            long_poll=long_poll,
            resource=resource,
            cost=cost,
            limit_of_admins=limit_of_admins,
        )
        return handler

    return declare
