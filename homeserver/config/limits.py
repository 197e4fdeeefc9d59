"""Rate limits: how often something may be done by one user, from one address, or in one room.

A limit is a bucket: `burst_count` at once, and it fills again at `per_second`.
"""

from dataclasses import dataclass

from homeserver.config.option import option, section


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """One bucket."""

    per_second: float = option(1.0, "How many a second in the long run.", minimum=0.000001)
    burst_count: float = option(10.0, "How many at once.", minimum=1)


def limit(per_second: float, burst_count: float, text: str, *, not_yet: bool = False) -> RateLimit:
    """Declare a rate limit with its own defaults."""
    return option(RateLimit(per_second=per_second, burst_count=burst_count), text, not_yet=not_yet)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginLimits:
    """Three buckets for signing in."""

    address: RateLimit = limit(
        0.5,
        50,
        "Sign-ins from one address. A whole office often has one; guessing is held back by the other two.",
    )
    account: RateLimit = limit(
        0.003, 5, "Sign-ins to one account that succeed, and tokens for signing in its next device."
    )
    failed_attempts: RateLimit = limit(0.17, 3, "Sign-ins to one account that fail.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshLimits:
    """Two buckets for renewing sessions (`/refresh`, and the token endpoint of the OAuth 2.0
    API)."""

    address: RateLimit = limit(
        20,
        1000,
        "Renewals from one address, and other requests for tokens of the OAuth 2.0 API. A whole office often has one, and each of its"
        " apps renews its session every few minutes (`refreshable_access_token_lifetime`).",
    )
    account: RateLimit = limit(0.5, 50, "Renewals of the sessions of one account.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthLimits:
    """Buckets of the OAuth 2.0 API."""

    client_registration: RateLimit = limit(
        0.2, 100, "Apps that register themselves from one address."
    )
    device_authorization: RateLimit = limit(
        0.1, 20, "Devices without a browser that ask from one address to be let in."
    )
    rendezvous: RateLimit = limit(0.2, 20, "Sign-ins by QR code that are begun from one address.")
    user_code: RateLimit = limit(
        0.01, 10, "Wrong codes of such devices that one person, or one address, types."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinLimits:
    """Two buckets for joining rooms."""

    local: RateLimit = limit(0.1, 10, "Joins of one user to rooms that this server is in.")
    remote: RateLimit = limit(
        0.01, 10, "Joins of one user to rooms that this server must first join over federation."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteLimits:
    """Four buckets for invitations."""

    per_room: RateLimit = limit(0.3, 10, "Invitations to one room.")
    per_user: RateLimit = limit(0.003, 5, "Invitations that one user receives.")
    per_issuer: RateLimit = limit(0.3, 10, "Invitations that one user sends.")
    false_promises: RateLimit = limit(
        0.05,
        20,
        "Claims that an invitation was promised to an e-mail address of a user, which turn out false, by address of who makes them."
        " What identity servers say truly does not count.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMessageLimits:
    """Two buckets for text messages, which cost money."""

    per_number: RateLimit = limit(0.0003, 3, "Codes to one number.")
    per_address: RateLimit = limit(0.001, 5, "Codes that are asked for from one address.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceLimits:
    """One bucket for presence."""

    per_user: RateLimit = limit(0.1, 1, "Changes of presence by one user.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationLimits:
    """How hard another server may press on this one."""

    window_size: int = option(
        1000, "The window in which requests are counted, in milliseconds.", minimum=1
    )
    sleep_limit: int = option(
        10, "Requests of one server in a window, before each next one waits.", minimum=0
    )
    sleep_delay: int = option(500, "How long it waits, in milliseconds.", minimum=0)
    reject_limit: int = option(
        50, "Waiting requests of one server, before more are refused.", minimum=0
    )
    concurrent: int = option(
        3, "Requests of one server that are answered at the same time.", minimum=1
    )
    claimed_keys: RateLimit = limit(
        50,
        5000,
        "One-time keys of encryption that one server claims. One request may claim 5,000; what it claims beyond what there is room"
        " for, it waits for before the next.",
    )
    to_device_bytes: RateLimit = limit(
        1048576,
        4294967296,
        "Bytes of messages to devices that one server sends, one for each device here that gets it. Beyond that its transactions are"
        " refused, and it sends them again later. The keys of one encrypted room go to 10,000 devices in some 15 MB.",
    )
    to_device_bytes_of_user: RateLimit = limit(
        131072,
        536870912,
        "Bytes of messages to devices that one user of another server sends, counted so. What is beyond that is not taken in: to refuse"
        " the transactions would hold up all others of that server.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Rate limits. Each is a bucket of `burst_count` that fills at `per_second`."""

    rc_message: RateLimit = limit(0.2, 10, "Messages and other events sent by one user.")
    rc_memberships: RateLimit = limit(
        1, 50, "Leaving rooms, kicking, banning and unbanning by one user."
    )
    rc_registration: RateLimit = limit(0.17, 3, "Registrations from one address.")
    rc_registration_token_validity: RateLimit = limit(
        0.1, 5, "Questions from one address whether a registration token is valid."
    )
    rc_login: LoginLimits = section(LoginLimits, "Signing in.")
    rc_refresh: RefreshLimits = section(RefreshLimits, "Renewing sessions.")
    rc_oauth: OAuthLimits = section(OAuthLimits, "Signing in by the OAuth 2.0 API.")
    rc_joins: JoinLimits = section(JoinLimits, "Joining rooms.")
    rc_joins_per_room: RateLimit = limit(
        1,
        10,
        "Joins to one room: of people here, and of people of other servers that this one lets in.",
    )
    rc_invites: InviteLimits = section(InviteLimits, "Invitations.")
    rc_room_creation: RateLimit = limit(0.016, 10, "Rooms created by one user.")
    rc_profile: RateLimit = limit(0.2, 10, "Changes of one user's profile.")
    rc_admin_redaction: RateLimit | None = option(
        None,
        "Redactions by one administrator of the server, where they shall differ from `rc_message`.",
    )
    rc_3pid_validation: RateLimit = limit(
        0.003,
        5,
        "Requests for a confirming e-mail, by address of the client and of the letter. Addresses that one user lets be bound at"
        " the identity server.",
    )
    rc_text_messages: TextMessageLimits = section(
        TextMessageLimits, "Codes by text message (`sms_gateway`)."
    )
    rc_third_party_invite: RateLimit = limit(
        0.2, 10, "Invitations by e-mail address.", not_yet=True
    )
    rc_media_create: RateLimit = limit(
        10, 50, "Files uploaded, and media addresses reserved, by one user."
    )
    rc_media_scan: RateLimit = limit(
        5,
        100,
        "Scans of what is inside of encrypted files that one user asks for, or one address without a user.",
    )
    rc_url_preview: RateLimit = limit(1, 30, "Previews of links that one user asks for.")
    rc_key_requests: RateLimit = limit(
        20,
        100,
        "Requests for encryption keys by one user. A question for more than 1,000 people's counts once for each thousand.",
    )
    rc_key_strangers: RateLimit = limit(
        0.1,
        200,
        "Servers with which a user shares no room, and which are asked all the same for keys of their users. People whom somebody of this"
        " server has invited to a room of the user do not count.",
    )
    rc_claimed_keys: RateLimit = limit(
        100,
        20000,
        "One-time keys of encryption that one user claims. What a request claims beyond what there is room for, the next one waits for.",
    )
    rc_key_backup_bytes: RateLimit = limit(
        65536,
        1073741824,
        "Bytes of room keys that one user puts into backups. Those of 100,000 sessions are some 100 MB; a new backup gets all of them.",
    )
    rc_device_changes: RateLimit = limit(
        0.2,
        100,
        "Changes of one user's devices of which all are told who share a room with them: keys of their identity, signatures, names,"
        " dehydrated devices.",
    )
    rc_to_device_strangers: RateLimit = limit(
        0.01,
        100,
        "Servers with which a user shares no room, and to whose users' devices they send messages all the same. People whom somebody of"
        " this server has invited to a room of the user do not count.",
    )
    rc_to_device_bytes: RateLimit = limit(
        65536,
        134217728,
        "Bytes of messages to devices that one user sends, one for each device. The keys of one encrypted room go to 1,000 devices in"
        " some 1.5 MB, and are sent anew after so many messages, or when somebody leaves.",
    )
    rc_presence: PresenceLimits = section(PresenceLimits, "Presence.")
    rc_reports: RateLimit = limit(1, 5, "Reports by one user.")
    rc_search: RateLimit = limit(1, 30, "Searches in messages by one user.")
    rc_user_directory: RateLimit = limit(0.016, 200, "Searches in the user directory by one user.")
    rc_hierarchy: RateLimit = limit(5, 50, "Pages of what is in a space, which one user reads.")
    rc_threads: RateLimit = limit(5, 50, "Pages of the threads of a room, which one user reads.")
    rc_timestamp_to_event: RateLimit = limit(
        2, 20, "Questions of one user for the event nearest to a time."
    )
    rc_receipts: RateLimit = limit(10, 300, "Receipts and read markers of one user.")
    rc_account_data: RateLimit = limit(
        10,
        300,
        "Account data, tags, filters, push rules and subscriptions to threads that one user sets.",
    )
    rc_aliases: RateLimit = limit(
        1, 30, "Aliases of rooms, and places in the room directory, that one user changes."
    )
    rc_typing: RateLimit = limit(5, 50, "Typing notices of one user.")
    rc_forget: RateLimit = limit(5, 100, "Rooms that one user forgets.")
    rc_delayed_event_mgmt: RateLimit = limit(1, 20, "Requests about delayed events of one user.")
    rc_federation: FederationLimits = section(FederationLimits, "Requests of other servers.")
