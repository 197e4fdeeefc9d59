"""Rules of registration, and the UIA flows that follow from them.

spec: client-server-api#account-registration
"""

from typing import Literal

import msgspec

from federation.peers.policy import ServerPatterns
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
    """Localparts that only administrators can register."""
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
