"""Options about who may have an account here, and how people sign in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from federation.protocol.ids import is_room_alias, is_room_id
from homeserver.config.option import Duration, Secret, option, section


def _check_rooms(rooms: tuple[str, ...]) -> str | None:
    wrong = [room for room in rooms if not is_room_alias(room) and not is_room_id(room)]
    return f"must be room aliases or ids, which {', '.join(map(repr, wrong))} is not" if wrong else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """Who may make an account."""

    enable_registration: bool = option(False, "Whether people may make accounts themselves.")
    enable_registration_without_verification: bool = option(
        False,
        "Whether they may do so without a token or another proof. A server that is reached from the internet and says "
        "yes here is found by senders of spam within days.",
    )
    registration_requires_token: bool = option(
        False, "Whether a registration token, made by an administrator, is needed."
    )
    registration_shared_secret: Secret | None = option(
        None, "Who knows this secret may make any account, administrators too, even when registration is closed."
    )
    allow_guest_access: bool = option(False, "Whether people without an account may look around as guests.")
    inhibit_user_in_use_error: bool = option(
        False, "Whether the question if a name is free is always answered with yes, so that names cannot be found out."
    )
    enable_set_displayname: bool = option(True, "Whether people may change their displayed name.")
    enable_set_avatar_url: bool = option(True, "Whether people may change their picture.")
    auto_join_rooms: tuple[str, ...] = option(
        (),
        "Rooms (aliases or ids) that every new account joins, as far as they exist and let it in; guests do not.",
        example='["#everyone:example.org"]',
        check=_check_rooms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordPolicy:
    """What a password must have."""

    enabled: bool = option(False, "Whether the rules below hold.")
    minimum_length: int = option(0, "The fewest characters.", minimum=0, maximum=512)
    require_digit: bool = option(False, "Whether it must have a digit.")
    require_symbol: bool = option(False, "Whether it must have a sign that is neither letter nor digit.")
    require_lowercase: bool = option(False, "Whether it must have a small letter.")
    require_uppercase: bool = option(False, "Whether it must have a capital letter.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordConfig:
    """Signing in with a password."""

    enabled: Literal[True, False, "only_for_reauth"] = option(
        True, "Whether people sign in with passwords; `only_for_reauth`: only to confirm who they are."
    )
    localdb_enabled: bool = option(True, "Whether the passwords in this server's own database count.")
    pepper: Secret | None = option(
        None, "A secret that is mixed into every password before it is hashed. To change it makes all passwords void."
    )
    policy: PasswordPolicy = section(PasswordPolicy, "Rules for new passwords.")


@dataclass(frozen=True, slots=True, kw_only=True)
class UIAuth:
    """Confirming who one is."""

    session_timeout: Duration = option(
        Duration(0), "For how long a confirmation is good for further actions; 0: for that one only.", minimum=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginFromSession:
    """Signing in on a second client with a token that the first one asked for."""

    enabled: bool = option(False, "Whether people may do so.")
    require_ui_auth: bool = option(True, "Whether they confirm with their password that they want it.")
    token_timeout: Duration = option(
        Duration(120_000), "How long a token is good for.", minimum=1000, maximum=3_600_000, example="2m"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecords:
    """What is kept of sign-ins, failures and changes of accounts, for their owners and for administrators."""

    keep_for: Duration = option(Duration(90 * 24 * 3600 * 1000), "How long.", minimum=24 * 3600 * 1000, example="90d")


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuth:
    """The OAuth 2.0 API: apps sign people in on this server's own pages, and never see a password."""

    enabled: bool = option(
        True, "Whether apps may sign people in so. It needs `public_baseurl`; the older sign-in stays beside it."
    )
    qr_code: Literal["off", "signed_in", "everybody"] = option(
        "signed_in",
        "Who may begin a sign-in by QR code: nobody; who is signed in on another device; or everybody, which older apps "
        "(MSC4108 of 2024) need, and new devices that show the code. The server passes 4 KiB on between the two devices for some "
        "minutes.",
    )
    trusted_services: Mapping[str, Secret] = option(
        {},
        "Services that may ask whose an access token is (RFC 7662), by name, with their secrets.",
        example='{"calendar": "a long random text"}',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Passwords and access tokens."""

    bcrypt_rounds: int = option(
        12,
        "How costly a password is to hash. Passwords are kept as Argon2id; 12 is today's recommended cost, each step "
        "doubles or halves it, and 4 is for test data only.",
        minimum=4,
        maximum=20,
    )
    password_config: PasswordConfig = section(PasswordConfig, "Signing in with a password.")
    session_lifetime: Duration | None = option(
        None, "After how long a sign-in ends, whatever happens; `null`: never.", minimum=1, example="24h"
    )
    refreshable_access_token_lifetime: Duration = option(
        Duration(300_000), "How long an access token lives that its client can refresh.", minimum=1, example="5m"
    )
    refresh_token_lifetime: Duration | None = option(
        None, "How long a refresh token lives when it is not used; `null`: for ever.", minimum=1, example="24h"
    )
    nonrefreshable_access_token_lifetime: Duration | None = option(
        None, "How long an access token lives that cannot be refreshed; `null`: for ever.", minimum=1, example="24h"
    )
    accept_token_in_query: bool = option(
        True,
        "Whether requests may show their access token as `access_token` in the address, as old clients do. Addresses end up in "
        "the logs of proxies: where all clients send the header `Authorization`, switch it off.",
    )
    login_via_existing_session: LoginFromSession = section(
        LoginFromSession, "Signing in on a second client by the first."
    )
    user_ips_max_age: Duration | None = option(
        Duration(28 * 24 * 3600 * 1000),
        "How long it is kept from which address, and with what program, a device was used last; `null`: as long as the device is "
        "signed in. That it was used, and when, is kept; what is recorded of an account has a time of its own (`audit`).",
        minimum=24 * 3600 * 1000,
        example="28d",
    )
    audit: AuditRecords = section(AuditRecords, "What is kept of what happens to accounts.")
    oauth: OAuth = section(OAuth, "The OAuth 2.0 API.")
    ui_auth: UIAuth = section(UIAuth, "Confirming who one is before something important.", not_yet=True)
