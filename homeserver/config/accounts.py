"""Options about accounts: registration, passwords, login and sessions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.errors import MessageError
from email.headerregistry import Address
from typing import Literal

from federation.peers.federation_policy import InvalidPattern, ServerPatterns
from federation.protocol.ids import is_room_alias, is_room_id
from homeserver.config.option import Duration, Secret, option, section


def _check_rooms(rooms: tuple[str, ...]) -> str | None:
    invalid = [room for room in rooms if not is_room_alias(room) and not is_room_id(room)]
    return f"must be room aliases or ids, not {', '.join(map(repr, invalid))}" if invalid else None


def _is_address(text: str) -> bool:
    try:
        return text.isascii() and bool(Address(addr_spec=text).domain)
    except (ValueError, IndexError, MessageError):  # the parser reads past the end of some texts
        return False


def _check_recipients(recipients: Mapping[str, str]) -> str | None:
    invalid = [address for address in recipients if not _is_address(address)]
    return f"must be e-mail addresses, not {', '.join(map(repr, invalid))}" if invalid else None


def _check_names(names: tuple[str, ...]) -> str | None:
    try:
        ServerPatterns(names)
    except InvalidPattern as error:
        return f"must be names or patterns of names: {error}"
    return None


def _check_expressions(expressions: tuple[str, ...]) -> str | None:
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            return f"must be regular expressions, not {expression!r}: {error}"
    return None


def _check_expression(expression: str | None) -> str | None:
    return None if expression is None else _check_expressions((expression,))


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayNamesOptions:
    """Rules for display names that users choose. Administrators and identity providers may ignore
    them."""

    maximum_length: int = option(256, "The maximum number of characters.", minimum=1, maximum=256)
    pattern: str | None = option(
        None,
        "A regular expression that the whole name must match. `null`: any name.",
        example='"[^@:]+"',
        check=_check_expression,
    )
    forbidden: tuple[str, ...] = option(
        (),
        "Regular expressions that no part of a name may match, in upper or lower case.",
        example='["administrat", "support team"]',
        check=_check_expressions,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationOptions:
    """Registration."""

    enable_registration: bool = option(False, "Lets people create accounts themselves.")
    enable_registration_without_verification: bool = option(
        False,
        "Allows registration without a token or another proof. Spammers find such a server on "
        "the internet within days.",
    )
    registration_requires_token: bool = option(
        False, "Requires a registration token, which an administrator creates."
    )
    registration_requires_approval: bool = option(
        False,
        "New accounts wait until an administrator approves them (MSC3866). This includes "
        "accounts of people from an identity provider, but not accounts that administrators or "
        "application services create. Approve on the page `/_mahalla/approvals`, or with `PUT "
        "/_mahalla/admin/v1/users/{user_id}/approval`.",
    )
    registration_approval_emails: Mapping[str, str] = option(
        {},
        "E-mail addresses of administrators who are notified that an account waits, each with the "
        "language of the e-mail. While an account has been waiting for less than an hour, further "
        "accounts cause no e-mail.",
        example='{"admin@example.org": en}',
        formerly="registration_approval_letters",
        check=_check_recipients,
    )
    registration_shared_secret: Secret | None = option(
        None,
        "A program with this secret can create any account, even administrators' accounts, and "
        "even while registration is closed.",
    )
    allow_guest_access: bool = option(
        False, "Lets people without an account use the server as guests."
    )
    inhibit_user_in_use_error: bool = option(
        False,
        "Always reports that a user name is free, so that nobody can find out which accounts "
        "exist.",
    )
    reserved_usernames: tuple[str, ...] = option(
        (),
        "User names that only administrators and application services can register: names, "
        "wildcards (`*`, `?`), and regular expressions between slashes.",
        example='["admin*", "support", "/(rector|dean)[0-9]*/"]',
        check=_check_names,
    )
    display_names: DisplayNamesOptions = section(DisplayNamesOptions, "Rules for display names.")
    enable_set_displayname: bool = option(True, "Lets people change their display name.")
    enable_set_avatar_url: bool = option(True, "Lets people change their picture.")
    auto_join_rooms: tuple[str, ...] = option(
        (),
        "Rooms (aliases or ids) that every new account joins, if they exist and allow it. Guests "
        "and accounts of application services do not join.",
        example='["#everyone:example.org"]',
        check=_check_rooms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordPolicyOptions:
    """Rules for passwords."""

    enabled: bool = option(
        True,
        "Enforces the rules below for passwords that people choose, and for those that "
        "administrators set with the API. The command `create-user` accepts a weak password with "
        "a warning.",
    )
    minimum_length: int = option(8, "The minimum number of characters.", minimum=0, maximum=512)
    require_digit: bool = option(False, "Requires a digit.")
    require_symbol: bool = option(False, "Requires a character that is not alphanumeric.")
    require_lowercase: bool = option(False, "Requires a lowercase letter.")
    require_uppercase: bool = option(False, "Requires an uppercase letter.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordOptions:
    """Password login."""

    enabled: Literal[True, False, "only_for_reauth"] = option(
        True, "Lets people sign in with passwords. `only_for_reauth`: only to confirm an action."
    )
    localdb_enabled: bool = option(True, "Uses the passwords in this server's own database.")
    pepper: Secret | None = option(
        None,
        "A secret that is mixed into every password before hashing. Changing it makes all "
        "passwords invalid.",
    )
    policy: PasswordPolicyOptions = section(PasswordPolicyOptions, "Rules for new passwords.")


def _check_subject(subject: str) -> str | None:
    return None if subject.isprintable() and subject.strip() else "must be one line of text"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountValidityOptions:
    """Accounts that expire and can be renewed."""

    enabled: bool = option(
        False, "Makes accounts expire. An expired account can be used again once it is renewed."
    )
    period: Duration | None = option(
        None,
        "How long a new or renewed account is valid. Required with `enabled`.",
        minimum=3_600_000,
        example="180d",
    )
    renew_at: Duration | None = option(
        None,
        "How long before the expiry the owner gets an e-mail with a link that renews the "
        "account. `null`: only administrators renew accounts. Needs `email` and "
        "`public_baseurl`.",
        minimum=60_000,
        example="2w",
    )
    renew_email_subject: str | None = option(
        None,
        "The subject of the renewal e-mail, the same for everybody. `%(app)s` stands for "
        "`email.app_name`. `null`: in the reader's language.",
        check=_check_subject,
        example="Renew your %(app)s account",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UIAuthOptions:
    """User-interactive authentication."""

    session_timeout: Duration = option(
        Duration(0),
        "How long a confirmation is valid for further actions on the same device. 0: for one "
        "action only. A new password, the deactivation of the account, a new address and a login "
        "token always need a new confirmation.",
        minimum=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginFromSessionOptions:
    """Login on a second client with a token from the first."""

    enabled: bool = option(False, "Lets a client request a token with which a second one signs in.")
    require_ui_auth: bool = option(
        True, "Requires people to confirm the request for a token with their password."
    )
    token_timeout: Duration = option(
        Duration(120_000),
        "How long such a token is valid.",
        minimum=1000,
        maximum=3_600_000,
        example="2m",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationPasswordsOptions:
    """Application passwords: each is for one program, and users create them on the account page."""

    enabled: bool = option(
        True,
        "Lets people create application passwords, and lets programs sign in with them. They are "
        "for bots and old clients that support only passwords, even if people sign in with an "
        "identity provider. Anybody with such a password can sign in without that provider.",
    )
    in_login_flows: bool = option(
        False,
        "Announces password sign-in in `GET /login` even if `password_config` does not allow it "
        "for people. Some clients use a password only if password sign-in is announced. But if "
        "it is announced, other clients ask everybody for a password.",
    )
    limit: int = option(
        20, "How many application passwords an account can have.", minimum=1, maximum=1000
    )
    max_lifetime: Duration | None = option(
        None,
        "The longest lifetime of an application password and its session. `null`: unlimited, and "
        "people choose.",
        minimum=1,
        example="365d",
        formerly="longest_lifetime",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecordsOptions:
    """Audit records of logins, failures and account changes, for users and administrators."""

    retention_period: Duration = option(
        Duration(90 * 24 * 3600 * 1000),
        "How long audit records are kept.",
        minimum=24 * 3600 * 1000,
        example="90d",
        formerly="keep_for",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthOptions:
    """The OAuth 2.0 API: clients send users to this server's own pages and never see a password."""

    enabled: bool = option(
        True,
        "Lets apps sign people in with OAuth 2.0. Needs `public_baseurl`. The classic sign-in is "
        "still available.",
    )
    qr_code: Literal["off", "signed_in", "everybody"] = option(
        "signed_in",
        "The people who can start a sign-in by QR code: nobody; people who are signed in on "
        "another device; or everybody. Older apps (MSC4108 of 2024) and new devices that show "
        "the code need `everybody`. The server relays 4 KiB between the two devices for some "
        "minutes.",
    )
    introspection_clients: Mapping[str, Secret] = option(
        {},
        "Services that can introspect access tokens (RFC 7662) and so learn the user of a token. "
        "Maps the name of each service to its secret.",
        example='{"calendar": "a long random text"}',
        formerly="trusted_services",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsOptions:
    """Passwords and access tokens."""

    bcrypt_rounds: int = option(
        12,
        "The cost of hashing a password. Passwords are stored as Argon2id hashes. 12 is the "
        "recommended cost. A higher number takes longer: each step doubles the time. A lower one "
        "protects less. 4 is for test data only.",
        minimum=4,
        maximum=20,
    )
    password_config: PasswordOptions = section(PasswordOptions, "Sign-in with a password.")
    session_lifetime: Duration | None = option(
        None, "The time after which every session ends. `null`: never.", minimum=1, example="24h"
    )
    refreshable_access_token_lifetime: Duration = option(
        Duration(300_000),
        "The lifetime of access tokens that the client can refresh.",
        minimum=1,
        example="5m",
    )
    refresh_token_lifetime: Duration | None = option(
        None,
        "The lifetime of unused refresh tokens. `null`: unlimited.",
        minimum=1,
        example="24h",
    )
    nonrefreshable_access_token_lifetime: Duration | None = option(
        None,
        "The lifetime of access tokens that cannot be refreshed. `null`: unlimited.",
        minimum=1,
        example="24h",
    )
    accept_token_in_query: bool = option(
        True,
        "Accepts the access token as `access_token` in the query string, as old clients send it. "
        "Proxies log URLs, so switch this off if all clients send the header `Authorization`.",
    )
    login_via_existing_session: LoginFromSessionOptions = section(
        LoginFromSessionOptions, "Sign-in of a second client with a token from the first one."
    )
    application_passwords: ApplicationPasswordsOptions = section(
        ApplicationPasswordsOptions, "Passwords for programs that cannot sign in otherwise."
    )
    user_ips_max_age: Duration | None = option(
        Duration(28 * 24 * 3600 * 1000),
        "How long the server stores the IP address and the client program of a device's last "
        "use. `null`: as long as the device is signed in. The time of the last use is kept. "
        "Audit records have a separate lifetime (`audit`).",
        minimum=24 * 3600 * 1000,
        example="28d",
    )
    audit: AuditRecordsOptions = section(AuditRecordsOptions, "Audit records of accounts.")
    oauth: OAuthOptions = section(OAuthOptions, "The OAuth 2.0 API.")
    account_validity: AccountValidityOptions = section(
        AccountValidityOptions, "Accounts that expire."
    )
    ui_auth: UIAuthOptions = section(
        UIAuthOptions, "Confirmation of the user's identity before important actions."
    )
