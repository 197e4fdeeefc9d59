"""The rate limits that endpoints and services count against."""

from enum import Enum


class Limit(Enum):
    """The rate limit that an action counts against. Its value is the key of the option.

    An endpoint's limit counts by user, or by client address if it is in `PER_ADDRESS`. Services
    check further limits themselves, with their own keys (`RateLimiter.check`).
    """

    NONE = "none"
    MESSAGE = "rc_message"
    MEMBERSHIP = "rc_memberships"
    REGISTRATION = "rc_registration"
    REGISTRATION_TOKEN = "rc_registration_token_validity"
    LOGIN = "rc_login.address"
    LOGIN_ACCOUNT = "rc_login.account"
    LOGIN_FAILED = "rc_login.failed_attempts"
    REFRESH = "rc_refresh.address"
    REFRESH_ACCOUNT = "rc_refresh.account"
    RENDEZVOUS = "rc_oauth.rendezvous"
    CLIENT_REGISTRATION = "rc_oauth.client_registration"
    DEVICE_AUTHORIZATION = "rc_oauth.device_authorization"
    USER_CODE = "rc_oauth.user_code"
    ADMIN_REDACTION = "rc_admin_redaction"
    JOIN = "rc_joins.local"
    JOIN_REMOTE = "rc_joins.remote"
    JOIN_ROOM = "rc_joins_per_room"
    THREEPID = "rc_3pid_validation"
    TEXT_MESSAGES_NUMBER = "rc_text_messages.per_number"
    TEXT_MESSAGES_ADDRESS = "rc_text_messages.per_address"
    INVITE = "rc_invites.per_issuer"
    INVITE_ROOM = "rc_invites.per_room"
    INVITE_USER = "rc_invites.per_user"
    FALSE_INVITE_CLAIM = "rc_invites.false_claims"
    THIRD_PARTY_INVITE = "rc_third_party_invite"
    MEDIA_CREATE = "rc_media_create"
    MEDIA_SCAN = "rc_media_scan"
    REMOTE_MEDIA = "remote_media_download"
    """In bytes. The option belongs to the media options."""
    PRESENCE = "rc_presence.per_user"
    DELAYED_EVENT = "rc_delayed_event_mgmt"
    REPORT = "rc_reports"
    ROOM_CREATION = "rc_room_creation"
    SEARCH = "rc_search"
    USER_DIRECTORY = "rc_user_directory"
    KEY_REQUEST = "rc_key_requests"
    KEY_REQUEST_NEW_SERVERS = "rc_key_requests_to_new_servers"
    BACKUP_BYTES = "rc_key_backup_bytes"
    TO_DEVICE_NEW_SERVERS = "rc_to_device_to_new_servers"
    TO_DEVICE_BYTES = "rc_to_device_bytes"
    TO_DEVICE_BYTES_OF_SERVER = "rc_federation.to_device_bytes"
    TO_DEVICE_BYTES_OF_REMOTE_USER = "rc_federation.to_device_bytes_of_user"
    PROFILE = "rc_profile"
    URL_PREVIEW = "rc_url_preview"
    HIERARCHY = "rc_hierarchy"
    THREADS = "rc_threads"
    TIMESTAMP_TO_EVENT = "rc_timestamp_to_event"
    RECEIPT = "rc_receipts"
    ACCOUNT_DATA = "rc_account_data"
    ALIAS = "rc_aliases"
    TYPING = "rc_typing"
    FORGET = "rc_forget"
    KEY_CLAIM_OF_SERVER = "rc_federation.claimed_keys"
    KEY_CLAIM_OF_USER = "rc_claimed_keys"
    DEVICE_CHANGE = "rc_device_changes"

    __hash__ = object.__hash__
    """Hash by identity: `Enum.__hash__` is a Python function, and each counted request looks up its
    limit."""


PER_ADDRESS = frozenset(
    {
        Limit.REGISTRATION,
        Limit.REGISTRATION_TOKEN,
        Limit.LOGIN,
        Limit.REFRESH,
        Limit.THREEPID,
        Limit.CLIENT_REGISTRATION,
        Limit.DEVICE_AUTHORIZATION,
        Limit.RENDEZVOUS,
    }
)
