"""Where people come back to from providers of OpenID Connect: an address that is registered at each
of them.

Law: with several providers each has an address of its own, lest one have itself sent the codes of
another (RFC 9700 section 4.4). So an address may be another than it was when a provider is added:
the effective ones are told at each start, and by `config check`.
"""

from collections.abc import Sequence
from typing import Final

from homeserver.config.upstream import OIDCProvider

CALLBACK_PATH: Final = "_synapse/client/oidc/callback"
"""Where people come back to from a provider that has no such path for itself under this one."""


def own_callback(config: OIDCProvider) -> str:
    """The path where people come back to from this provider, and from no other."""
    return f"{CALLBACK_PATH}/{config.provider_id}"


def has_own_callback(config: OIDCProvider, *, alone: bool) -> bool:
    """Whether people come back from it to its own path. `alone`: whether it is the only
    provider."""
    if config.redirect_uri is None:
        return not alone
    return config.redirect_uri.partition("?")[0].endswith(f"/{own_callback(config)}")


def redirect_uri_of(config: OIDCProvider, base_url: str, *, alone: bool) -> str:
    """The address. `base_url` ends with a slash; `alone`: as above."""
    return config.redirect_uri or base_url + (CALLBACK_PATH if alone else own_callback(config))


def tell_redirect_uris(
    providers: Sequence[OIDCProvider], public_baseurl: str | None
) -> Sequence[str]:
    """A line for operators about each."""
    base_url = (public_baseurl or "").rstrip("/") + "/"
    alone = len(providers) == 1
    return [
        f"{provider.provider_id} has to know as redirect URI: {redirect_uri_of(provider, base_url, alone=alone)}"
        for provider in providers
    ]
