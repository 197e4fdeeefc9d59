"""Dynamic client registration: clients register themselves and are looked up by ID.

Laws:
- Metadata are limited in size, and URIs belong to the host of `client_uri` or to a subdomain of it.
  A logo, terms or privacy URI of another host is dropped. A redirect URI of another host makes the
  server refuse the registration. Only native apps may also have redirect URIs with a private scheme
  or on the loopback interface (`redirect_uris.py`).
- The same metadata give the same ID, so an app on a thousand phones needs one row.
- Registrations must not accumulate, since anybody can register. So a client without sessions, codes
  and device grants is removed 30 days after its last use. If no user ever allowed the client, it is
  removed seven days after its last use. Of the clients that no user ever allowed, only the
  `MAX_NEVER_USED` last used are kept.

spec: client-server-api#client-registration, RFC 7591
"""

import hashlib
import unicodedata
from base64 import b32encode
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from homeserver.services.audit.audit import NO_ACCOUNT, AuditEvent, record_event
from homeserver.services.oauth.errors import InvalidClient, OAuthError
from homeserver.services.oauth.redirect_uris import (
    ApplicationType,
    https_host,
    is_allowed_redirect_uri,
    is_on_host,
)
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.oauth.oauth import OAuthClientRow, OAuthStore

CODE_GRANT: Final = "authorization_code"
REFRESH_GRANT: Final = "refresh_token"
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
GRANTS: Final = (CODE_GRANT, REFRESH_GRANT, DEVICE_GRANT)
MAX_REDIRECT_URIS: Final = 20
MAX_NAME_LENGTH: Final = 100
UNUSED_MS: Final = 30 * 24 * 3600 * 1000
"""Time after which an unused registration without sessions is removed."""
NEVER_USED_MS: Final = 7 * 24 * 3600 * 1000
"""Time after which a registration that no user ever allowed is removed."""
MAX_NEVER_USED: Final = 10_000
"""Maximum number of registrations that no user ever allowed; a new one replaces the least recently
used."""
_REMOVE_BATCH: Final = 100
_USE_INTERVAL_MS: Final = 24 * 3600 * 1000


