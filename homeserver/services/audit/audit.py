"""The audit log: security-relevant events of accounts, for their owners and for administrators.

The record of a change is part of the write that makes the change, so both are committed or rolled
back together. A record contains no secret: no password, token or code.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import DeviceID, UserID
from homeserver.http.rate_limits import address_key
from storage.accounts.audit import AuditRecord, AuditStore, add_audit_records, has_record
from storage.engine.transaction import WriteTransaction


class AuditEvent(Enum):
    """The kind of event."""

    REGISTERED = "registered"
    SESSION_BEGAN = "session_began"
    SESSION_ENDED = "session_ended"
    BROWSER_SIGNED_IN = "browser_signed_in"
    BROWSER_SIGNED_OUT = "browser_signed_out"
    """By its owner, by an identity provider, with all sessions of the account, or by expiry
    (`SESSION_EXPIRED`)."""
    SIGN_IN_FAILED = "sign_in_failed"
    SIGN_IN_REFUSED = "sign_in_refused"
    """The user authenticated, but the account is not usable; the detail is the reason."""
    CONFIRMATION_REFUSED = "confirmation_refused"
    """Another user than the owner authenticated to confirm an operation, which was refused. The
    detail names the operation and that user."""
    NEW_ADDRESS = "new_address"
    """A device was used from an IP address that is new to the account."""
    TOKEN_REUSED = "token_reused"
    """An OAuth 2.0 code was used twice, or a refresh token (of OAuth 2.0 or `/refresh`) after its
    successor was used: its session ended. Or a client other than the intended one tried to
    exchange such a code, which revoked it; the detail is the reason."""
    TOKEN_FOUND = "token_found"
    """A client other than that of the session revoked one of its tokens; the session ended."""
    APP_ALLOWED = "app_allowed"
    APP_DENIED = "app_denied"
    """By the user, on the page for authorization requests or the page for device codes."""
    DATA_EXPORTED = "data_exported"
    """The export of the account's data was downloaded."""
    CLIENT_REGISTERED = "client_registered"
    """A user allowed an OAuth 2.0 client with dynamic registration for the first time; a record of
    no account (`NO_ACCOUNT`)."""
    LOGIN_TOKEN_GIVEN = "login_token_given"
    """Issued to a client, to sign in another client."""
    PASSWORD_CHANGED = "password_changed"
    PASSWORD_RESET_ASKED = "password_reset_asked"
    """By an unknown client that named an e-mail address or telephone number of the account, which
    got a link or code."""
    APPLICATION_PASSWORD_MADE = "application_password_made"
    APPLICATION_PASSWORD_ENDED = "application_password_ended"
    ADDRESS_ADDED = "address_added"
    ADDRESS_REMOVED = "address_removed"
    NUMBER_ADDED = "number_added"
    """A telephone number."""
    NUMBER_REMOVED = "number_removed"
    ADDRESS_BOUND = "address_bound"
    """An e-mail address or telephone number was bound to the account at an identity server."""
    ADDRESS_UNBOUND = "address_unbound"
    KEYS_RESET_ALLOWED = "keys_reset_allowed"
    KEYS_REPLACED = "keys_replaced"
    """The cross-signing keys: other users have to verify the account again."""
    LINKED = "linked"
    """The account was linked to a subject of an identity provider: at registration, by an
    administrator, or because it has the name of that subject."""
    UNLINKED = "unlinked"
    RENEWED = "renewed"
    """Its expiry time was moved, by its owner or by an administrator."""
    ADMIN_GRANTED = "admin_granted"
    ADMIN_REVOKED = "admin_revoked"
    USER_TYPE_CHANGED = "user_type_changed"
    LOCKED = "locked"
    UNLOCKED = "unlocked"
    SUSPENDED = "suspended"
    UNSUSPENDED = "unsuspended"
    SHADOW_BANNED = "shadow_banned"
    """Visible to administrators only, as is its lifting."""
    SHADOW_BAN_LIFTED = "shadow_ban_lifted"
    DEACTIVATED = "deactivated"
    REGISTRATION_TOKEN_MADE = "registration_token_made"
    """By an administrator, in the log of their account; so are its change and its deletion."""
    REGISTRATION_TOKEN_CHANGED = "registration_token_changed"
    REGISTRATION_TOKEN_ENDED = "registration_token_ended"
    TERMS_ACCEPTED = "terms_accepted"
    APPROVED = "approved"
    APPROVAL_WITHDRAWN = "approval_withdrawn"
    FILE_HARMFUL = "file_found_harmful"
    """A scanner reported a file that the account had uploaded; it is quarantined."""


