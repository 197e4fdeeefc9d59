"""Options about signing in with somebody else's word: OpenID Connect, CAS, SAML 2 and tokens of
other programs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, TemplateSyntaxError

from federation.protocol.ids import is_server_name
from homeserver.config.ldap import LDAPProvider, check_idp_id
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
class AttributeRequirement:
    """Something that who signs in must have."""

    attribute: str = required("The claim or attribute.", example="groups")
    value: str | None = option(
        None, "The value that must be among its values; neither this nor `one_of`: any."
    )
    one_of: tuple[str, ...] = option((), "Or several, of which one must be.")


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtKey:
    """A client secret that is made, as Sign in with Apple wants it."""

    key: Secret = required("The private key, in PEM; or `key_file`.")
    jwt_header: Mapping[str, JSON] = required(
        "The header, with `alg`.", example='{"alg": "ES256", "kid": "KEYID"}'
    )
    jwt_payload: Mapping[str, JSON] = option({}, "Further claims.", example='{"iss": "TEAMID"}')


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTemplates:
    """What of the claims becomes what, as small Jinja2 templates in which `user` has the claims."""

    subject_claim: str = option(
        "sub", "The claim that says who it is for the provider: what never changes there."
    )
    subject_template: str | None = option(
        None, "Or a template for it.", example="'{{ user.sub }}'", check=_check_template
    )
    localpart_template: str | None = option(
        None,
        "The name of a new account. Without it people choose one.",
        example="'{{ user.preferred_username }}'",
        check=_check_template,
    )
    confirm_localpart: bool = option(
        False, "Whether people are shown that name first, and may choose another."
    )
    display_name_template: str | None = option(
        None, "The displayed name.", example="'{{ user.name }}'", check=_check_template
    )
    email_template: str | None = option(
        None,
        "The e-mail address, taken as confirmed unless the claim `email_verified` denies it.",
        example="'{{ user.email }}'",
        check=_check_template,
    )
    groups_template: str | None = option(
        None,
        "The groups, one in a line, as `attribute_requirements` then finds them by the attribute `groups`; for a claim that is no"
        " list of names, or stands within another.",
        example="\"{{ user.realm_access.roles | join('\\n') }}\"",
        check=_check_template,
    )
    picture_claim: str | None = option(
        None, "The claim with the address of a picture.", example="picture"
    )
    picture_template: str | None = option(
        None, "Or a template for it.", example="'{{ user.picture }}'", check=_check_template
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimMapping:
    """From claims to an account."""

    module: str | None = option(None, "Only the built-in templates.", not_yet=True)
    config: ClaimTemplates = section(ClaimTemplates, "The templates.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OIDCProvider:
    """A provider of OpenID Connect."""

    idp_id: str = required(
        "What it is called in addresses and in the database; never to be changed.",
        check=check_idp_id,
    )
    idp_name: str = required("What people read on its button.")
    idp_icon: str | None = option(
        None,
        "Its icon on buttons, of a file on this server or another.",
        check=_check_icon,
        example="mxc://example.org/abcd",
    )
    idp_brand: str | None = option(None, "A brand that clients know, such as `google`.")
    discover: bool = option(
        True, "Whether its addresses are found at `/.well-known/openid-configuration`."
    )
    issuer: str = required("What it calls itself, as in its discovery document.", check=_check_url)
    client_id: str = required("What this server is called there.")
    client_secret: Secret | None = option(None, "The secret that goes with it.")
    client_secret_jwt_key: JwtKey | None = option(None, "Or a key to make such secrets with.")
    client_auth_method: Literal["client_secret_basic", "client_secret_post", "none"] = option(
        "client_secret_basic", "How the secret is shown."
    )
    pkce_method: Literal["auto", "always", "never"] = option(
        "auto", "Whether PKCE is used; `auto`: where the provider says that it knows it."
    )
    id_token_signing_alg_values_supported: tuple[str, ...] = option(
        ("RS256",), "The algorithms with which it may sign ID tokens."
    )
    scopes: tuple[str, ...] = option(("openid",), "What is asked for.")
    authorization_endpoint: str | None = option(
        None, "Without discovery: where people sign in.", check=_check_url
    )
    token_endpoint: str | None = option(
        None, "Without discovery: where codes become tokens.", check=_check_url
    )
    userinfo_endpoint: str | None = option(
        None, "Without discovery: where claims are asked for.", check=_check_url
    )
    jwks_uri: str | None = option(None, "Without discovery: where its keys are.", check=_check_url)
    skip_verification: bool = option(
        False,
        "Whether it may be reached without TLS and may call itself otherwise than `issuer` says; for tests only.",
    )
    user_profile_method: Literal["auto", "userinfo_endpoint"] = option(
        "auto",
        "`userinfo_endpoint`: the claims are asked for there, and not taken from the ID token.",
    )
    auth_time_required: bool = option(
        True,
        "Whether it must say when somebody proved who they are (`auth_time`), where they are to do so once more. `false` is for a "
        "provider that never says so: then whoever has a browser that is signed in there confirms what they like without being asked.",
    )
    redirect_uri: str | None = option(
        None,
        "Where people come back to. Of itself `PUBLIC_BASEURL/_synapse/client/oidc/callback` where there is one provider, and "
        "`PUBLIC_BASEURL/_synapse/client/oidc/callback/oidc-IDP_ID` for each where there are several. Providers that share one must "
        "say who they are in their answers (`iss`). What it is, is told at each start and by `config check`: to add a second provider "
        "without a change at the first, give the first the address here that it knows.",
        check=_check_url,
    )
    additional_authorization_parameters: Mapping[str, str] = option(
        {},
        "Further parameters of the address where people sign in.",
        example='{"acr_values": "2fa"}',
    )
    allow_existing_users: bool = option(
        False,
        "Whether somebody gets the account that has the name which `localpart_template` makes.",
    )
    enable_registration: bool = option(True, "Whether people without an account get one.")
    user_mapping_provider: ClaimMapping = section(ClaimMapping, "From claims to an account.")
    backchannel_logout_enabled: bool = option(
        False,
        "Whether it may end sessions here, at `PUBLIC_BASEURL/_synapse/client/oidc/backchannel_logout`.",
    )
    backchannel_logout_ignore_sub: bool = option(
        False, "Whether only the session that it names is looked at then, and not the person."
    )
    attribute_requirements: tuple[AttributeRequirement, ...] = option(
        (),
        "What the claims of everybody who signs in must have.",
        example="[{attribute: groups, value: staff}]",
    )

    @property
    def provider_id(self) -> str:
        """What it is called in addresses and in the database. Synapse calls it so too."""
        return self.idp_id if self.idp_id == "oidc" else f"oidc-{self.idp_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CAS:
    """A Central Authentication Service."""

    enabled: bool = option(False, "Whether people sign in with it.")
    idp_name: str = option("CAS", "What people read on its button.")
    idp_icon: str | None = option(
        None,
        "Its icon on buttons, of a file on this server or another.",
        check=_check_icon,
        example="mxc://example.org/abcd",
    )
    idp_brand: str | None = option(None, "A brand that clients know.")
    server_url: str | None = option(
        None,
        "Its address: `/login` is under it.",
        example="https://cas.example.org/cas",
        check=_check_url,
    )
    protocol_version: Literal[2, 3] | None = option(
        None,
        "The version of its protocol: 3 tells attributes; `null`: 3, as nearly every server today.",
    )
    displayname_attribute: str | None = option(
        None, "The attribute with the displayed name.", example="name"
    )
    required_attributes: Mapping[str, str | None] = option(
        {},
        "Attributes that who signs in must have, with a value or with any (`null`).",
        example="{userGroup: staff}",
    )
    allow_existing_users: bool = option(
        False,
        "Whether somebody gets the account that has the name which CAS says. Synapse always gives it: say `true` when "
        "its accounts were taken over.",
    )
    enable_registration: bool = option(True, "Whether people without an account get one.")
    allow_numeric_ids: bool = option(False, "Whether a name may be digits only.")
    numeric_ids_prefix: str = option("u", "What is put before such a name.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SAMLTemplates:
    """What of the attributes becomes what."""

    mxid_source_attribute: str = option("uid", "The attribute with the name of a new account.")
    mxid_mapping: Literal["hexencode", "dotreplace"] = option(
        "hexencode", "What becomes of characters that names may not have: their code, or a dot."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SAMLMapping:
    """From attributes to an account."""

    module: str | None = option(None, "Only the built-in mapping.", not_yet=True)
    config: SAMLTemplates = section(SAMLTemplates, "Its settings.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SAML2:
    """A SAML 2 identity provider."""

    enabled: bool = option(
        True, "Whether people sign in with it, where `sp_config` or `config_path` is given."
    )
    idp_name: str = option("SAML", "What people read on its button.")
    idp_icon: str | None = option(
        None,
        "Its icon on buttons, of a file on this server or another.",
        check=_check_icon,
        example="mxc://example.org/abcd",
    )
    idp_brand: str | None = option(None, "A brand that clients know.")
    sp_config: Mapping[str, JSON] = option(
        {},
        "Settings of pysaml2 for this server as a service provider; what is left out is filled in.",
        example="{metadata: {local: [idp.xml]}}",
    )
    config_path: Path | None = option(None, "Or a Python file with them in `CONFIG`.", not_yet=True)
    metadata_refresh_interval: Duration = option(
        Duration(6 * 3600 * 1000),
        "How often metadata are fetched anew that `sp_config.metadata.remote` gives an address of.",
        minimum=60_000,
        example="6h",
    )
    saml_session_lifetime: Duration = option(
        Duration(900_000),
        "How long somebody may take to sign in there.",
        minimum=1000,
        example="15m",
    )
    allow_existing_users: bool = option(
        False, "Whether somebody gets the account that has the name which the attribute makes."
    )
    user_mapping_provider: SAMLMapping = section(SAMLMapping, "From attributes to an account.")
    attribute_requirements: tuple[AttributeRequirement, ...] = option(
        (),
        "What the attributes of everybody who signs in must have.",
        example="[{attribute: userGroup, value: staff}]",
    )
    idp_entityid: str | None = option(None, "Which provider, where the metadata have several.")

    @property
    def metadata_urls(self) -> tuple[str, ...]:
        """The addresses that metadata are fetched from."""
        metadata = self.sp_config.get("metadata")
        remote = metadata.get("remote") if isinstance(metadata, dict) else None
        return tuple(str(each["url"]) for each in remote) if remote else ()

    @property
    def is_used(self) -> bool:
        """Whether there is a provider."""
        return self.enabled and bool(self.sp_config)


@dataclass(frozen=True, slots=True, kw_only=True)
class SSO:
    """What holds for all of them."""

    client_whitelist: tuple[str, ...] = option(
        (),
        "Beginnings of the addresses of clients that people need not confirm: who is signed in with one of these gets "
        "no question whether to go on there. End them with a slash.",
        example='["https://element.example.org/"]',
    )
    update_profile_information: bool = option(
        False,
        "Whether name, picture and e-mail addresses are taken over at each sign-in, and not for new accounts only: also that an address"
        " which the provider said before is another one now.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JWT:
    """Signing in with a token that another program signed (`org.matrix.login.jwt`)."""

    enabled: bool = option(False, "Whether people sign in with them.")
    secret: Secret | None = option(None, "The secret, or the public key in PEM.")
    algorithm: str | None = option(None, "The algorithm, such as `HS256` or `RS256`.")
    subject_claim: str = option("sub", "The claim with the local part of the user id.")
    display_name_claim: str | None = option(None, "The claim with the displayed name.")
    issuer: str | None = option(None, "Who must have issued it.")
    audiences: tuple[str, ...] = option((), "For whom it must be: one of these.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plug-in."""

    module: str = required("The class, as `package.module.Class`.")
    config: Mapping[str, JSON] = option({}, "What it is made with.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """Who else may say who somebody is."""

    oidc_providers: tuple[OIDCProvider, ...] = option(
        (),
        "Providers of OpenID Connect.",
        example="[{idp_id: keycloak, idp_name: Keycloak, issuer: https://login.example.org/realms/us, "
        "client_id: matrix, client_secret: SECRET}]",
    )
    ldap_providers: tuple[LDAPProvider, ...] = option(
        (),
        "Directories that passwords are checked with.",
        example='[{uri: ["ldaps://ldap.example.org"], base: "ou=people,dc=example,dc=org"}]',
    )
    cas_config: CAS = section(CAS, "A Central Authentication Service.")
    saml2_config: SAML2 = section(SAML2, "A SAML 2 identity provider.")
    jwt_config: JWT = section(JWT, "Signing in with a token that another program signed.")
    plugins: tuple[Plugin, ...] = option(
        (),
        "Plug-ins that know passwords, or refuse accounts and sign-ins; see docs/operators/plugins.md.",
        example="[{module: our_plugins.OfficeHours, config: {from: 7, until: 19}}]",
    )
    sso: SSO = section(SSO, "What holds for OpenID Connect, CAS and SAML.")

    @property
    def buttons(self) -> tuple[tuple[str, str, str | None], ...]:
        """Id, name and icon of all providers where people sign in with a browser, in the order in
        which people see them."""
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
        """Their ids."""
        return tuple(provider_id for provider_id, _name, _icon in self.buttons)

    @property
    def directory_ids(self) -> tuple[str, ...]:
        """The ids of all directories."""
        return tuple(provider.idp_id for provider in self.ldap_providers)