class OAuthClient(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The metadata of a client, as stored and as returned by the registration."""

    client_uri: str
    grant_types: tuple[str, ...]
    application_type: ApplicationType
    redirect_uris: tuple[str, ...] = ()
    response_types: tuple[str, ...] = ()
    token_endpoint_auth_method: str = ""
    client_name: str = ""
    logo_uri: str = ""
    tos_uri: str = ""
    policy_uri: str = ""
    client_id: str = ""

    @property
    def host(self) -> str:
        """The host of its page (`client_uri`)."""
        return https_host(self.client_uri) or ""

    @property
    def name(self) -> str:
        """Its name as users see it."""
        return self.client_name or self.host

    @property
    def audit_name(self) -> str:
        """Its name and ID for the audit log: clients choose their names, IDs are unique."""
        return f"{self.name} ({self.client_id})"


class OAuthClients:
    """Registers and finds clients."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: OAuthStore,
        max_never_used: int = MAX_NEVER_USED,
    ) -> None:
        self._clock = clock
        self._database = database
        self._store = store
        self._max_never_used = max_never_used

    async def do_register(self, metadata: Mapping[str, Any]) -> OAuthClient:
        """Register a client. Raises `OAuthError` (`invalid_client_metadata`,
        `invalid_redirect_uri`)."""
        client = parse_client(metadata)
        encoded = msgspec.json.encode(client, order="sorted")
        client_id = b32encode(hashlib.sha256(encoded).digest())[:26].decode().lower()
        now = self._now()
        row = OAuthClientRow(client_id, encoded.decode(), now, now)

        def write(txn: WriteTransaction) -> None:
            if self._store.add_client(txn, row):
                self._store.remove_clients_beyond(txn, self._max_never_used, _REMOVE_BATCH)

        await self._database.write("add_oauth_client", write)
        return msgspec.structs.replace(client, client_id=client_id)

    def record_allowed(self, txn: WriteTransaction, client: OAuthClient, ip: str) -> None:
        """Mark a client as allowed by a user, in the write that allows it. The first time goes into
        the audit log. `ip`: the user's address."""
        if self._store.set_client_allowed(txn, client.client_id, self._now()):
            record_event(
                txn,
                NO_ACCOUNT,
                AuditEvent.CLIENT_REGISTERED,
                self._now(),
                ip=ip,
                detail=client.audit_name,
            )

    async def get(self, client_id: str) -> OAuthClient:
        """Return a client. Raises `InvalidClient`."""
        found = await self.find(client_id)
        if found is None:
            raise InvalidClient("The client is unknown; register again")
        return found

    async def find(self, client_id: str) -> OAuthClient | None:
        """Return a client; None if it is unknown. Renews its last use once a day."""
        row = None
        if 0 < len(client_id) <= 100 and "\0" not in client_id:
            row = await self._store.get_client(client_id)
        if row is None:
            return None
        if row.last_used_ts < self._now() - _USE_INTERVAL_MS:
            used = OAuthClientRow(row.client_id, row.metadata, row.created_ts, self._now())
            await self._database.write("record_oauth_client_use", self._store.add_client, used)
        client = msgspec.json.decode(row.metadata, type=OAuthClient)
        return msgspec.structs.replace(client, client_id=client_id)

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` unused registrations; return how many."""

        def write(txn: WriteTransaction) -> int:
            now = self._now()
            return self._store.remove_unused_clients(
                txn, now - UNUSED_MS, now - NEVER_USED_MS, limit
            )

        return await self._database.write("sweep_oauth_clients", write)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def parse_client(metadata: Mapping[str, Any]) -> OAuthClient:
    """Return the accepted metadata of a registration. Raises `OAuthError`."""
    client_uri = _text(metadata, "client_uri")
    host = https_host(client_uri)
    if host is None:
        raise _metadata_error("client_uri must be the https URL of a page about the client")
    kind = metadata.get("application_type", "web")
    if kind not in ("web", "native"):
        raise _metadata_error("application_type must be web or native")
    if metadata.get("token_endpoint_auth_method", "none") != "none":
        raise _metadata_error("token_endpoint_auth_method must be none: clients have no secret")
    grants = tuple(
        grant for grant in GRANTS if grant in _texts(metadata, "grant_types", [CODE_GRANT])
    )
    if CODE_GRANT not in grants and DEVICE_GRANT not in grants:
        raise _metadata_error(f"grant_types must have {CODE_GRANT} or {DEVICE_GRANT}")
    redirects = tuple(dict.fromkeys(_texts(metadata, "redirect_uris", [])))
    response_types = ("code",) if "code" in _texts(metadata, "response_types", ["code"]) else ()
    if CODE_GRANT in grants:
        if not redirects:
            raise OAuthError("invalid_redirect_uri", "redirect_uris is missing")
        if not response_types:
            raise _metadata_error("response_types must have code")
    if len(redirects) > MAX_REDIRECT_URIS:
        raise OAuthError(
            "invalid_redirect_uri", f"redirect_uris may have at most {MAX_REDIRECT_URIS} entries"
        )
    for redirect in redirects:
        if not is_allowed_redirect_uri(redirect, host, kind):
            raise OAuthError(
                "invalid_redirect_uri",
                f"{redirect[:200]} is not allowed for a {kind} client of {host}",
            )
    optional = {key: _text(metadata, key) for key in ("logo_uri", "tos_uri", "policy_uri")}
    return OAuthClient(
        client_uri=client_uri,
        grant_types=grants,
        application_type=kind,
        redirect_uris=redirects,
        response_types=response_types if CODE_GRANT in grants else (),
        token_endpoint_auth_method="none",
        client_name=_name(_text(metadata, "client_name")),
        **{key: uri for key, uri in optional.items() if is_on_host(uri, host)},
    )


def _name(text: str) -> str:
    """Return a displayable name: without invisible characters and those that change the text
    direction."""
    visible = "".join(
        char for char in text if char.isspace() or not unicodedata.category(char).startswith("C")
    )
    return " ".join(visible.split())[:MAX_NAME_LENGTH]


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value or len(value) > 4000:
        raise _metadata_error(f"{key} must be a string of at most 4000 characters")
    return value


def _texts(metadata: Mapping[str, Any], key: str, default: Sequence[str]) -> Sequence[str]:
    value = metadata.get(key)
    if value is None:
        return default
    if not isinstance(value, list) or not all(
        isinstance(each, str) and "\0" not in each for each in value
    ):
        raise _metadata_error(f"{key} must be a list of strings")
    return value


def _metadata_error(text: str) -> OAuthError:
    return OAuthError("invalid_client_metadata", text)
