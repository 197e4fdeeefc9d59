"""Rules of registration: which names are free to register, and the UIA flows.

spec: client-server-api#account-registration
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from federation.peers.federation_policy import ServerPatterns
from federation.protocol.errors import Exclusive, InvalidUsername
from federation.protocol.ids import ServerName, UserID, localpart_of, parse_new_user_id
from homeserver.services.login.uia_stages import (
    DUMMY,
    EMAIL_IDENTITY,
    MSISDN_IDENTITY,
    RECAPTCHA,
    REGISTRATION_TOKEN,
    TERMS,
)


class RegistrationRules(msgspec.Struct, frozen=True):
    """The configured rules of registration."""

    enabled: bool = False
    without_verification: bool = False
    requires_token: bool = False
    captcha: bool = False
    """Whether users solve a captcha."""
    email: Literal["none", "optional", "required"] = "none"
    """Whether users validate an e-mail address."""
    phone: Literal["none", "optional", "required"] = "none"
    """Whether users validate a telephone number."""
    terms: bool = False
    """Whether users accept the policies."""
    needs_approval: bool = False
    """Whether new accounts need approval by an administrator; those that administrators create do
    not."""
    guests: bool = False
    reveals_taken_names: bool = True
    """False: `GET /register/available` reports every valid name as free."""
    reserved_names: ServerPatterns | None = None
    """Localparts that only administrators and application services can register."""
    underscore_names: bool = False
    """Whether a name may start with an underscore, as those of bridges do."""


def compute_flows(rules: RegistrationRules) -> list[list[str]]:
    """Return the UIA flows of registration; none if the rules admit no user."""
    first = [
        *([REGISTRATION_TOKEN] if rules.requires_token else []),
        *([RECAPTCHA] if rules.captcha else []),
    ]
    terms = [TERMS] if rules.terms else []
    media = ((EMAIL_IDENTITY, rules.email), (MSISDN_IDENTITY, rules.phone))
    required = [stage for stage, rule in media if rule == "required"]
    optional = [stage for stage, rule in media if rule == "optional"]
    if not first and not required and not rules.without_verification:
        return []
    shortest = [*first, *terms, *required]
    additional = [[stage] for stage in optional] + ([optional] if len(optional) > 1 else [])
    return [shortest or [DUMMY], *([*shortest, *stages] for stages in additional)]


def parse_registered_id(
    username: str,
    server_name: ServerName,
    rules: RegistrationRules,
    is_reserved: Callable[[UserID], bool],
    *,
    privileged: bool = False,
) -> UserID:
    """Return the user id of a new account. Raises `InvalidUsername` or `Exclusive`.

    `is_reserved`: whether an id belongs to a namespace of an application service. `privileged`: an
    administrator or an application service chooses the name, so the configured rules do not apply.
    """
    user_id = parse_new_user_id(username.lower(), server_name)
    if is_reserved(user_id):
        raise Exclusive
    if not privileged:
        if username.startswith("_") and not rules.underscore_names:
            raise InvalidUsername("A user name may not begin with an underscore")
        if rules.reserved_names is not None and rules.reserved_names.match(localpart_of(user_id)):
            raise Exclusive("This name is reserved")
    return user_id
