"""Options about who may have an account here, and how people sign in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.errors import MessageError
from email.headerregistry import Address
from typing import Literal

from federation.peers.policy import BadPattern, ServerPatterns
from federation.protocol.ids import is_room_alias, is_room_id
from homeserver.config.option import Duration, Secret, option, section


def _check_rooms(rooms: tuple[str, ...]) -> str | None:
    wrong = [room for room in rooms if not is_room_alias(room) and not is_room_id(room)]
    return (
        f"must be room aliases or ids, which {', '.join(map(repr, wrong))} is not"
        if wrong
        else None
    )


def _is_address(text: str) -> bool:
    try:
        return text.isascii() and bool(Address(addr_spec=text).domain)
    except (ValueError, IndexError, MessageError):  # it reads on where the text has ended
        return False


def _check_letters(letters: Mapping[str, str]) -> str | None:
    wrong = [address for address in letters if not _is_address(address)]
    return (
        f"must be e-mail addresses, which {', '.join(map(repr, wrong))} is not" if wrong else None
    )


def _check_names(names: tuple[str, ...]) -> str | None:
    try:
        ServerPatterns(names)
    except BadPattern as error:
        return f"must be names or patterns of names: {error}"
    return None


def _check_expressions(expressions: tuple[str, ...]) -> str | None:
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            return f"must be regular expressions, which {expression!r} is not: {error}"
    return None


def _check_expression(expression: str | None) -> str | None:
    return None if expression is None else _check_expressions((expression,))


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayNames:
    """What people may call themselves, besides their user name. Administrators, and identity
    providers, call them as they like."""

    maximum_length: int = option(256, "The most characters.", minimum=1, maximum=256)
    pattern: str | None = option(
        None,
        "A regular expression that the whole name must match; `null`: any name will do.",
        example='"[^@:]+"',
        check=_check_expression,
    )
    forbidden: tuple[str, ...] = option(
        (),
        "Regular expressions that no part of a name may match, in capital or small letters.",
        example='["administrat", "support team"]',
        check=_check_expressions,
    )


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
    registration_requires_approval: bool = option(
        False,
        "Whether a new account waits until an administrator has approved it (MSC3866), also one of somebody for whom an identity "
        "provider vouches. Those that administrators make do not wait. They approve on the page `/_mahalla/approvals`, or "
        "by `PUT /_mahalla/admin/v1/users/{user_id}/approval`.",
    )
    registration_approval_letters: Mapping[str, str] = option(
        {},
        "E-mail addresses of administrators who are told that an account waits, each with the language of the letter. While one "
        "waits, none tells of the next for an hour.",
        example='{"admin@example.org": en}',
        check=_check_letters,
    )
    registration_shared_secret: Secret | None = option(
        None,
        "Who knows this secret may make any account, administrators too, even when registration is closed.",
    )
    allow_guest_access: bool = option(
        False, "Whether people without an account may look around as guests."
    )
    inhibit_user_in_use_error: bool = option(
        False,
        "Whether the question if a name is free is always answered with yes, so that names cannot be found out.",
    )
    reserved_usernames: tuple[str, ...] = option(
        (),
        "User names that people cannot take: names, wildcards (`*`, `?`), and regular expressions between slashes. "
        "Administrators can.",
        example='["admin*", "support", "/(rector|dean)[0-9]*/"]',
        check=_check_names,
    )
    display_names: DisplayNames = section(DisplayNames, "What people may be called.")
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

    enabled: bool = option(
        True,
        "Whether the rules below hold, for passwords that people choose, and those that administrators give them in the API. On the "
        "command line (`create-user`) a weak one is taken with a warning.",
    )
    minimum_length: int = option(8, "The fewest characters.", minimum=0, maximum=512)
    require_digit: bool = option(False, "Whether it must have a digit.")
    require_symbol: bool = option(
        False, "Whether it must have a sign that is neither letter nor digit."
    )
    require_lowercase: bool = option(False, "Whether it must have a small letter.")
    require_uppercase: bool = option(False, "Whether it must have a capital letter.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordConfig:
    """Signing in with a password."""

    enabled: Literal[True, False, "only_for_reauth"] = option(
        True,
        "Whether people sign in with passwords; `only_for_reauth`: only to confirm who they are.",
    )
    localdb_enabled: bool = option(
        True, "Whether the passwords in this server's own database count."
    )
    pepper: Secret | None = option(
        None,
        "A secret that is mixed into every password before it is hashed. To change it makes all passwords void.",
    )
    policy: PasswordPolicy = section(PasswordPolicy, "Rules for new passwords.")


def _check_subject(subject: str) -> str | None:
    return None if subject.isprintable() and subject.strip() else "must be one line of text"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountValidity:
    """Accounts that are good for a time, and are renewed."""

    enabled: bool = option(
        False, "Whether accounts end. What is past its day can be used again once it is renewed."
    )
    period: Duration | None = option(
        None,
        "For how long a new or renewed account is good. Needed with `enabled`.",
        minimum=3_600_000,
        example="180d",
    )
    renew_at: Duration | None = option(
        None,
        "How long before the end its owner gets a letter with a link that renews the account; `null`: nobody does, and "
        "administrators renew accounts. It needs `email` and `public_baseurl`.",
        minimum=60_000,
        example="2w",
    )
    renew_email_subject: str | None = option(
        None,
        "The subject of that letter, in these words for everybody; `%(app)s` stands for `email.app_name`. `null`: in the reader's "
        "language.",
        check=_check_subject,
        example="Renew your %(app)s account",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UIAuth:
    """Confirming who one is."""

    session_timeout: Duration = option(
        Duration(0),
        "For how long a confirmation is good for further actions on the same device; 0: for that one only. It never is for a new "
        "password, the end of the account, a new address, and a token to sign in with.",
        minimum=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginFromSession:
    """Signing in on a second client with a token that the first one asked for."""

    enabled: bool = option(False, "Whether people may do so.")
    require_ui_auth: bool = option(
        True, "Whether they confirm with their password that they want it."
    )
    token_timeout: Duration = option(
        Duration(120_000),
        "How long a token is good for.",
        minimum=1000,
        maximum=3_600_000,
        example="2m",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationPasswords:
    """Passwords for one program each, which people make on the account page."""

    enabled: bool = option(
        True,
        "Whether people may make them, and programs sign in with them: bots and old clients that know nothing but a password, of "
        "accounts that sign in with an identity provider. Who has one signs in without that provider.",
    )
    in_login_flows: bool = option(
        False,
        "Whether `GET /login` names the sign-in with a password where `password_config` has none for people. Some clients try "
        "nothing that is not named; others then ask everybody for a password.",
    )
    limit: int = option(20, "How many an account may have.", minimum=1, maximum=1000)
    longest_lifetime: Duration | None = option(
        None,
        "After how long each ends at the latest, with its sessions; `null`: people choose.",
        minimum=1,
        example="365d",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecords:
    """What is kept of sign-ins, failures and changes of accounts, for their owners and for
    administrators."""

    keep_for: Duration = option(
        Duration(90 * 24 * 3600 * 1000), "How long.", minimum=24 * 3600 * 1000, example="90d"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuth:
    """The OAuth 2.0 API: apps sign people in on this server's own pages, and never see a
    password."""

    enabled: bool = option(
        True,
        "Whether apps may sign people in so. It needs `public_baseurl`; the older sign-in stays beside it.",
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
        None,
        "After how long a sign-in ends, whatever happens; `null`: never.",
        minimum=1,
        example="24h",
    )
    refreshable_access_token_lifetime: Duration = option(
        Duration(300_000),
        "How long an access token lives that its client can refresh.",
        minimum=1,
        example="5m",
    )
    refresh_token_lifetime: Duration | None = option(
        None,
        "How long a refresh token lives when it is not used; `null`: for ever.",
        minimum=1,
        example="24h",
    )
    nonrefreshable_access_token_lifetime: Duration | None = option(
        None,
        "How long an access token lives that cannot be refreshed; `null`: for ever.",
        minimum=1,
        example="24h",
    )
    accept_token_in_query: bool = option(
        True,
        "Whether requests may show their access token as `access_token` in the address, as old clients do. Addresses end up in "
        "the logs of proxies: where all clients send the header `Authorization`, switch it off.",
    )
    login_via_existing_session: LoginFromSession = section(
        LoginFromSession, "Signing in on a second client by the first."
    )
    application_passwords: ApplicationPasswords = section(
        ApplicationPasswords, "Passwords for programs that cannot sign in otherwise."
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
    account_validity: AccountValidity = section(AccountValidity, "Accounts that end.")
    ui_auth: UIAuth = section(UIAuth, "Confirming who one is before something important.")
