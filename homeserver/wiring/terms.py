"""Wires the consent to policies."""

from homeserver.config.consent import UserConsentOptions
from homeserver.services.terms.consent import Consents
from homeserver.services.terms.policies import load_policies
from homeserver.wiring.foundation import Foundation
from storage.accounts.accounts import AccountStore
from storage.accounts.policy_consents import PolicyConsentStore


def make_consents(base: Foundation) -> Consents:
    """Return the consents of users to the policies of the configuration."""
    base_url = base.config.name.public_baseurl or ""
    user_consent = base.config.pages.user_consent
    return Consents(
        clock=base.clock,
        database=base.database,
        accounts=AccountStore(base.database),
        store=PolicyConsentStore(base.database),
        policies=load_policies(user_consent, base_url),
        key=base.identity.key,
        base_url=base_url,
        blocked_text=user_consent.block_events_error,
    )


def blocks_requests(user_consent: UserConsentOptions) -> bool:
    """Return whether requests of users without consent are refused."""
    return bool(user_consent.policies) and user_consent.block_events_error is not None