NO_ACCOUNT: Final = UserID("")
"""The user ID of records that concern no account."""
MAX_DETAIL_LENGTH: Final = 400
SESSION_EXPIRED: Final = "time_over"
DEDUPLICATION_MS: Final = 600_000
"""For this time, refusals of one account from one address for one reason are one record, since apps
retry by themselves; so are exports from one address."""
ADMIN_ONLY_EVENTS: Final = frozenset(
    {AuditEvent.SHADOW_BANNED.value, AuditEvent.SHADOW_BAN_LIFTED.value}
)
"""Events that owners of accounts do not see."""


def record_event(
    txn: WriteTransaction,
    user_id: UserID,
    what: AuditEvent,
    now: int,
    *,
    ip: str | None = None,
    device_id: DeviceID | None = None,
    by: UserID | None = None,
    detail: str | None = None,
    unless_since: int | None = None,
) -> None:
    """Add a record, unless an equal one of the same address is not older than `unless_since`.

    `now`: milliseconds since 1970. `ip`: None or empty if unknown. `by`: the administrator who
    did it. `detail`: further information, nothing secret.
    """
    address = address_key(ip) if ip else None
    truncated = None if detail is None else detail[:MAX_DETAIL_LENGTH]
    record = AuditRecord(user_id, now, what.value, address, device_id, by, truncated)
    if unless_since is None or not has_record(txn, record, unless_since):
        add_audit_records(txn, [record])


def record_refusal(
    txn: WriteTransaction,
    user_id: UserID,
    now: int,
    why: str,
    *,
    ip: str,
    device_id: DeviceID | None = None,
) -> None:
    """Record that the user authenticated, but the sign-in was refused."""
    since = now - DEDUPLICATION_MS
    record_event(
        txn,
        user_id,
        AuditEvent.SIGN_IN_REFUSED,
        now,
        ip=ip,
        device_id=device_id,
        detail=why,
        unless_since=since,
    )


class CountedCredentialStore(Protocol):
    """A store of credentials or sessions per user."""

    def remove_user(self, txn: WriteTransaction, user_id: str) -> int:
        """Delete the user's rows; return the number."""
        ...


class AuditedStore:
    """Wraps a `CountedCredentialStore`; records the end of each credential or session in the audit
    log."""

    def __init__(
        self, *, clock: IReactorTime, store: CountedCredentialStore, what: AuditEvent
    ) -> None:
        self._clock = clock
        self._store = store
        self._event = what

    def remove_user(self, txn: WriteTransaction, user_id: str, ip: str | None) -> None:
        """Delete the user's rows and record each; see `AuditedCredentialStore.remove_user`."""
        for _ in range(self._store.remove_user(txn, user_id)):
            record_event(
                txn, UserID(user_id), self._event, int(self._clock.seconds() * 1000), ip=ip
            )


class Audit:
    """Reads and expires audit records."""

    def __init__(self, *, clock: IReactorTime, store: AuditStore, retention_ms: int) -> None:
        self._clock = clock
        self._store = store
        self._retention_ms = retention_ms

    async def get_records(self, user_id: UserID, limit: int) -> Sequence[AuditRecord]:
        """Return up to `limit` records of a user, newest first."""
        return await self._store.get_records(user_id, limit)

    async def get_records_for_owner(self, user_id: UserID, limit: int) -> Sequence[AuditRecord]:
        """Return the records that the owner may see.

        Leaves out events for administrators, and the addresses of administrators.
        """
        return [
            row if row.by_user in (None, user_id) else msgspec.structs.replace(row, address=None)
            for row in await self.get_records(user_id, limit)
            if row.event not in ADMIN_ONLY_EVENTS
        ]

    async def do_sweep(self, limit: int) -> int:
        """Delete up to `limit` records past the retention time; return the number."""
        return await self._store.remove_old(
            int(self._clock.seconds() * 1000) - self._retention_ms, limit
        )
