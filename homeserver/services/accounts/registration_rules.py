"""Who may make an account, and what they show for it.

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
    """Who may make an account."""

    enabled: bool = False
    without_verification: bool = False
    requires_token: bool = False
    captcha: bool = False
    """Whether people solve a riddle."""
    email: Literal["none", "optional", "required"] = "none"
    """Whether people give an e-mail address."""
    phone: Literal["none", "optional", "required"] = "none"
    """Whether people give a telephone number."""
    terms: bool = False
    """Whether people agree to documents."""
    needs_approval: bool = False
    """Whether new accounts wait until an administrator has approved them; those that administrators
    make do not."""
    guests: bool = False
    names_can_be_asked: bool = True
    """False: a question whether a name is free is always answered with yes."""
    reserved_names: ServerPatterns | None = None
    """Local parts that only administrators give."""
    underscore_names: bool = False
    """Whether a name may begin with an underscore, as those of bridges do."""


def flows_of(rules: RegistrationRules) -> list[list[str]]:
    """The ways to an account, as stages in their order; none where no rule lets people in."""
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
    further = [[stage] for stage in optional] + ([optional] if len(optional) > 1 else [])
    return [shortest or [DUMMY], *([*shortest, *stages] for stages in further)]
