"""Options about identity providers: OpenID Connect, CAS, SAML 2, JWT and plug-ins."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, TemplateSyntaxError

from federation.protocol.ids import is_server_name
from homeserver.config.ldap import LDAPProviderOptions, check_idp_id
from homeserver.config.option import JSON, Duration, Secret, option, required, section


def _check_url(url: str) -> str | None:
    return (
        None if url.startswith(("https://", "http://")) else "must start with https:// or http://"
    )


def _check_template(source: str) -> str | None:
    try:
        Environment().parse(source)
    except TemplateSyntaxError as error:
        return f"must be a Jinja2 template: {error}"
    return None


def _check_icon(uri: str) -> str | None:
    server_name, _, media_id = uri.removeprefix("mxc://").partition("/")
    fits = (
        uri.startswith("mxc://")
        and is_server_name(server_name)
        and media_id.isprintable()
        and "/" not in media_id
    )
    return None if fits and media_id else "must be an mxc:// address"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeRequirementOptions:
    """A condition on the claims or attributes of a user who logs in."""

    attribute: str = required("The claim or attribute.", example="groups")
    value: str | None = option(
        None, "The required value. If neither this nor `one_of` is set, any value is accepted."
    )
    one_of: tuple[str, ...] = option(
        (), "Several values, one of which is required, instead of `value`."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtKeyOptions:
    """A key that signs client secrets, as Sign in with Apple requires."""

    key: Secret = required("The private key, in PEM; or `key_file`.")
    jwt_header: Mapping[str, JSON] = required(
        "The header, with `alg`.", example='{"alg": "ES256", "kid": "KEYID"}'
    )
    jwt_payload: Mapping[str, JSON] = option({}, "Further claims.", example='{"iss": "TEAMID"}')


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTemplatesOptions:
    """Jinja2 templates that map claims to account data. `user` holds the claims."""

    subject_claim: str = option(
        "sub", "The claim that identifies a person at the provider and never changes."
    )
    subject_template: str | None = option(
        None,
        "A template for the identifier, instead of `subject_claim`.",
        example="'{{ user.sub }}'",
        check=_check_template,
    )
    localpart_template: str | None = option(
        None,
        "The user name of a new account. Without it people choose one.",
        example="'{{ user.preferred_username }}'",
        check=_check_template,
    )
    confirm_localpart: bool = option(
        False,
        "Shows people the name from `localpart_template` first, and lets them choose another.",
    )
    display_name_template: str | None = option(
        None, "The display name.", example="'{{ user.name }}'", check=_check_template
    )
    email_template: str | None = option(
        None,
        "The e-mail address. It counts as confirmed unless the claim `email_verified` is false.",
        example="'{{ user.email }}'",
        check=_check_template,
    )
    groups_template: str | None = option(
        None,
        "The groups, one per line, for `attribute_requirements` with the attribute `groups`. "
        "Needed if the claim is not a list of names, or is nested in another claim.",
        example="\"{{ user.realm_access.roles | join('\\n') }}\"",
        check=_check_template,
    )
    picture_claim: str | None = option(
        None, "The claim with the URL of a picture.", example="picture"
    )
    picture_template: str | None = option(
        None,
        "A template for the URL, instead of `picture_claim`.",
        example="'{{ user.picture }}'",
        check=_check_template,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimMappingOptions:
    """Mapping from claims to accounts."""

    module: str | None = option(
        None,
        "The module that maps claims to accounts. Only the built-in templates are available.",
        not_implemented=True,
    )
    config: ClaimTemplatesOptions = section(ClaimTemplatesOptions, "The templates.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OIDCProviderOptions:
    """An OpenID Connect provider."""

    idp_id: str = required(
        "The name of the provider in URLs and in the database. Never change it.", check=check_idp_id
    )
    idp_name: str = required("The text on the sign-in button.")
    idp_icon: str | None = option(
        None,
        "The icon on the sign-in button: the content URI of a file on any server.",
        check=_check_icon,
        example="mxc://example.org/abcd",
    )
    idp_brand: str | None = option(
        None, "A brand for which clients have a button style, such as `google`."
    )
    discover: bool = option(
        True, "Reads the provider's endpoints from `/.well-known/openid-configuration`."
    )
    issuer: str = required("The issuer, as in the provider's discovery document.", check=_check_url)
    client_id: str = required("The client id of this server at the provider.")
    client_secret: Secret | None = option(None, "The client secret.")
    client_secret_jwt_key: JwtKeyOptions | None = option(
        None, "A key from which client secrets are generated, instead of `client_secret`."
    )
    client_auth_method: Literal["client_secret_basic", "client_secret_post", "none"] = option(
        "client_secret_basic", "How the client secret is sent."
    )
    pkce_method: Literal["auto", "always", "never"] = option(
        "auto", "The use of PKCE. `auto`: only if the provider announces that it supports PKCE."
    )
    id_token_signing_alg_values_supported: tuple[str, ...] = option(
        ("RS256",), "The accepted signing algorithms of ID tokens."
    )
    scopes: tuple[str, ...] = option(("openid",), "The requested scopes.")
    authorization_endpoint: str | None = option(
        None, "Without discovery: the authorization endpoint.", check=_check_url
    )
    token_endpoint: str | None = option(
        None, "Without discovery: the token endpoint.", check=_check_url
    )
    userinfo_endpoint: str | None = option(
        None, "Without discovery: the userinfo endpoint.", check=_check_url
    )
    jwks_uri: str | None = option(
        None, "Without discovery: the URL of the provider's keys.", check=_check_url
    )
    skip_verification: bool = option(
        False,
        "Allows a provider without TLS, and one whose issuer differs from `issuer`. For tests "
        "only.",
    )
    user_profile_method: Literal["auto", "userinfo_endpoint"] = option(
        "auto",
        "`userinfo_endpoint`: claims are fetched from the provider's userinfo endpoint, instead of "
        "being read from the ID token.",
    )
    auth_time_required: bool = option(
        True,
        "When a user has to confirm an action, requires the provider to report the time of "
        "authentication (`auth_time`). `false` is for a provider that never reports it. Then "
        "anybody who uses a browser with a session at the provider can confirm actions.",
    )
    redirect_uri: str | None = option(
        None,
        "The redirect URI. Default: `PUBLIC_BASEURL/_synapse/client/oidc/callback` with one "
        "provider, `PUBLIC_BASEURL/_synapse/client/oidc/callback/oidc-IDP_ID` for each with "
        "several. Providers that share a redirect URI must send `iss` in their responses. The "
        "log at start-up and `config check` show it. To add a second provider without a change "
        "at the first one, enter the redirect URI that is registered at the first one.",
        check=_check_url,
    )
    additional_authorization_parameters: Mapping[str, str] = option(
        {}, "Additional parameters of the authorization request.", example='{"acr_values": "2fa"}'
    )
    allow_existing_users: bool = option(
        False, "Links a person to the existing account with the name from `localpart_template`."
    )
    enable_registration: bool = option(True, "Creates accounts for people who have none.")
    user_mapping_provider: ClaimMappingOptions = section(
        ClaimMappingOptions, "Mapping from claims to accounts."
    )
    backchannel_logout_enabled: bool = option(
        False,
        "Lets the provider end sessions of this server, at "
        "`PUBLIC_BASEURL/_synapse/client/oidc/backchannel_logout`.",
    )
    backchannel_logout_ignore_sub: bool = option(
        False, "Ends only the session that the logout request names, and ignores the user in it."
    )
    attribute_requirements: tuple[AttributeRequirementOptions, ...] = option(
        (),
        "Requirements on the claims of everybody who signs in.",
        example="[{attribute: groups, value: staff}]",
    )

    @property
    def provider_id(self) -> str:
        """Return the ID in URLs and in the database, which is the same as in Synapse."""
        return self.idp_id if self.idp_id == "oidc" else f"oidc-{self.idp_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CASOptions:
    """A CAS server (Central Authentication Service)."""

    enabled: bool = option(False, "Lets people sign in with CAS.")
    idp_name: str = option("CAS", "The text on the sign-in button.")
    idp_icon: str | None = option(
        None,
        "The icon on the sign-in button: the content URI of a file on any server.",
        check=_check_icon,
        example="mxc://example.org/abcd",
    )
    idp_brand: str | None = option(None, "A brand for which clients have a button style.")
    server_url: str | None = option(
        None,
        "The base URL of the CAS server, without `/login`.",
        example="https://cas.example.org/cas",
        check=_check_url,
    )
    protocol_version: Literal[2, 3] | None = option(
        None,
        "The version of the protocol. Version 3 delivers attributes. `null`: 3, which nearly "
        "every CAS server supports.",
    )
    displayname_attribute: str | None = option(
        None, "The attribute with the display name.", example="name"
    )
    required_attributes: Mapping[str, str | None] = option(
        {},
        "Attributes that a person must have, with a value or with any value (`null`).",
        example="{userGroup: staff}",
    )
    allow_existing_users: bool = option(
        False,
        "Links a person to the existing account with the name from CAS. Synapse always does "
        "this; set `true` if accounts were migrated from Synapse.",
    )
    enable_registration: bool = option(True, "Creates accounts for people who have none.")
    allow_numeric_ids: bool = option(False, "Allows names that consist only of digits.")
    numeric_ids_prefix: str = option("u", "A prefix for names that consist only of digits.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SAMLTemplatesOptions:
    """The mapping from SAML attributes to account data."""

    mxid_source_attribute: str = option("uid", "The attribute with the name of a new account.")
    mxid_mapping: Literal["hexencode", "dotreplace"] = option(
        "hexencode",
        "The replacement of characters that user names cannot contain: their code, or a dot.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SAMLMappingOptions:
    """Mapping from attributes to accounts."""

    module: str | None = option(
        None,
        "The class that maps attributes to accounts. Only the built-in mapping is available.",
        not_implemented=True,
    )
    config: SAMLTemplatesOptions = section(SAMLTemplatesOptions, "The settings of the mapping.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SAML2Options:
    """A SAML 2 identity provider."""

    enabled: bool = option(
        True, "Lets people sign in with SAML 2, if `sp_config` or `config_path` is given."
    )
    idp_name: str = option("SAML", "The text on the sign-in button.")
    idp_icon: str | None = option(
        None,
        "The icon on the sign-in button: the content URI of a file on any server.",
        check=_check_icon,
        example="mxc://example.org/abcd",
    )
    idp_brand: str | None = option(None, "A brand for which clients have a button style.")
    sp_config: Mapping[str, JSON] = option(
        {},
        "Settings of pysaml2 for this server as a service provider. The server supplies missing "
        "ones.",
        example="{metadata: {local: [idp.xml]}}",
    )
    config_path: Path | None = option(
        None,
        "A Python file with the settings in `CONFIG`, instead of `sp_config`.",
        not_implemented=True,
    )
    metadata_refresh_interval: Duration = option(
        Duration(6 * 3600 * 1000),
        "How often the metadata of `sp_config.metadata.remote` is fetched again.",
        minimum=60_000,
        example="6h",
    )
    saml_session_lifetime: Duration = option(
        Duration(900_000),
        "How long a sign-in at the provider may take.",
        minimum=1000,
        example="15m",
    )
    allow_existing_users: bool = option(
        False,
        "Links a person to the existing account with the name in `mxid_source_attribute`.",
    )
    user_mapping_provider: SAMLMappingOptions = section(
        SAMLMappingOptions, "Mapping from attributes to accounts."
    )
    attribute_requirements: tuple[AttributeRequirementOptions, ...] = option(
        (),
        "Requirements on the attributes of everybody who signs in.",
        example="[{attribute: userGroup, value: staff}]",
    )
    idp_entityid: str | None = option(
        None, "The entity id of the provider, if the metadata has several."
    )

    @property
    def metadata_urls(self) -> tuple[str, ...]:
        """Return the addresses from which metadata are fetched."""
        metadata = self.sp_config.get("metadata")
        remote = metadata.get("remote") if isinstance(metadata, dict) else None
        return tuple(str(each["url"]) for each in remote) if remote else ()

    @property
    def is_used(self) -> bool:
        """Whether a SAML provider is configured."""
        return self.enabled and bool(self.sp_config)


@dataclass(frozen=True, slots=True, kw_only=True)
class SSOOptions:
    """Settings that all of these providers share."""

    client_whitelist: tuple[str, ...] = option(
        (),
        "Prefixes of the URLs of trusted clients. People who sign in with such a client are "
        "redirected to it without a question. End the prefixes with a slash.",
        example='["https://element.example.org/"]',
    )
    update_profile_information: bool = option(
        False,
        "Updates name, picture and e-mail addresses at each sign-in. Otherwise they are only set "
        "for new accounts. If the provider replaces an address, the account's address is "
        "replaced too.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JWTOptions:
    """Login with a token that another program signed (`org.matrix.login.jwt`)."""

    enabled: bool = option(
        False, "Lets people sign in with JSON Web Tokens that another program signed."
    )
    secret: Secret | None = option(None, "The secret, or the public key in PEM.")
    algorithm: str | None = option(None, "The algorithm, such as `HS256` or `RS256`.")
    subject_claim: str = option("sub", "The claim with the local part of the user id.")
    display_name_claim: str | None = option(None, "The claim with the display name.")
    issuer: str | None = option(None, "The required issuer.")
    audiences: tuple[str, ...] = option((), "The accepted audiences.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginOptions:
    """A plug-in."""

    module: str = required("The class, as `package.module.Class`.")
    config: Mapping[str, JSON] = option({}, "The settings that are passed to the class.")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamOptions:
    """Identity providers."""

    oidc_providers: tuple[OIDCProviderOptions, ...] = option(
        (),
        "Providers of OpenID Connect.",
        example=(
            "[{idp_id: keycloak, idp_name: Keycloak, issuer: https://login.example.org/realms/us, "
            "client_id: matrix, client_secret: SECRET}]"
        ),
    )
    ldap_providers: tuple[LDAPProviderOptions, ...] = option(
        (),
        "LDAP directories that check passwords.",
        example='[{uri: ["ldaps://ldap.example.org"], base: "ou=people,dc=example,dc=org"}]',
    )
    cas_config: CASOptions = section(CASOptions, "A CAS server (Central Authentication Service).")
    saml2_config: SAML2Options = section(SAML2Options, "A SAML 2 identity provider.")
    jwt_config: JWTOptions = section(
        JWTOptions, "Sign-in with a token that another program signed."
    )
    plugins: tuple[PluginOptions, ...] = option(
        (),
        "Plug-ins in Python; see docs/operators/plugins.md.",
        example="[{module: our_plugins.OfficeHours, config: {from: 7, until: 19}}]",
    )
    sso: SSOOptions = section(SSOOptions, "Settings for OpenID Connect, CAS and SAML.")

    @property
    def buttons(self) -> tuple[tuple[str, str, str | None], ...]:
        """Return ID, name and icon of all providers that use a browser, in the order of the
        buttons."""
        saml = (
            (("saml", self.saml2_config.idp_name, self.saml2_config.idp_icon),)
            if self.saml2_config.is_used
            else ()
        )
        cas = (
            (("cas", self.cas_config.idp_name, self.cas_config.idp_icon),)
            if self.cas_config.enabled
            else ()
        )
        return (
            *((each.provider_id, each.idp_name, each.idp_icon) for each in self.oidc_providers),
            *saml,
            *cas,
        )

    @property
    def browser_ids(self) -> tuple[str, ...]:
        """Return the IDs of all providers that use a browser."""
        return tuple(provider_id for provider_id, _name, _icon in self.buttons)

    @property
    def directory_ids(self) -> tuple[str, ...]:
        """Return the IDs of all LDAP directories."""
        return tuple(provider.idp_id for provider in self.ldap_providers)
