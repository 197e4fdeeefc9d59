"""Checks options about identity providers where a check of each single option is not enough.

For example, one option may require another, and the IDs of providers must be unique.
"""

from collections import Counter
from collections.abc import Iterator

from homeserver.config.read import Problem
from homeserver.config.upstream import OIDCProviderOptions, UpstreamOptions
from homeserver.config.yaml_text import Place


def check_upstream(upstream: UpstreamOptions, public_baseurl: str | None) -> Iterator[Problem]:
    """Return all problems."""
    if upstream.buttons and public_baseurl is None:
        yield Problem(("public_baseurl",), "is required: identity providers redirect users to it")
    ids = Counter([*upstream.browser_ids, *upstream.directory_ids])
    for provider_id, count in ids.items():
        if count > 1:
            yield Problem(
                ("oidc_providers",),
                f"{count} providers have the id {provider_id!r}; ids must be unique",
            )
    for at, provider in enumerate(upstream.oidc_providers):
        yield from _check_oidc(provider, ("oidc_providers", at))
    for at, directory in enumerate(upstream.ldap_providers):
        if directory.mode == "bind" and directory.bind_dn is not None:
            yield Problem(("ldap_providers", at, "bind_dn"), "has no effect in the mode `bind`")
        if directory.bind_dn is not None and not directory.bind_password:
            yield Problem(("ldap_providers", at, "bind_password"), "is required with `bind_dn`")
    if upstream.cas_config.enabled and upstream.cas_config.server_url is None:
        yield Problem(("cas_config", "server_url"), "is required")
    if upstream.saml2_config.is_used:
        yield from _check_saml_metadata(upstream.saml2_config.sp_config.get("metadata"))
    jwt = upstream.jwt_config
    if jwt.enabled and (not jwt.secret or not jwt.algorithm):
        yield Problem(("jwt_config",), "needs `secret` and `algorithm`")


def _check_saml_metadata(metadata: object) -> Iterator[Problem]:
    place = ("saml2_config", "sp_config", "metadata")
    if (
        not isinstance(metadata, dict)
        or not metadata
        or set(metadata) - {"local", "inline", "remote"}
    ):
        yield Problem(
            place, "must have `local` (files), `remote` (addresses) or `inline`, and nothing else"
        )
        return
    remote = metadata.get("remote", [])
    if not isinstance(remote, list) or any(
        not isinstance(each, dict)
        or set(each) != {"url"}
        or not str(each["url"]).startswith("https://")
        for each in remote
    ):
        yield Problem(
            (*place, "remote"),
            "must be a list of `{url: https://…}`: metadata are trusted because of https",
        )


def _check_oidc(provider: OIDCProviderOptions, place: Place) -> Iterator[Problem]:
    if not provider.discover:
        needed = ["authorization_endpoint", "token_endpoint"]
        needed.append("jwks_uri" if "openid" in provider.scopes else "userinfo_endpoint")
        for name in needed:
            if getattr(provider, name) is None:
                yield Problem((*place, name), "is required if `discover` is false")
    has_secret = provider.client_secret is not None or provider.client_secret_jwt_key is not None
    if provider.client_auth_method != "none" and not has_secret:
        yield Problem(
            (*place, "client_secret"), "is required unless `client_auth_method` is `none`"
        )
    if provider.client_secret is not None and provider.client_secret_jwt_key is not None:
        yield Problem(
            (*place, "client_secret"),
            "is given, and so is `client_secret_jwt_key`; one of them is enough",
        )
    if not set(provider.id_token_signing_alg_values_supported) - {"none"}:
        yield Problem((*place, "id_token_signing_alg_values_supported"), "must name an algorithm")
