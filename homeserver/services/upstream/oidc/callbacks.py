"""Redirect URIs for OpenID Connect providers, as registered at each of them.

Law: if several providers are configured, each has its own redirect URI by default. So the URI of a
callback shows which provider issued the code (RFC 9700 section 4.4). If the option `redirect_uri`
makes providers with different issuers share a URI, `provider.py` requires the parameter `iss`.

By default, a single provider uses `CALLBACK_PATH`, which contains no provider ID. Its redirect URI
changes when a second provider is added. The log at start and `config check` show the URIs in use.
"""

from collections.abc import Sequence
from typing import Final

from homeserver.config.upstream import OIDCProviderOptions

CALLBACK_PATH: Final = "_synapse/client/oidc/callback"
"""The callback path without a provider ID. A provider's own path is below it."""


def own_callback_path(config: OIDCProviderOptions) -> str:
    """Return the callback path of this provider only."""
    return f"{CALLBACK_PATH}/{config.provider_id}"


def has_own_callback(config: OIDCProviderOptions, *, alone: bool) -> bool:
    """Return whether the provider uses its own callback path. `alone`: it is the only provider."""
    if config.redirect_uri is None:
        return not alone
    return config.redirect_uri.partition("?")[0].endswith(f"/{own_callback_path(config)}")


def redirect_uri_of(config: OIDCProviderOptions, base_url: str, *, alone: bool) -> str:
    """Return the redirect URI. `base_url` ends with a slash; `alone`: it is the only provider."""
    return config.redirect_uri or base_url + (CALLBACK_PATH if alone else own_callback_path(config))


def describe_redirect_uris(
    providers: Sequence[OIDCProviderOptions], public_baseurl: str | None
) -> Sequence[str]:
    """Return a line for operators about each provider's redirect URI."""
    base_url = (public_baseurl or "").rstrip("/") + "/"
    alone = len(providers) == 1
    return [
        f"redirect URI to register at {provider.provider_id}: "
        + redirect_uri_of(provider, base_url, alone=alone)
        for provider in providers
    ]
