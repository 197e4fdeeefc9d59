"""What happened to accounts that their owners, and administrators, want to look up afterwards.

A record is written in the write that does what it tells of: nothing happens without one, and none
tells of what was undone. It has no secret in it: no password, no token, no code.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.ids import DeviceID, UserID
from homeserver.http.rate_limits import address_key
from storage.accounts.audit import AuditRecord, AuditStore, has_record, note_events
from storage.engine.transaction import WriteTransaction


class Happened(Enum):
    """What."""

    REGISTERED = "registered"
    SESSION_BEGAN = "session_began"
    SESSION_ENDED = "session_ended"
    BROWSER_SIGNED_IN = "browser_signed_in"
    BROWSER_SIGNED_OUT = "browser_signed_out"
    """By its owner, by an identity provider, with all sessions of the account, or since its time
    was over (`TIME_OVER`)."""
    SIGN_IN_FAILED = "sign_in_failed"
    SIGN_IN_REFUSED = "sign_in_refused"
    """Somebody has proved who they are, and the account may not be used; the detail says why."""
    CONFIRMATION_REFUSED = "confirmation_refused"
    """Something of the account was to be confirmed, and somebody else than its owner proved who
    they are: nothing was done. The detail says what, and who came."""
    NEW_ADDRESS = "new_address"
    """A device was used from an address that the account had not been used from."""
    TOKEN_REUSED = "token_reused"
    """A code of the OAuth 2.0 API came twice, or a refresh token, of that API or of `/refresh`,
    after its successor was used: its session ended. Or such a code came to be exchanged by whom it
    was not meant for, which made it void: the detail says why."""
    TOKEN_FOUND = "token_found"
    """Somebody else than the program of a session showed a token of it, to end it: it has ended."""
    APP_ALLOWED = "app_allowed"
    APP_DENIED = "app_denied"
    """By somebody who was asked, on the page where apps ask or that where a device is let in by its
    code."""
    DATA_EXPORTED = "data_exported"
    """Somebody took the file of what is kept of the account."""
    CLIENT_REGISTERED = "client_registered"
    """A program of the OAuth 2.0 API, which had made itself known, was let in by somebody for the
    first time: a record of no account (`NOBODY`)."""
    LOGIN_TOKEN_GIVEN = "login_token_given"
    """To an app, to let another one in with it."""
    PASSWORD_CHANGED = "password_changed"
    PASSWORD_RESET_ASKED = "password_reset_asked"
    """By whom is not known: whoever asked named an address or a number of the account, to which a
    letter or code has gone."""
    APPLICATION_PASSWORD_MADE = "application_password_made"
    APPLICATION_PASSWORD_ENDED = "application_password_ended"
    ADDRESS_ADDED = "address_added"
    ADDRESS_REMOVED = "address_removed"
    NUMBER_ADDED = "number_added"
    """A telephone number."""
    NUMBER_REMOVED = "number_removed"
    ADDRESS_BOUND = "address_bound"
    """Others find the account by it at an identity server; an e-mail address or a number."""
    ADDRESS_UNBOUND = "address_unbound"
    KEYS_RESET_ALLOWED = "keys_reset_allowed"
    KEYS_REPLACED = "keys_replaced"
    """Those of cross-signing: others have to verify the account anew."""
    LINKED = "linked"
    """The account was linked to a person of an identity provider: when it was made, by an
    administrator, or since it has the name of that person."""
    UNLINKED = "unlinked"
    RENEWED = "renewed"
    """Its end was moved, by its owner or by an administrator."""
    ADMIN_GRANTED = "admin_granted"
    ADMIN_REVOKED = "admin_revoked"
    USER_TYPE_CHANGED = "user_type_changed"
    LOCKED = "locked"
    UNLOCKED = "unlocked"
    SUSPENDED = "suspended"
    UNSUSPENDED = "unsuspended"
    SHADOW_BANNED = "shadow_banned"
    """For administrators alone, as its lifting: their owners are not to know."""
    SHADOW_BAN_LIFTED = "shadow_ban_lifted"
    DEACTIVATED = "deactivated"
    REGISTRATION_TOKEN_MADE = "registration_token_made"
    """By an administrator, as its change and its end: a record of theirs."""
    REGISTRATION_TOKEN_CHANGED = "registration_token_changed"
    REGISTRATION_TOKEN_ENDED = "registration_token_ended"
    TERMS_ACCEPTED = "terms_accepted"
    APPROVED = "approved"
    APPROVAL_WITHDRAWN = "approval_withdrawn"
    FILE_HARMFUL = "file_found_harmful"
    """A scanner has found a file harmful that the account had uploaded: it is held back."""


NOBODY: Final = UserID("")
"""Under this are kept records of what concerns no account."""
LONGEST_DETAIL: Final = 400
TIME_OVER: Final = "time_over"
FOLDED_MS: Final = 600_000
"""Refusals of one account, from one address and for one reason, are one record for so long, since
apps try again by themselves; exports from one address too."""
FOR_ADMINISTRATORS: Final = frozenset(
    {Happened.SHADOW_BANNED.value, Happened.SHADOW_BAN_LIFTED.value}
)
"""What owners of accounts are not told."""


def note(
    txn: WriteTransaction,
    user_id: UserID,
    what: Happened,
    now: int,
    *,
    ip: str | None = None,
    device_id: DeviceID | None = None,
    by: UserID | None = None,
    detail: str | None = None,
    unless_since: int | None = None,
) -> None:
    """Keep a record; not, where one from `unless_since` or later says the same of the same address.
    `now`: milliseconds since 1970; `ip`: None or empty where that is not known; `by`: the
    administrator who did it; `detail`: what there is more to say, nothing secret."""
    whence = address_key(ip) if ip else None
    told = None if detail is None else detail[:LONGEST_DETAIL]
    record = AuditRecord(user_id, now, what.value, whence, device_id, by, told)
    if unless_since is None or not has_record(txn, record, unless_since):
        note_events(txn, [record])


def note_refusal(
    txn: WriteTransaction,
    user_id: UserID,
    now: int,
    why: str,
    *,
    ip: str,
    device_id: DeviceID | None = None,
) -> None:
    """Keep a record that somebody has proved who they are, and was let in nowhere."""
    since = now - FOLDED_MS
    note(
        txn,
        user_id,
        Happened.SIGN_IN_REFUSED,
        now,
        ip=ip,
        device_id=device_id,
        detail=why,
        unless_since=since,
    )


class RemovesByUser(Protocol):
    """A store of what lets somebody in."""

    def remove_user(self, txn: WriteTransaction, user_id: str) -> int:
        """Remove what is kept for a user; how many there were."""
        ...


class Recorded:
    """Such a store, of which is recorded what ends with all sessions of a user."""

    def __init__(self, clock: IReactorTime, store: RemovesByUser, what: Happened) -> None:
        self._clock = clock
        self._store = store
        self._what = what

    def remove_user(self, txn: WriteTransaction, user_id: str, ip: str | None) -> None:
        """As `RecordedWithSessions.remove_user`."""
        for _ in range(self._store.remove_user(txn, user_id)):
            note(txn, UserID(user_id), self._what, int(self._clock.seconds() * 1000), ip=ip)


class Audit:
    """Reads records."""

    def __init__(self, clock: IReactorTime, store: AuditStore, *, keep_ms: int) -> None:
        self._clock = clock
        self._store = store
        self._keep_ms = keep_ms

    async def get_records(self, user_id: UserID, limit: int) -> Sequence[AuditRecord]:
        """The newest of a user, newest first."""
        return await self._store.get_records(user_id, limit)

    async def get_records_for_owner(self, user_id: UserID, limit: int) -> Sequence[AuditRecord]:
        """The same without what they are not told: some events, and whence an administrator did
        something."""
        return [
            row if row.by_user in (None, user_id) else msgspec.structs.replace(row, address=None)
            for row in await self.get_records(user_id, limit)
            if row.event not in FOR_ADMINISTRATORS
        ]

    async def do_sweep(self, limit: int) -> int:
        """Forget up to `limit` that have grown old; how many."""
        return await self._store.remove_old(
            int(self._clock.seconds() * 1000) - self._keep_ms, limit
        )
