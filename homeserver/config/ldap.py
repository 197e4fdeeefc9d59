"""Options about LDAP directories, including Active Directory."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from homeserver.config.option import Duration, Secret, option, required, section

_IDP_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,250}")


def check_idp_id(idp_id: str) -> str | None:
    """Check an identity provider ID, which becomes part of URLs. spec:
    client-server-api#client-login-via-sso"""
    return None if _IDP_ID.fullmatch(idp_id) else "must have only letters, digits and . _ ~ -"


def _check_uris(uris: tuple[str, ...]) -> str | None:
    invalid = [uri for uri in uris if not uri.startswith(("ldap://", "ldaps://"))]
    return (
        "must have addresses that start with ldap:// or ldaps://" if invalid or not uris else None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LDAPAttributes:
    """The names of the LDAP attributes."""

    uid: str = option(
        "uid", "The name with which people sign in (Active Directory: `sAMAccountName`)."
    )
    subject: str = option(
        "entryUUID",
        "An identifier that never changes and is never reused (Active Directory: `objectGUID`).",
    )
    name: str | None = option("cn", "The display name.")
    mail: str | None = option("mail", "The e-mail addresses.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LDAPProviderOptions:
    """An LDAP directory."""

    idp_id: str = option(
        "ldap", "The name of the directory in the database. Never change it.", check=check_idp_id
    )
    uri: tuple[str, ...] = required(
        "The URLs of the directory. If one does not respond, the next one is used.",
        example='["ldaps://ldap.example.org"]',
        check=_check_uris,
    )
    start_tls: bool = option(
        True,
        "Uses StartTLS on `ldap://` connections before any data is sent. Without it passwords "
        "are sent unencrypted.",
    )
    tls_ca_file: Path | None = option(
        None, "The certificate authorities of the directory. `null`: those of the system."
    )
    mode: Literal["search", "bind"] = option(
        "search",
        "`search`: the account `bind_dn` searches for the user's entry. `bind`: the entry is "
        "`ATTRIBUTE=NAME,BASE`, and is read with the user's own bind. Only `search` detects "
        "removed users.",
    )
    base: str = required(
        "The entry below which the users' entries are.", example="ou=people,dc=example,dc=org"
    )
    bind_dn: str | None = option(
        None, "The service account that searches the directory. `null`: anonymous."
    )
    bind_password: Secret | None = option(None, "The password of `bind_dn`.")
    filter: str | None = option(
        None,
        "An additional filter, such as membership in a group. A user who no longer matches "
        "counts as removed.",
        example="'(memberOf=cn=matrix,ou=groups,dc=example,dc=org)'",
    )
    attributes: LDAPAttributes = section(LDAPAttributes, "The names of attributes.")
    allow_existing_users: bool = option(
        False,
        "Links a person to the existing account with the same name, even if it was created in "
        "another way.",
    )
    enable_registration: bool = option(True, "Creates accounts for people who have none.")
    update_profile_information: bool = option(
        True,
        "Updates names and e-mail addresses at each sign-in and when they change in the "
        "directory. Otherwise they are only set for new accounts. If the directory replaces an "
        "address, the account's address is replaced too.",
    )
    removed_users: Literal["deactivate", "lock", "keep"] = option(
        "deactivate",
        "The effect on the account of a user who is no longer in the directory: it is "
        "deactivated permanently, locked until the directory has the user again, or kept.",
        formerly="leavers",
    )
    removed_users_check_interval: Duration = option(
        Duration(20_000),
        "How often the list of users is read from the directory.",
        minimum=5_000,
        maximum=3_600_000,
        example="20s",
        formerly="leavers_check_interval",
    )
    removed_users_max_share: float = option(
        0.1,
        "The largest share of the accounts linked to the directory whose users can be removed in "
        "one check (one user always can). A larger share is treated as a fault of the directory: "
        "the server changes nothing, and logs it.",
        minimum=0.0,
        maximum=1.0,
        formerly="leavers_at_most",
    )
    timeout: Duration = option(
        Duration(10_000),
        "The time limit for a response of the directory.",
        minimum=500,
        maximum=60_000,
        example="10s",
    )
