"""Options about rate limits: how often one user, client address, room or remote server may do
something.

A limit is a token bucket with room for `burst_count` tokens. It is refilled with `per_second`
tokens a second.
"""

from dataclasses import dataclass

from homeserver.config.option import option, section


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """A token bucket."""

    per_second: float = option(1.0, "How many a second in the long run.", minimum=0.000001)
    burst_count: float = option(10.0, "How many at once.", minimum=1)


def limit(
    per_second: float,
    burst_count: float,
    text: str,
    *,
    not_implemented: bool = False,
    formerly: str | None = None,
) -> RateLimit:
    """Declare a rate limit with its own defaults."""
    return option(
        RateLimit(per_second=per_second, burst_count=burst_count),
        text,
        not_implemented=not_implemented,
        formerly=formerly,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginLimits:
    """Rate limits of logins."""

    address: RateLimit = limit(
        0.5,
        50,
        "Sign-ins from one IP address, which many people may share. `failed_attempts` stops "
        "password guessing.",
    )
    account: RateLimit = limit(
        0.003, 5, "Successful sign-ins to one account, and login tokens for its next device."
    )
    failed_attempts: RateLimit = limit(0.17, 3, "Failed sign-ins to one account.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshLimits:
    """Rate limits of token refreshes (`/refresh`, and the token endpoint of the OAuth 2.0 API)."""

    address: RateLimit = limit(
        20,
        1000,
        "Refreshes from one address, and other token requests of the OAuth 2.0 API. Many people "
        "may share an address, and each of their apps refreshes every few minutes "
        "(`refreshable_access_token_lifetime`).",
    )
    account: RateLimit = limit(0.5, 50, "Refreshes of the sessions of one account.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthLimits:
    """Rate limits of the OAuth 2.0 API."""

    client_registration: RateLimit = limit(0.2, 100, "Apps that register from one address.")
    device_authorization: RateLimit = limit(
        0.1, 20, "Requests for a code by devices without a browser, from one IP address."
    )
    rendezvous: RateLimit = limit(0.2, 20, "Sign-ins by QR code that start from one address.")
    user_code: RateLimit = limit(
        0.01, 10, "Wrong device codes that one user, or one address, enters."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinLimits:
    """Rate limits of joins."""

    local: RateLimit = limit(0.1, 10, "Joins of one user to rooms that this server is in.")
    remote: RateLimit = limit(
        0.01, 10, "Joins of one user to rooms that this server must first join over federation."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteLimits:
    """Rate limits of invitations."""

    per_room: RateLimit = limit(0.3, 10, "Invitations to one room.")
    per_user: RateLimit = limit(0.003, 5, "Invitations that one user receives.")
    per_issuer: RateLimit = limit(0.3, 10, "Invitations that one user sends.")
    false_claims: RateLimit = limit(
        0.05,
        20,
        "False requests to `/3pid/onbind`, which says that an invited e-mail address belongs to a "
        "user now, from one IP address. Correct requests of identity servers do not count.",
        formerly="false_promises",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMessageLimits:
    """Rate limits of text messages, which cost money."""

    per_number: RateLimit = limit(0.0003, 3, "Codes to one number.")
    per_address: RateLimit = limit(0.001, 5, "Codes requested from one address.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceLimits:
    """Rate limits of presence."""

    per_user: RateLimit = limit(0.1, 1, "Changes of presence by one user.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationLimits:
    """Limits for requests of other servers."""

    window_size: int = option(
        1000, "The window in which requests are counted, in milliseconds.", minimum=1
    )
    sleep_limit: int = option(
        10,
        "How many requests of one server in a window are answered before the next ones are "
        "delayed.",
        minimum=0,
    )
    sleep_delay: int = option(500, "The delay of a request, in milliseconds.", minimum=0)
    reject_limit: int = option(
        50, "How many requests of one server can wait before further ones are refused.", minimum=0
    )
    concurrent: int = option(
        3, "How many requests of one server are answered at the same time.", minimum=1
    )
    claimed_keys: RateLimit = limit(
        50,
        5000,
        "One-time keys that one server claims. One request can claim 5,000. If a request exceeds "
        "the limit, it succeeds, but the next one must wait longer.",
    )
    to_device_bytes: RateLimit = limit(
        1048576,
        4294967296,
        "Bytes of to-device messages that one server sends, counted for each receiving device of "
        "this server. Above the limit, its transactions are refused, and it sends them again "
        "later. The keys of one encrypted room for 10,000 devices are about 15 MB.",
    )
    to_device_bytes_of_user: RateLimit = limit(
        131072,
        536870912,
        "Bytes of to-device messages that one user of another server sends, counted in the same "
        "way. Messages above the limit are dropped, because refusing the transactions would delay "
        "all other users of that server.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """Rate limits. Each allows `burst_count` actions at once, and `per_second` in the long run."""

    rc_message: RateLimit = limit(0.2, 10, "Messages and other events that one user sends.")
    rc_memberships: RateLimit = limit(
        1, 50, "Leaving rooms, kicking, banning and unbanning by one user."
    )
    rc_registration: RateLimit = limit(0.17, 3, "Registrations from one address.")
    rc_registration_token_validity: RateLimit = limit(
        0.1, 5, "Checks from one address whether a registration token is valid."
    )
    rc_login: LoginLimits = section(LoginLimits, "Sign-ins.")
    rc_refresh: RefreshLimits = section(RefreshLimits, "Refreshing sessions.")
    rc_oauth: OAuthLimits = section(OAuthLimits, "Sign-ins with the OAuth 2.0 API.")
    rc_joins: JoinLimits = section(JoinLimits, "Joining rooms.")
    rc_joins_per_room: RateLimit = limit(
        1,
        10,
        "Joins to one room, by users of this server, and by users of other servers that join "
        "through this one.",
    )
    rc_invites: InviteLimits = section(InviteLimits, "Invitations.")
    rc_room_creation: RateLimit = limit(0.016, 10, "Rooms created by one user.")
    rc_profile: RateLimit = limit(0.2, 10, "Changes of one user's profile.")
    rc_admin_redaction: RateLimit | None = option(
        None,
        "Redactions by one administrator of the server, if the limit should differ from "
        "`rc_message`.",
    )
    rc_3pid_validation: RateLimit = limit(
        0.003,
        5,
        "Requests for a confirmation e-mail, limited per IP address of the client and per e-mail "
        "address. It also limits the addresses that one user binds at the identity server.",
    )
    rc_text_messages: TextMessageLimits = section(
        TextMessageLimits, "Codes by text message (`sms_gateway`)."
    )
    rc_third_party_invite: RateLimit = limit(
        0.2, 10, "Invitations by e-mail address.", not_implemented=True
    )
    rc_media_create: RateLimit = limit(10, 50, "Uploads, and reserved file addresses, by one user.")
    rc_media_scan: RateLimit = limit(
        5, 100, "Scans of encrypted files that one user requests, or one address without sign-in."
    )
    rc_url_preview: RateLimit = limit(1, 30, "Link previews that one user requests.")
    rc_key_requests: RateLimit = limit(
        20,
        100,
        "Requests for encryption keys by one user. A request for more than 1,000 users counts "
        "once for each thousand.",
    )
    rc_key_requests_to_new_servers: RateLimit = limit(
        0.1,
        200,
        "Servers without a shared room from which one user's clients request keys. Requests for "
        "people do not count if a user of this server invited them to a room that the requesting "
        "user is in.",
        formerly="rc_key_strangers",
    )
    rc_claimed_keys: RateLimit = limit(
        100,
        20000,
        "One-time keys that one user claims. If a request exceeds the limit, it succeeds, but "
        "the next one must wait longer.",
    )
    rc_key_backup_bytes: RateLimit = limit(
        65536,
        1073741824,
        "Bytes of room keys that one user uploads to backups. The keys of 100,000 sessions are "
        "about 100 MB, and a new backup receives all of them.",
    )
    rc_device_changes: RateLimit = limit(
        0.2,
        100,
        "Changes of one user's devices that are sent to all users who share a room: identity "
        "keys, signatures, names, dehydrated devices.",
    )
    rc_to_device_to_new_servers: RateLimit = limit(
        0.01,
        100,
        "Servers without a shared room to which one user sends to-device messages. Messages to "
        "people do not count if a user of this server invited them to a room that the sender is "
        "in.",
        formerly="rc_to_device_strangers",
    )
    rc_to_device_bytes: RateLimit = limit(
        65536,
        134217728,
        "Bytes of to-device messages that one user sends, counted for each receiving device. The "
        "keys of one encrypted room for 1,000 devices are about 1.5 MB. Clients send new ones "
        "after a number of messages, or when somebody leaves.",
    )
    rc_presence: PresenceLimits = section(PresenceLimits, "Presence.")
    rc_reports: RateLimit = limit(1, 5, "Reports by one user.")
    rc_search: RateLimit = limit(1, 30, "Searches in messages by one user.")
    rc_user_directory: RateLimit = limit(0.016, 200, "Searches in the user directory by one user.")
    rc_hierarchy: RateLimit = limit(5, 50, "Pages of a space's room list that one user requests.")
    rc_threads: RateLimit = limit(5, 50, "Pages of a room's thread list that one user requests.")
    rc_timestamp_to_event: RateLimit = limit(
        2, 20, "Requests of one user for the event nearest to a time."
    )
    rc_receipts: RateLimit = limit(10, 300, "Receipts and read markers of one user.")
    rc_account_data: RateLimit = limit(
        10,
        300,
        "Account data, tags, filters, push rules and thread subscriptions that one user sets.",
    )
    rc_aliases: RateLimit = limit(
        1, 30, "Aliases and room directory entries that one user changes."
    )
    rc_typing: RateLimit = limit(5, 50, "Typing notices of one user.")
    rc_forget: RateLimit = limit(5, 100, "Rooms that one user forgets.")
    rc_delayed_event_mgmt: RateLimit = limit(1, 20, "Requests about delayed events of one user.")
    rc_federation: FederationLimits = section(FederationLimits, "Requests of other servers.")
