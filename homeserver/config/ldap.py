"""Options about directories: LDAP and Active Directory."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from homeserver.config.option import Duration, Secret, option, required, section

_IDP_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,250}")


def check_idp_id(idp_id: str) -> str | None:
    """An id as it stands in addresses. spec: client-server-api#client-login-via-sso"""
    return None if _IDP_ID.fullmatch(idp_id) else "must have only letters, digits and . _ ~ -"


def _check_uris(uris: tuple[str, ...]) -> str | None:
    wrong = [uri for uri in uris if not uri.startswith(("ldap://", "ldaps://"))]
    return "must have addresses that start with ldap:// or ldaps://" if wrong or not uris else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryAttributes:
    """What the attributes of a person are called."""

    uid: str = option(
        "uid", "The name with which people sign in (Active Directory: `sAMAccountName`)."
    )
    subject: str = option(
        "entryUUID",
        "What never changes of an entry, and nobody gets again (Active Directory: `objectGUID`).",
    )
    name: str | None = option("cn", "The displayed name.")
    mail: str | None = option("mail", "The e-mail addresses.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LDAPProvider:
    """A directory."""

    idp_id: str = option(
        "ldap", "What it is called in the database; never to be changed.", check=check_idp_id
    )
    uri: tuple[str, ...] = required(
        "Its addresses; the next is asked where one does not answer.",
        example='["ldaps://ldap.example.org"]',
        check=_check_uris,
    )
    start_tls: bool = option(
        True,
        "Whether a connection to `ldap://` is secured before anything is said; without it passwords go in the clear.",
    )
    tls_ca_file: Path | None = option(
        None, "The authorities that its certificate must come from; `null`: the system's."
    )
    mode: Literal["search", "bind"] = option(
        "search",
        "`search`: the entry is looked for by `bind_dn`; `bind`: it is `ATTRIBUTE=NAME,BASE`, and people look for it "
        "themselves. Leavers are found in the mode `search` only.",
    )
    base: str = required("Under which entry people are.", example="ou=people,dc=example,dc=org")
    bind_dn: str | None = option(None, "Who looks for people; `null`: nobody in particular.")
    bind_password: Secret | None = option(None, "The password of `bind_dn`.")
    filter: str | None = option(
        None,
        "What an entry must fit besides, such as membership in a group. Who fits no more has left.",
        example="'(memberOf=cn=matrix,ou=groups,dc=example,dc=org)'",
    )
    attributes: DirectoryAttributes = section(
        DirectoryAttributes, "What its attributes are called."
    )
    allow_existing_users: bool = option(
        False, "Whether somebody gets the account that has their name and was made otherwise."
    )
    enable_registration: bool = option(True, "Whether people without an account get one.")
    update_profile_information: bool = option(
        True,
        "Whether names and e-mail addresses are taken over at each sign-in, and when they change in the directory, and not for new accounts"
        " only: also that an address which the directory said before is another one now.",
    )
    leavers: Literal["deactivate", "lock", "keep"] = option(
        "deactivate",
        "What becomes of the account of somebody whom the directory has no more: it ends for good, or it is locked until "
        "the directory has them again, or it stays.",
    )
    leavers_check_interval: Duration = option(
        Duration(20_000),
        "How often it is asked who is there.",
        minimum=5_000,
        maximum=3_600_000,
        example="20s",
    )
    leavers_at_most: float = option(
        0.1,
        "The share of its people that may have left at once (one may always). More is taken for a fault of the "
        "directory: nothing is done, and the log says so.",
        minimum=0.0,
        maximum=1.0,
    )
    timeout: Duration = option(
        Duration(10_000),
        "How long it may take to answer.",
        minimum=500,
        maximum=60_000,
        example="10s",
    )
