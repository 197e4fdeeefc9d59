"""Contradictory options about identity providers are refused, each with its place."""

from pathlib import Path

import pytest

from homeserver.config.load import ConfigError, load_config

OIDC = "oidc_providers: [{idp_id: a, idp_name: A, issuer: 'https://a.example', client_id: x"


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        (OIDC + ", client_secret: y}]", "public_baseurl: is required"),
        (OIDC + "}]", "oidc_providers[0].client_secret: is required"),
        (
            OIDC + ", client_auth_method: none, discover: false}]",
            "oidc_providers[0].jwks_uri: is required if",
        ),
        (
            OIDC + ", client_auth_method: none}, "
            "{idp_id: a, idp_name: B, issuer: 'https://b.example', client_id: x}]",
            "2 providers have the id 'oidc-a'",
        ),
        (
            OIDC + ", client_auth_method: none, id_token_signing_alg_values_supported: [none]}]",
            "must name an algorithm",
        ),
        (OIDC + ", idp_icon: 'https://a.example/x.png'}]", "must be an mxc:// address"),
        (OIDC.replace("idp_id: a", "idp_id: a/b") + "}]", "must have only letters"),
        (
            OIDC + ", user_mapping_provider: {config: {localpart_template: '{{ user'}}}]",
            "must be a Jinja2 template",
        ),
        ("cas_config: {enabled: true}", "cas_config.server_url: is required"),
        (
            "saml2_config: {sp_config: {metadata: {remote: [{url: 'http://a.example'}]}}}",
            "metadata are trusted because of https",
        ),
        (
            "saml2_config: {sp_config: {metadata: {remote: [https://a.example]}}}",
            "metadata are trusted because of https",
        ),
        ("saml2_config: {sp_config: {metadata: {mdq: []}}}", "and nothing else"),
        ("saml2_config: {sp_config: {metadata: []}}", "and nothing else"),
        (
            "jwt_config: {enabled: true, algorithm: HS256}",
            "jwt_config: needs `secret` and `algorithm`",
        ),
        (
            "ldap_providers: [{uri: ['http://a.example'], base: 'dc=a'}]",
            "must have addresses that start with ldap://",
        ),
        (
            "ldap_providers: [{uri: ['ldaps://a.example'], base: 'dc=a', bind_dn: 'cn=a'}]",
            "bind_password: is required",
        ),
        (
            "ldap_providers: [{uri: ['ldaps://a.example'], base: 'dc=a', mode: bind, "
            "bind_dn: 'cn=a'}]",
            "has no effect in",
        ),
        (
            "ldap_providers: [{uri: ['ldaps://a.example'], base: 'dc=a', "
            "removed_users_max_share: 2}]",
            "must be at most 1",
        ),
    ],
)
def test_contradictory_options_are_refused(tmp_path: Path, written: str, complaint: str) -> None:
    path = tmp_path / "homeserver.yaml"
    path.write_text(f"server_name: example.org\n{written}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_config([path], {})
    assert complaint in str(raised.value)


def test_consistent_options_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "homeserver.yaml"
    path.write_text(
        "server_name: example.org\npublic_baseurl: https://matrix.example.org\n"
        + OIDC
        + ", client_secret: y}]\n"
        "ldap_providers: [{uri: ['ldaps://a.example'], base: 'dc=a'}]\n",
        encoding="utf-8",
    )
    upstream = load_config([path], {}).config.upstream
    assert upstream.buttons == (("oidc-a", "A", None),)
    assert upstream.directory_ids == ("ldap",)


@pytest.mark.parametrize(
    "icon",
    ["https://a.example/i.png", "mxc://", "mxc://a.example", "mxc://a.example/b/c", "mxc://a b/c"],
)
def test_invalid_icons_are_refused(tmp_path: Path, icon: str) -> None:
    path = tmp_path / "homeserver.yaml"
    path.write_text(
        "server_name: example.org\npublic_baseurl: https://matrix.example.org\n"
        + OIDC
        + f", client_secret: y, idp_icon: '{icon}'}}]\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="must be an mxc:// address"):
        load_config([path], {})
