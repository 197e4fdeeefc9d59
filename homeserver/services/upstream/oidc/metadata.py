"""Fetches and caches a provider's discovery document and keys.

Laws:
- A discovery document is accepted only if it names the configured issuer. All endpoints must be
  https URLs, including configured ones. The option `skip_verification` turns both checks off.
- If the signature of a token does not verify, the server fetches the keys again. It does so at most
  once a minute, also while the provider is down, because anybody can send such tokens.

spec: https://openid.net/specs/openid-connect-discovery-1_0.html
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from twisted.internet.interfaces import IReactorTime

from federation.peers.shared_work import SharedWork
from homeserver.config.upstream import OIDCProviderOptions
from homeserver.services.upstream.identity import RefusalReason, SignInRefused
from homeserver.services.upstream.provider_http import ProviderHTTP

CACHE_SECONDS: Final = 3600.0
KEYS_REFETCH_SECONDS: Final = 60.0


class DiscoveryDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The used fields of a discovery document."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str | None = None
    jwks_uri: str | None = None
    code_challenge_methods_supported: list[str] | None = None
    authorization_response_iss_parameter_supported: bool = False


class ProviderMetadata:
    """Endpoints and keys of one provider."""

    def __init__(
        self, *, clock: IReactorTime, documents: ProviderHTTP, config: OIDCProviderOptions
    ) -> None:
        self._clock = clock
        self._documents = documents
        self._config = config
        self._metadata: DiscoveryDocument | None = None
        self._metadata_until = 0.0
        self._keys: KeySet | None = None
        self._keys_at = 0.0
        self._asked_at = 0.0
        """Time of the last request for keys, including failed ones."""
        self._work: SharedWork[str, KeySet] = SharedWork()

    async def get(self) -> DiscoveryDocument:
        """Return the discovery document, cached for `CACHE_SECONDS`. Raises `SignInRefused`."""
        now = self._clock.seconds()
        if self._metadata is None or now >= self._metadata_until:
            self._metadata = await self._find()
            self._metadata_until = now + CACHE_SECONDS
        return self._metadata

    async def _find(self) -> DiscoveryDocument:
        config = self._config
        configured = {
            name: value
            for name, value in (
                ("authorization_endpoint", config.authorization_endpoint),
                ("token_endpoint", config.token_endpoint),
                ("userinfo_endpoint", config.userinfo_endpoint),
                ("jwks_uri", config.jwks_uri),
            )
            if value is not None
        }
        if not config.discover:
            metadata = msgspec.convert({"issuer": config.issuer, **configured}, DiscoveryDocument)
        else:
            url = config.issuer.rstrip("/") + "/.well-known/openid-configuration"
            metadata = msgspec.structs.replace(
                await self._documents.get(DiscoveryDocument, url), **configured
            )
        if not config.skip_verification:
            self._check(metadata)
        return metadata

    def _check(self, metadata: DiscoveryDocument) -> None:
        if metadata.issuer != self._config.issuer:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED,
                f"{self._config.issuer} has another issuer: {metadata.issuer[:200]}",
            )
        for name in ("authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri"):
            url = getattr(metadata, name)
            if url is not None and not url.startswith("https://"):
                raise SignInRefused(
                    RefusalReason.PROVIDER_FAILED, f"{self._config.issuer}: its {name} is not https"
                )

    async def get_keys(self, *, older_than: float | None = None) -> KeySet:
        """Return the provider's keys. `older_than`: fetch again if the cached keys are not newer
        than that time and the rate limit permits. Raises `SignInRefused`."""
        now = self._clock.seconds()
        keys = self._keys
        if keys is None or now >= self._keys_at + CACHE_SECONDS:
            return await self._work.run("keys", self._fetch_keys)
        if older_than is None or self._keys_at > older_than:
            return keys
        if self._work.is_running("keys") or now >= self._asked_at + KEYS_REFETCH_SECONDS:
            return await self._work.run("keys", self._fetch_keys)
        return keys

    async def _fetch_keys(self) -> KeySet:
        self._asked_at = now = self._clock.seconds()
        uri = (await self.get()).jwks_uri
        if uri is None:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, f"{self._config.issuer} has no jwks_uri"
            )
        self._keys = keys = _read_keys(await self._documents.get(dict[str, Any], uri), uri)
        self._keys_at = now
        return keys

    @property
    def keys_fetched_at(self) -> float:
        """Time when the cached keys were fetched."""
        return self._keys_at


def _read_keys(document: Mapping[str, Any], uri: str) -> KeySet:
    """Return the keys of a known type that are for signatures; skip others."""
    listed = document.get("keys")
    found: list[Any] = listed if isinstance(listed, list) else []
    keys = []
    for each in found[:100]:
        if (
            not isinstance(each, dict)
            or each.get("use", "sig") != "sig"
            or each.get("kty") == "oct"
        ):
            continue
        try:
            keys += KeySet.import_key_set({"keys": [each]}).keys
        except (JoseError, ValueError, TypeError, KeyError):
            continue
    if not keys:
        raise SignInRefused(RefusalReason.PROVIDER_FAILED, f"{uri} has no usable keys")
    return KeySet(keys)
