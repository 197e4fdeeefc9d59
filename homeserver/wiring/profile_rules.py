"""Derives the rules for profiles from the configuration."""

from homeserver.config.accounts import DisplayNames
from homeserver.config.configuration import Config
from homeserver.services.profiles.profiles import NameRules


def name_rules_of(display_names: DisplayNames) -> NameRules:
    """Return the rules for display names."""
    return NameRules(
        longest=display_names.maximum_length,
        pattern=display_names.pattern,
        forbidden=display_names.forbidden,
    )


def fixed_profile_fields(config: Config) -> frozenset[str]:
    """Return the profile fields that users may not change."""
    registration = config.registration
    fixed = {
        "displayname": not registration.enable_set_displayname,
        "avatar_url": not registration.enable_set_avatar_url,
    }
    return frozenset(field for field, is_fixed in fixed.items() if is_fixed)
